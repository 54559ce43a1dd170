"""Every finding: a capture that deserves it, one that does not, and real models with planted faults.

A healthy model must stay free of errors and of warnings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from capture_samples import (
    ACTIVATION,
    ACTIVATION_GRADIENT,
    HEALTHY,
    UPDATE,
    WEIGHT,
    WEIGHT_GRADIENT,
    capture,
    found,
    only,
    table,
)
from mpdiag.advice import advise
from mpdiag.advice.checks import ALL, BY_CODE, CAPTURE_CHECKS, RUN_CHECKS, TRIAL_CHECKS
from mpdiag.advice.loss_scale import recommend
from mpdiag.api import ScanOptions, scan
from mpdiag.diagnosis import Advice, Diagnosis, EnergyLost, Finding, TensorTable
from mpdiag.histogram import ExponentHistogram

TARGETS = Path(__file__).parents[1] / "targets"
SECTIONS = ("Why it is bad:", "Threshold:", "Remedy:", "Source:")


# the catalogue


def test_codes_are_unique_and_ascending():
    codes = [check.code for check in ALL]
    assert codes == sorted(set(codes))
    assert len(codes) == len(BY_CODE) == len(CAPTURE_CHECKS) + len(TRIAL_CHECKS) + len(RUN_CHECKS)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_code_is_mp_and_three_digits_and_a_name_is_kebab_case(check):
    assert re.fullmatch(r"MP[1-7]\d\d", check.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", check.name)


def test_names_are_unique():
    assert len({check.name for check in ALL}) == len(ALL)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_page_has_its_sections_in_order_each_with_text(check):
    page = check.page()
    places = [page.index(f"\n{section}") for section in SECTIONS]
    assert places == sorted(places)
    assert all(re.search(rf"\n{section} \S+", page) for section in SECTIONS)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_page_begins_with_code_and_name_and_a_one_sentence_summary(check):
    first, blank, summary = check.page().splitlines()[:3]
    assert (first, blank) == (f"{check.code} {check.name}", "")
    assert summary.endswith(".")


def test_a_page_is_not_indented():
    assert not any(line.startswith(" ") for check in ALL for line in check.page().splitlines())


@pytest.mark.parametrize("check", CAPTURE_CHECKS, ids=lambda c: c.code)
def test_a_healthy_capture_has_no_finding(check):
    assert found(check.code, *HEALTHY) == []


@pytest.mark.parametrize("check", CAPTURE_CHECKS, ids=lambda c: c.code)
def test_an_empty_capture_has_no_finding(check):
    assert found(check.code, input_abs_max=None, losses=(), loss_amp_dtype=None) == []


# MP101 activation-overflow


def test_mp101_an_activation_beyond_fp16_is_an_error():
    f = only("MP101", table("head", ACTIVATION, {3: 99, 17: 1}, 179568.6))
    assert (f.severity, f.subject, f.source) == ("error", "head", "model.py:7")
    assert f.evidence["abs_max"] == 179568.6
    assert f.evidence["limit"] == 65520
    assert f.evidence["headroom_log2"] == pytest.approx(-1.455, abs=1e-3)
    assert "y = self.head(x.float())" in f.snippet


@pytest.mark.parametrize(
    ("abs_max", "severity"), [(32752.0, "warning"), (65504.0, "warning"), (65519.9, "warning"), (65520.0, "error")]
)
def test_mp101_within_an_octave_of_the_limit_is_a_warning(abs_max, severity):
    assert only("MP101", table("head", ACTIVATION, {15: 1}, abs_max)).severity == severity


def test_mp101_says_how_much_room_is_left():
    f = only("MP101", table("head", ACTIVATION, {15: 1}, 40000.0))
    assert f.message == "the output of head reaches 40,000, 0.7 octaves below FP16's largest number 65504"


@pytest.mark.parametrize(("abs_max", "words"), [(66246.0, "66,246, 0.0"), (100000.0, "100,000, 0.6")])
def test_mp101_a_large_number_has_thousands_separators(abs_max, words):
    f = only("MP101", table("head", ACTIVATION, {16: 1}, abs_max))
    assert f.message == f"the output of head reaches {words} octaves above FP16's largest number 65504"


def test_mp101_an_octave_of_room_is_enough():
    assert found("MP101", table("head", ACTIVATION, {14: 1}, 32751.0)) == []


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_mp101_what_is_not_fp16_under_autocast_cannot_overflow_it(dtype):
    assert found("MP101", table("head", ACTIVATION, {17: 1}, amp_dtype=dtype)) == []


# MP102 nonfinite-in-fp16


def test_mp102_the_first_module_that_overflows_inside_is_an_error():
    norm, head = table("norm", ACTIVATION, {1: 1}, 3.25), table("head", ACTIVATION, {1: 1})
    f = only("MP102", norm, head, amp_nonfinite=("norm", "head"))
    assert (f.severity, f.subject) == ("error", "norm")
    assert f.message == "norm gives inf or NaN under FP16 autocast, though its FP32 output reaches 3.25"
    assert f.evidence == {"abs_max_fp32": 3.25, "limit": 65520.0}


def test_mp102_a_large_number_has_thousands_separators():
    f = only("MP102", table("norm", ACTIVATION, {15: 1}, 40000.0), amp_nonfinite=("norm",))
    assert f.message.endswith("though its FP32 output reaches 40,000")


def test_mp102_an_output_of_nothing_but_zeros_is_an_error_too():
    norm, head = table("norm", ACTIVATION, {1: 1}, 3.25), table("head", ACTIVATION, {1: 1})
    f = only("MP102", norm, head, amp_vanished=("norm", "head"))
    assert (f.severity, f.subject) == ("error", "norm")
    assert f.message == "norm gives nothing but zeros under FP16 autocast, though its FP32 output reaches 3.25"


def test_mp102_of_both_kinds_the_module_called_first_is_named():
    norm, head = table("norm", ACTIVATION, {1: 1}), table("head", ACTIVATION, {1: 1})
    assert only("MP102", norm, head, amp_nonfinite=("head",), amp_vanished=("norm",)).subject == "norm"
    assert only("MP102", norm, head, amp_nonfinite=("norm",), amp_vanished=("head",)).subject == "norm"


def test_mp102_an_output_that_is_all_zero_in_fp32_too_is_no_finding():
    relu = replace(table("relu", ACTIVATION, {0: 1}), histogram=ExponentHistogram(zeros=9), abs_max=None)
    assert found("MP102", relu, amp_vanished=("relu",)) == []


def test_mp102_an_output_too_small_for_fp16_is_left_to_mp105():
    # FP16 rounds up to 2^-25 to zero; nothing inside has overflowed
    assert found("MP102", table("fc", ACTIVATION, {-25: 1}, 2.0**-25), amp_vanished=("fc",)) == []
    assert only("MP102", table("fc", ACTIVATION, {-24: 1}, 2.0**-24), amp_vanished=("fc",)).subject == "fc"


def test_mp102_what_mp101_says_already_is_not_said_twice():
    large, head = table("large", ACTIVATION, {17: 1}), table("head", ACTIVATION, {1: 1})
    assert found("MP102", large, head, amp_nonfinite=("large", "head")) == []


def test_mp102_a_module_that_is_infinite_in_fp32_too_is_passed_over():
    masked = replace(table("mask", ACTIVATION, {1: 1}), histogram=ExponentHistogram(0, (1,), infs=5))
    norm = table("norm", ACTIVATION, {1: 1})
    assert only("MP102", masked, norm, amp_nonfinite=("mask", "norm")).subject == "norm"


def test_mp102_a_loss_that_is_infinite_only_in_fp16_is_an_error():
    assert only("MP102", *HEALTHY, amp_loss_finite=False, losses=(1.0, math.nan)).subject == "the loss"


@pytest.mark.parametrize("first", [math.nan, math.inf])
def test_mp102_a_loss_that_is_not_finite_in_fp32_either_is_not_fp16s_fault(first):
    assert found("MP102", *HEALTHY, amp_loss_finite=False, losses=(first,)) == []
    assert found("MP102", *HEALTHY, amp_loss_finite=False, losses=()) == []


# MP103 input-range


def test_mp103_pixels_left_in_0_to_255_are_a_warning():
    f = only("MP103", input_abs_max=255.0)
    assert (f.severity, f.subject) == ("warning", "the input batch")
    assert f.message == "the inputs reach 255: pixels left in 0..255"
    assert (f.remedy, f.snippet, f.evidence) == ("divide by 255", "x = x / 255", {"abs_max": 255.0, "limit": 200})


def test_mp103_inputs_from_a_thousand_on_are_a_warning():
    f = only("MP103", input_abs_max=1000.0)
    assert (f.message, f.remedy) == ("the inputs reach 1,000", "standardise the inputs")


@pytest.mark.parametrize("largest", [0.0, 1.0, 199.9, 255.1, 999.0, None])
def test_mp103_other_inputs_are_not(largest):
    assert found("MP103", input_abs_max=largest) == []


# MP104 weight-overflow


def test_mp104_a_weight_beyond_fp16_is_an_error():
    f = only("MP104", table("head.weight", WEIGHT, {16: 1}, 70000.0))
    assert (f.severity, f.subject) == ("error", "head.weight")
    assert f.message == "head.weight holds 70,000, beyond FP16's 65504"
    assert f.evidence == {"abs_max": 70000.0, "limit": 65520.0}


def test_mp104_a_large_number_has_thousands_separators():
    assert " holds 100,000, " in only("MP104", table("head.weight", WEIGHT, {16: 1}, 100000.0)).message


def test_mp104_a_weight_that_stays_fp32_or_fits_is_not():
    assert found("MP104", table("w", WEIGHT, {16: 1}, amp_dtype="float32"), table("v", WEIGHT, {15: 1}, 65519.0)) == []


# MP105 activation-underflow


def test_mp105_an_activation_of_which_a_fiftieth_rounds_to_zero_is_a_warning():
    f = only("MP105", table("fc", ACTIVATION, {-27: 20, -20: 980}))
    assert (f.severity, f.subject) == ("warning", "fc")
    assert f.message == "2.0 % of the non-zero elements of fc's output become zero in FP16"
    assert f.evidence["underflow"] == 0.02
    assert f.evidence["energy_lost"] == pytest.approx(20 * 4.0**-7 / 980, rel=1e-4)


def test_mp105_a_hundredth_is_not():
    assert found("MP105", table("fc", ACTIVATION, {-27: 10, -20: 990})) == []


def test_mp105_elements_below_fp16s_own_rounding_error_are_not():
    # a GELU's far tail: a tenth of the elements, 2^-50 of the squared norm
    assert found("MP105", table("gelu", ACTIVATION, {-27: 100, -1: 900})) == []


def test_mp105_exact_zeros_are_not():
    relu = replace(table("relu", ACTIVATION, {0: 100}), histogram=ExponentHistogram(0, (100,), zeros=900))
    assert found("MP105", relu) == []


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


# MP301 must-stay-fp32


@pytest.mark.parametrize("kind", ["MySoftmax", "RMSNorm", "ContrastiveLoss"])
def test_mp301_a_softmax_norm_or_loss_that_gives_fp16_is_a_warning(kind):
    f = only("MP301", table("part", ACTIVATION, {0: 1}, 1.5, module_type=kind))
    assert (f.severity, f.subject) == ("warning", "part")
    assert f.message == f"part ({kind}) computes in FP16 under autocast"
    assert f.evidence == {"amp_dtype": "float16", "abs_max": 1.5}


@pytest.mark.parametrize(
    "kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm2d", "SyncBatchNorm", "Normalize", "Linear"]
)
def test_mp301_torchs_batch_and_instance_norms_may_give_fp16(kind):
    assert found("MP301", table("part", ACTIVATION, {0: 1}, module_type=kind)) == []


def test_mp301_a_norm_that_gives_fp32_is_not():
    assert found("MP301", table("part", ACTIVATION, {0: 1}, module_type="LayerNorm", amp_dtype="float32")) == []


# MP302 loss-in-fp16


def test_mp302_an_fp16_loss_that_overflows_at_the_scale_is_an_error():
    seen = table("w", WEIGHT_GRADIENT, {-50: 1000}), table("v", WEIGHT_GRADIENT, {10: 1000})
    f = only("MP302", *seen, losses=(0.5, 2.0, math.nan), loss_amp_dtype="float16")
    assert (f.severity, f.subject) == ("error", "the loss")
    assert f.message == "the loss is FP16 under autocast; its largest value 2 times 2^16 overflows"
    assert f.evidence == {"loss": 2.0, "log2_scale": 16, "limit": 65520.0}


def test_mp302_an_fp16_loss_that_fits_the_recommended_scale_is_a_warning():
    f = only("MP302", table("w", WEIGHT_GRADIENT, {-30: 1000}), losses=(2.0,), loss_amp_dtype="float16")
    assert (f.severity, f.evidence["log2_scale"]) == ("warning", 8)
    assert f.message.endswith("2 times 2^8 still fits")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", None])
def test_mp302_another_loss_is_not(dtype):
    assert found("MP302", losses=(1e6,), loss_amp_dtype=dtype) == []


# MP303 bce-unsafe, MP304 autocast-fails

BCE = "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast"


def test_mp303_binary_cross_entropy_is_an_error():
    f = only("MP303", amp_error=BCE)
    assert (f.severity, f.subject, f.message) == (
        "error",
        "the loss",
        "binary_cross_entropy raises under CUDA autocast",
    )
    assert f.evidence == {"error": BCE}


def test_mp304_leaves_binary_cross_entropy_to_mp303():
    assert found("MP304", amp_error=BCE) == []


def test_mp304_another_failure_is_an_error_and_quotes_it():
    f = only("MP304", amp_error="expected scalar type Float but found Half")
    assert (f.severity, f.subject) == ("error", "the forward pass")
    assert f.message == "an FP16 autocast iteration fails: expected scalar type Float but found Half"
    assert found("MP303", amp_error="expected scalar type Float but found Half") == []


def test_mp304_names_the_line_that_raised():
    f = only("MP304", amp_error="TypeError while computing the loss: a and b differ, at my job.py:21")
    assert f.source == "my job.py:21"
    assert f.remedy.startswith("mend my job.py:21, or put an FP32 island around it; `--depth ops`")


def test_mp304_tells_a_constant_beyond_fp16_apart():
    f = only("MP304", amp_error="RuntimeError: value cannot be converted to type c10::Half without overflow, at a.py:3")
    assert f.remedy.startswith("write a smaller constant at a.py:3; for a mask torch.finfo(scores.dtype).min (MP305")
    assert "masked_fill" in f.snippet


def test_mp304_an_operator_that_only_the_cpu_lacks_is_information_about_the_emulation():
    error = "\"histogramdd\" not implemented for 'Half'"
    f = only("MP304", amp_error=error)
    assert (f.severity, f.subject) == ("info", "the emulation")
    gpu = replace(capture(amp_error=error), device="cuda")
    assert [f.severity for f in BY_CODE["MP304"].find(gpu, recommend(gpu))] == ["error"]


# all findings together


def test_advice_has_the_worst_first_then_by_code():
    advice = advise(
        capture(
            table("b", ACTIVATION, {15: 1}, 40000.0),
            table("a", ACTIVATION, {17: 1}),
            table("w", WEIGHT_GRADIENT, {-30: 999, 3: 1}),
            input_abs_max=255.0,
        )
    )
    assert [(f.severity, f.code) for f in advice.findings] == [
        ("error", "MP101"),
        ("warning", "MP101"),
        ("warning", "MP103"),
        ("info", "MP201"),
        ("info", "MP202"),
    ]


def test_what_overflows_or_must_stay_is_kept_in_fp32_once():
    large = table("norm", ACTIVATION, {17: 1}, module_type="MyNorm")
    assert advise(capture(large, table("fc", ACTIVATION, {1: 1}), input_abs_max=255.0)).keep_fp32 == ("norm",)


def test_the_module_of_a_weight_that_overflows_is_kept_in_fp32():
    weight = table("body.head.weight", WEIGHT, {16: 1}, 70000.0)
    assert advise(capture(weight)).keep_fp32 == ("body.head",)
    assert advise(capture(weight, table("body.head", ACTIVATION, {17: 1}))).keep_fp32 == ("body.head",)


def test_a_weight_of_the_model_itself_that_overflows_names_no_nameless_module():
    # the model itself is known by its class (capture/modules.py), never by an empty name
    assert "" not in advise(capture(table("weight", WEIGHT, {16: 1}, 70000.0))).keep_fp32


def test_nothing_is_kept_in_fp32_in_a_healthy_capture():
    advice = advise(capture(*HEALTHY))
    assert (advice.findings, advice.keep_fp32, advice.format) == ((), (), "FP16")


# real models, through the real capture


@dataclass(frozen=True)
class Fault:
    """A target with one planted fault, and what has to be found: code, severity and subject."""

    code: str
    severities: tuple[str, ...]
    subject: str | None
    source: str


PREAMBLE = """
import torch
import torch.nn.functional as F
from torch import nn


def train_batches():
    while True:
        yield torch.randn(16, 8), torch.randn(16, 4)


def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

"""

FAULTS = {
    "bce": Fault(
        "MP303",
        ("error",),
        "the loss",
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 4), nn.Sigmoid())

def compute_loss(model, batch):
    return nn.BCELoss()(model(batch[0]), (batch[1] > 0).float())
""",
    ),
    "pixels": Fault(
        "MP103",
        ("warning",),
        "the input batch",
        """
def train_batches():
    while True:
        x = torch.randint(256, (16, 8)).float()
        x[0, 0] = 255
        yield x, torch.randn(16, 4)
""",
    ),
    "large activation": Fault(
        "MP101",
        ("error",),
        "body.large",
        """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"large": nn.Linear(8, 16), "head": nn.Linear(16, 4)})
        nn.init.constant_(self.body["large"].bias, 1e5)

    def forward(self, x):
        return self.body["head"](self.body["large"](x) * 1e-5)

def build_model():
    return Model()
""",
    ),
    "hand-written norm": Fault(
        "MP102",
        ("error",),
        "norm",
        """
class Scale(nn.Module):
    def forward(self, x):
        return x * x / (x * x).mean(-1, keepdim=True)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16), Scale(), nn.Linear(16, 4)
        nn.init.constant_(self.first.bias, 1000.0)

    def forward(self, x):
        return self.head(self.norm(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "norm that vanishes": Fault(
        "MP102",
        ("error",),
        "norm",
        """
class Scale(nn.Module):
    def forward(self, x):
        return x / ((x * x).mean(-1, keepdim=True) + 1e-5).sqrt()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(8, 16), Scale(), nn.Linear(16, 4)
        nn.init.constant_(self.first.bias, 1000.0)

    def forward(self, x):
        return self.head(self.norm(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "loss in fp16": Fault(
        "MP302",
        ("error", "warning"),
        "the loss",
        """
def compute_loss(model, batch):
    out = model(batch[0])
    return (out - batch[1].to(out.dtype)).abs().mean()
""",
    ),
    "softmax": Fault(
        "MP301",
        ("warning",),
        "soft",
        """
class MySoftmax(nn.Module):
    def forward(self, x):
        return x.sigmoid() / 4

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.soft, self.head = nn.Linear(8, 16), MySoftmax(), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.soft(self.first(x)))

def build_model():
    return Model()
""",
    ),
    "tiny gradients": Fault(
        "MP201",
        ("info",),
        None,
        """
def compute_loss(model, batch):
    return F.mse_loss(model(batch[0]), batch[1]) * 1e-6
""",
    ),
    "a sum for a loss": Fault(
        "MP203",
        ("error",),
        None,
        """
def compute_loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).sum() * 1e5

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-12)
""",
    ),
    "two ranges": Fault(
        "MP204",
        ("error",),
        "loss scale",
        """
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.small(x).float() * 1e-9, self.large(x).float() * 1e5

def build_model():
    return Model()

def compute_loss(model, batch):
    small, large = model(batch[0])
    return small.mean() + large.mean()

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-9)
""",
    ),
    "float16 weights": Fault(
        "MP205",
        ("error", "warning"),
        None,
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(torch.float16)

def train_batches():
    while True:
        yield torch.randn(16, 8).to(torch.float16), torch.randn(16, 4).to(torch.float16)

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-5)
""",
    ),
    "bfloat16 weights": Fault(
        "MP205",
        ("error", "warning"),
        None,
        """
def build_model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).to(torch.bfloat16)

def train_batches():
    while True:
        yield torch.randn(16, 8).to(torch.bfloat16), torch.randn(16, 4).to(torch.bfloat16)

def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=1e-5)
""",
    ),
}


def captured(path: Path, steps: int = 3) -> Diagnosis:
    return scan(str(path), ScanOptions(steps=steps, device="cpu", verify=False))


@pytest.fixture(scope="module")
def diagnose(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Diagnosis]:
    """The diagnosis of a planted fault, made once."""
    made: dict[str, Diagnosis] = {}

    def of(name: str) -> Diagnosis:
        if name not in made:
            path = tmp_path_factory.mktemp("fault") / f"{name.replace(' ', '_').replace('-', '_')}.py"
            path.write_text(PREAMBLE + (FAULTS[name].source if name in FAULTS else ""))
            made[name] = captured(path)
        return made[name]

    return of


def advice_of(diagnosis: Diagnosis) -> Advice:
    assert diagnosis.advice is not None
    return diagnosis.advice


@pytest.mark.parametrize(
    ("name", "formats"), [("float16 weights", {"FP16"}), ("bfloat16 weights", {"BF16"}), ("no fault", {"FP16", "BF16"})]
)
def test_updates_of_16_bit_weights_have_a_stagnant_share_of_their_own_format_only(diagnose, name, formats):
    seen = diagnose(name).capture
    assert seen is not None
    shares = [t.stagnant for t in seen.of_kind(UPDATE)]
    assert len(shares) == 4
    assert [set(share or ()) for share in shares] == [formats] * 4
    assert all(0 <= value <= 1 for share in shares for value in (share or {}).values())


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_in_a_real_training_run(diagnose, name):
    fault, findings = FAULTS[name], advice_of(diagnose(name)).findings
    hits = [f for f in findings if f.code == fault.code]
    assert hits, [f"{f.code} {f.message}" for f in findings]
    assert hits[0].severity in fault.severities
    assert fault.subject is None or hits[0].subject == fault.subject


def test_the_same_job_without_a_fault_has_no_finding_but_information(diagnose):
    findings = advice_of(diagnose("no fault")).findings
    assert [f.code for f in findings if f.severity != "info"] == []


def test_the_module_whose_output_overflows_is_kept_in_fp32(diagnose):
    assert advice_of(diagnose("large activation")).keep_fp32 == ("body.large",)


def test_a_finding_points_at_the_users_line(diagnose):
    finding = next(f for f in advice_of(diagnose("large activation")).findings if f.code == "MP101")
    path, line = finding.source.rsplit(":", 1)
    assert 'self.body["large"](x)' in Path(path).read_text().splitlines()[int(line) - 1]


def test_the_norm_that_overflows_inside_is_kept_in_fp32(diagnose):
    assert advice_of(diagnose("hand-written norm")).keep_fp32 == ("norm",)


def test_the_conflict_names_both_branches(diagnose):
    finding = next(f for f in advice_of(diagnose("two ranges")).findings if f.code == "MP204")
    need, bear = finding.message.split(", and 2^")
    assert "small" in need
    assert "large" not in need
    assert "large" in bear
    assert "small" not in bear


CNN = """
def build_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )

def train_batches():
    while True:
        yield torch.randn(16, 3, 16, 16), torch.randint(5, (16,))

def compute_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])
"""
MLP = """
def build_model():
    return nn.Sequential(
        nn.Linear(8, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 4)
    )
"""
HEALTHY_MODELS = {"cnn": CNN, "mlp": MLP, "encoder": None, "lstm": None, "unet": None}


@pytest.mark.parametrize("name", HEALTHY_MODELS)
def test_a_healthy_model_has_no_error_and_no_warning_but_what_a_loss_scale_cures(tmp_path, name):
    source, path = HEALTHY_MODELS[name], TARGETS / f"{name}.py"
    if source is not None:
        path = tmp_path / f"{name}.py"
        path.write_text(PREAMBLE + source)
    diagnosis = captured(path)
    advice = advice_of(diagnosis)
    assert [(f.code, f.message) for f in advice.findings if f.severity != "info"] == []
    assert advice.keep_fp32 == ()
    assert advice.loss_scale.log2_scale is not None
    assert diagnosis.capture is not None
    assert diagnosis.capture.unchanged is True
