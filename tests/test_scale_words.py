"""The loss-scale advice in words."""

import pytest

from mpdiag.advice.checks.check import island
from mpdiag.diagnosis import Comparison
from mpdiag.drift import WindowAt
from mpdiag.report.digest import _bf16
from mpdiag.report.scale_words import drift_lines


def window(first, lower, upper):
    return WindowAt(first, first + 4, 5, lower, upper, upper, 0.0, 0.0)


def test_the_drift_is_one_line_with_a_window_for_each_point():
    assert drift_lines((window(0, 2, 14), window(50, 4, 16))) == [("drift", "step 0: 2^2..2^14, step 50: 2^4..2^16")]


def test_points_whose_windows_have_nothing_in_common_are_said_to_need_a_moving_scale():
    ((_, text),) = drift_lines((window(0, 2, 5), window(50, 7, 9)))
    assert text.endswith("no one scale serves them all, so the scale has to move: dynamic scaling does")


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
