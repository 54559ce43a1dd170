"""Findings on the ranges of activations, inputs and weights, MP101 to MP105: captures that deserve each or do not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from capture_samples import ACTIVATION, HEALTHY, WEIGHT, found, only, table
from mpdiag.histogram import ExponentHistogram

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
