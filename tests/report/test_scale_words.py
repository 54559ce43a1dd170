"""The loss-scale advice in words."""

from dataclasses import replace

import pytest

from mpdiag.advice.checks.check import island
from mpdiag.diagnosis import Comparison, LossScaleAdvice
from mpdiag.drift import WindowAt
from mpdiag.report.digest import _bf16
from mpdiag.report.scale_words import drift_lines, scale_lines


def window(first, lower, upper):
    return WindowAt(first, first + 4, 5, lower, upper, upper, 0.0, 0.0)


def test_the_drift_is_one_line_with_a_window_for_each_point():
    assert drift_lines((window(0, 2, 14), window(50, 4, 16))) == [("drift", "step 0: 2^2..2^14, step 50: 2^4..2^16")]


def test_a_point_without_a_gradient_beside_others_is_said_to_have_none():
    ((_, text),) = drift_lines((window(0, None, None), window(50, 4, 16)))
    assert text == "step 0: no FP16 gradient, step 50: 2^4..2^16"


def test_points_whose_windows_have_nothing_in_common_are_said_to_need_a_moving_scale():
    ((_, text),) = drift_lines((window(0, 2, 5), window(50, 7, 9)))
    assert text.endswith("; no overlap; the scale has to move, as dynamic scaling does")
    ((_, text),) = drift_lines((window(0, 2, 5), window(50, 7, 9)), 4)
    assert text.endswith(
        "; no overlap: start at 2^4, in the window of step 0; the scale has to move, as dynamic scaling does"
    )


def test_a_window_of_one_scale_is_no_range_and_what_it_may_lose_is_explained():
    why = "2^14 loses elements only below FP16's own rounding error; by count alone it would be 2^92"
    scale = LossScaleAdvice(14, "dynamic", 14, 14, {}, 0.5, 0.027, 0.1, 0.0, None, why)
    assert scale_lines(scale)[:2] == [("scale", "2^14 = 16,384, dynamic; window 2^14 alone"), ("", why)]
    assert "" not in dict(scale_lines(replace(scale, lower_log2=2, reason="window 2^2..2^14 over 20 steps")))


def test_what_loses_nothing_loses_not_at_least_nothing():
    scale = LossScaleAdvice(0, "none", -9, 9, {}, 0.0, 0.0, 0.0, 0.0, None, "")
    assert dict(scale_lines(scale))["underflow"].startswith("0\u202f% of the gradient elements")
    assert dict(scale_lines(replace(scale, underflow_before=0.5)))["underflow"].startswith("at least 50")


def test_points_without_a_gradient_say_nothing():
    assert drift_lines(()) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("head", "self.head"),
        ("blocks.1.down", "self.blocks[1].down"),
        ("0", "self[0]"),
        ("encoder.0.12", "self.encoder[0][12]"),
        ("conv2.norm1", "self.conv2.norm1"),
    ],
)
def test_the_code_of_an_island_can_be_pasted_whatever_the_modules_name(name, code):
    text = island(name)
    compile(text, name, "exec")
    assert f"y = {code}(x.float())" in text


def judged(quantity, verdict, is_ratio=False):
    return Comparison(quantity, "", "fp32", "bf16", 1.0, 1.0, 0.0, (0.0, 0.0), 0.1, 3, verdict, is_ratio=is_ratio)


def test_bf16_is_told_beside_fp16():
    found = _bf16((judged("loss", "equivalent"), judged("accuracy", "worse"), judged("step_time_ms", "better", True)))
    assert found == [("bf16", "loss equivalent, accuracy worse")]
