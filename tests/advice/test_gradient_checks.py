"""The findings on gradients, the loss scale and updates, MP201 to MP206: captures that deserve each or do not."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch

from capture_samples import ACTIVATION_GRADIENT, UPDATE, WEIGHT_GRADIENT, capture, found, only, table
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import EnergyLost, Finding, TensorTable
from mpdiag.histogram import ExponentHistogram

# MP201 gradient-underflow


def test_mp201_gradients_that_the_recommended_scale_recovers_are_information():
    a, b = table("a.weight", WEIGHT_GRADIENT, {-30: 100, -10: 300}), table("b.weight", WEIGHT_GRADIENT, {-10: 600})
    f = only("MP201", a, b)
    assert (f.severity, f.subject, f.evidence["cured_by_the_scale"]) == ("info", "a.weight", True)
    assert f.message == (
        "at scale 1, at least 10.0 % of all FP16 gradient elements become zero (25.0 % of a.weight's weight gradient); "
        "at 2^19 it is 0 %"
    )
    assert f.remedy == "scale the loss by 2^19"
    assert (f.evidence["underflow"], f.evidence["worst_underflow"]) == (0.1, 0.25)
    assert "init_scale=2.0**19" in f.snippet


def test_mp201_a_hundredth_of_all_and_a_twentieth_of_one_are_not():
    a, b = table("a", WEIGHT_GRADIENT, {-30: 5, -10: 95}), table("b", WEIGHT_GRADIENT, {-10: 400})
    assert found("MP201", a, b) == []


def test_mp201_more_than_a_twentieth_of_one_tensor_is():
    a, b = table("a", WEIGHT_GRADIENT, {-30: 6, -10: 94}), table("b", WEIGHT_GRADIENT, {-10: 10**6})
    assert only("MP201", a, b).message == (
        "at scale 1, <0.1 % of all FP16 gradient elements become zero (6.0 % of a's weight gradient); at 2^19 it is 0 %"
    )


def test_mp201_where_no_scale_helps_it_points_to_mp204():
    a, b = table("a", WEIGHT_GRADIENT, {-50: 100}), table("b", ACTIVATION_GRADIENT, {10: 100})
    f = only("MP201", a, b)
    assert (f.severity, f.evidence["cured_by_the_scale"]) == ("warning", False)
    assert f.remedy == "no global scale cures this: see MP204"
    assert "torch.bfloat16" in f.snippet


def test_mp201_a_scale_that_is_too_small_for_one_tensor_is_no_cure():
    a, b = table("a", WEIGHT_GRADIENT, {-30: 100, -10: 300}), table("b", WEIGHT_GRADIENT, {-10: 10**6})
    seen = capture(a, b)
    too_small = replace(recommend(seen), log2_scale=2, underflow_after=1e-4, most_lost_after=EnergyLost("a", 1e-3, 0))
    (f,) = BY_CODE["MP201"].find(seen, too_small)
    assert f.severity == "warning"
    (f,) = BY_CODE["MP201"].find(seen, replace(too_small, most_lost_after=EnergyLost("a", 1e-9, 0)))
    assert f.severity == "info"  # what is lost is less than what FP16 rounds anyway


def test_mp201_noise_and_elements_below_the_noise_floor_are_not():
    noise = table("key.bias", WEIGHT_GRADIENT, {-40: 1000}, noise_level=True)
    packed = table("in_proj_bias", WEIGHT_GRADIENT, {-45: 500, -10: 500}, noise_floor_log2=-30)
    assert found("MP201", noise, packed) == []


# MP202 default-scale-overflows


def test_mp202_a_gradient_that_overflows_at_gradscalers_start_is_information():
    f = only("MP202", table("w", WEIGHT_GRADIENT, {-30: 999, 3: 1}))
    assert (f.severity, f.subject) == ("info", "GradScaler")
    assert f.message == (
        "at GradScaler's default start 2^16 the largest gradient overflows; 4 step(s) would be skipped"
    )
    assert f.evidence == {"default_log2": 16, "abs_max": 8.0, "limit": 65520 / 2**16, "upper_log2": 10}
    assert (f.remedy, f.snippet) == ("start at 2^6", "init_scale=2.0**6")


@pytest.mark.parametrize(
    ("abs_max", "skips"),
    [(0.999, 0), (0.99975586, 1), (1.0, 1), (1.999, 1), (2.0, 2), (3.9, 2), (4.0, 3), (65000.0, 16), (65536.0, 17)],
)
def test_mp202_counts_the_steps_torchs_scaler_really_skips(abs_max, skips):
    findings = found("MP202", table("w", WEIGHT_GRADIENT, {-30: 999, math.frexp(abs_max)[1] - 1: 1}, abs_max))
    counted = [int(re.search(r"(\d+) step", f.message).group(1)) for f in findings]
    assert counted == ([skips] if skips else [])
    assert skipped_by_halving(abs_max) == skips


def skipped_by_halving(gradient: float) -> int:
    """GradScaler's own rule, with the overflow of a real cast."""
    scale, skipped = 2.0**16, 0
    while torch.tensor(gradient * scale, dtype=torch.float64).half().isinf():
        scale, skipped = scale / 2, skipped + 1
    return skipped


def test_mp202_where_no_scale_is_needed_nothing_is_said():
    gradient = table("w", WEIGHT_GRADIENT, {3: 1000})
    advice = recommend(capture(gradient))
    assert (advice.mode, advice.log2_scale) == ("none", 0)
    assert found("MP202", gradient) == []


def test_mp202_where_no_scale_is_possible_nothing_is_said():
    assert found("MP202", table("w", WEIGHT_GRADIENT, {-50: 999}), table("v", WEIGHT_GRADIENT, {10: 999})) == []


# MP203 gradient-overflow


def test_mp203_a_gradient_beyond_fp16_at_scale_one_is_an_error():
    f = only("MP203", table("head", ACTIVATION_GRADIENT, {16: 1}, 70000.0))
    assert (f.severity, f.subject) == ("error", "head")
    assert f.message == "the activation gradient of head reaches 70,000 at scale 1, beyond FP16's 65504"
    assert f.evidence == {"abs_max": 70000.0, "limit": 65520.0, "tensors": 1}


def test_mp203_of_several_the_largest_is_named_and_the_others_are_counted():
    f = only(
        "MP203",
        table("a", WEIGHT_GRADIENT, {16: 1}, 66246.0),
        table("b", ACTIVATION_GRADIENT, {16: 1}, 80000.0),
        table("fits", WEIGHT_GRADIENT, {10: 1}),
        table("c", WEIGHT_GRADIENT, {16: 1}, 70000.0),
    )
    assert (f.severity, f.subject) == ("error", "b")
    assert f.message == ("the activation gradient of b reaches 80,000 at scale 1, beyond FP16's 65504; so do 2 more")
    assert f.evidence == {"abs_max": 80000.0, "limit": 65520.0, "tensors": 3}


def test_mp203_a_large_number_has_thousands_separators():
    f = only("MP203", table("head", WEIGHT_GRADIENT, {16: 1}, 100000.0))
    assert f.message == "the weight gradient of head reaches 100,000 at scale 1, beyond FP16's 65504"


def test_mp203_a_gradient_that_fits_or_stays_fp32_is_not():
    fits = table("a", WEIGHT_GRADIENT, {15: 1}, 65519.0)
    assert found("MP203", fits, table("b", WEIGHT_GRADIENT, {20: 1}, amp_dtype="float32")) == []


# MP204 range-conflict


def test_mp204_ends_that_cross_are_an_error_that_names_the_tensors():
    f = only("MP204", table("small", WEIGHT_GRADIENT, {-50: 1000}), table("large", ACTIVATION_GRADIENT, {10: 1000}))
    assert (f.severity, f.subject) == ("error", "loss scale")
    assert f.message == (
        "a scale of 2^25 or more is needed for small (weight_gradient), "
        "and 2^3 is the most for large (activation_gradient)"
    )
    assert f.evidence == {"lower_log2": 25, "upper_log2": 3, "limit": 8.0}
    assert "torch.bfloat16" in f.snippet


def test_mp204_a_window_of_one_scale_is_no_conflict():
    seen = table("w", WEIGHT_GRADIENT, {-33: 999, 5: 1})
    advice = recommend(capture(seen))
    assert advice.lower_log2 == advice.upper_log2 == 8
    assert found("MP204", seen) == []


# MP205 update-stagnation


def update(share: float, dtype: str = "float32", fmt: str = "FP16", name: str = "fc.weight") -> TensorTable:
    """16-bit weights have a share for their own format only."""
    stagnant = {fmt: share} if dtype != "float32" else {"FP16": 0.0, "BF16": 0.0, fmt: share}
    return table(name, UPDATE, {-15: 1000}, dtype=dtype, amp_dtype=dtype, stagnant=stagnant)


def test_mp205_updates_an_fp16_copy_of_fp32_weights_would_lose_are_information():
    f = only("MP205", update(0.4))
    assert (f.severity, f.subject) == ("info", "fc.weight")
    assert f.message == "40 % of the updates would vanish in FP16 weights (40 % of fc.weight's)"
    assert f.remedy == "keep FP32 master weights: use autocast, not model.half()"
    assert f.evidence == {"stagnant": 0.4, "limit": 0.1}


@pytest.mark.parametrize(("share", "severity"), [(0.11, "warning"), (0.5, "warning"), (0.51, "error")])
@pytest.mark.parametrize(("dtype", "fmt"), [("float16", "FP16"), ("bfloat16", "BF16")])
def test_mp205_updates_that_16_bit_weights_lose_are_a_warning_and_from_half_on_an_error(share, severity, dtype, fmt):
    f = only("MP205", update(share, dtype, fmt))
    assert f.severity == severity
    percent = f"{round(share * 100)} %"
    assert f.message == f"{percent} of the updates vanish in the {fmt} weights ({percent} of fc.weight's)"


def test_mp205_a_tenth_is_not():
    assert found("MP205", update(0.1), update(0.1, "float16"), update(0.1, "bfloat16", "BF16")) == []


def test_mp205_tensors_count_by_their_elements():
    small, large = replace(update(0.9, name="small"), elements=100), replace(update(0.1, name="large"), elements=300)
    f = only("MP205", small, large)
    assert (f.evidence["stagnant"], f.subject) == (pytest.approx(0.3), "small")
    assert f.message == "30 % of the updates would vanish in FP16 weights (90 % of small's)"


def test_mp205_weights_of_which_none_ever_moved_are_an_error():
    # no update is left that is not zero; the gradients say that there should have been
    stuck = replace(update(1.0, "float16"), histogram=ExponentHistogram(zeros=1000), abs_max=None, abs_min=None)
    f = only("MP205", stuck)
    assert (f.severity, f.evidence["stagnant"]) == ("error", 1.0)


def test_mp205_each_type_of_weights_is_judged_apart():
    findings = found("MP205", update(0.4, name="a"), update(0.6, "float16"), update(0.2, "bfloat16", "BF16"))
    assert [f.severity for f in findings] == ["info", "error", "warning"]


# MP206 gradient-subnormal


def coarse(small: int, exponent: int) -> list[Finding]:
    """What is said of a gradient of which so many elements lie low, at a loss scale of 2^9."""
    seen = capture(table("body.weight", WEIGHT_GRADIENT, {exponent: small, -10: 1000 - small}, 2.0**-10))
    return list(BY_CODE["MP206"].find(seen, replace(recommend(seen), log2_scale=9)))


def test_mp206_a_gradient_that_stays_subnormal_at_the_recommended_scale_is_information():
    (f,) = coarse(1000, -24)  # 2^-15 at 2^9
    assert (f.severity, f.subject, f.evidence["subnormal"], f.evidence["tensors"]) == ("info", "body.weight", 1.0, 1)
    assert (
        f.message == "at 2^9, 100.0 % of the weight gradient of body.weight is subnormal in FP16 and keeps fewer bits"
    )


def test_mp206_the_smallest_normal_number_keeps_all_bits():
    assert coarse(1000, -23) == []


def test_mp206_small_elements_that_carry_nothing_are_left_alone():
    assert coarse(990, -24) == []
