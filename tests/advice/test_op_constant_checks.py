"""Masks, eps, logarithms of a softmax and whole numbers in FP16: what deserves a finding and what does not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from mpdiag.advice import advise
from op_check_samples import capture, codes, found
from op_samples import of
from op_table_samples import constant

# MP305 mask-constant


MASK = torch.tensor([[False, True], [False, False]])


def test_mp305_a_fill_that_raises_is_an_error_with_what_it_raised():
    findings = advise(capture(*of(lambda h: F.softmax(h.masked_fill(MASK, -1e9), -1), torch.ones(2, 2)))).findings
    assert [(f.code, f.severity) for f in findings] == [("MP305", "error")]
    assert "the constant -1e+09 of masked_fill in Body (" in findings[0].message
    assert "raises in FP16: value cannot be converted" in findings[0].message
    assert "torch.finfo(scores.dtype).min" in findings[0].snippet


@pytest.mark.parametrize(
    "mask",
    [lambda h: torch.where(MASK, -1e9, h), lambda h: h + MASK.to(h.dtype) * -1e9, lambda h: h + torch.tensor(-1e9)],
    ids=["where", "product", "sum"],
)
def test_mp305_a_mask_that_becomes_infinite_is_a_warning(mask):
    assert codes(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)) == [("MP305", "warning")]


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: h.masked_fill(MASK, torch.finfo(h.dtype).min),
        lambda h: h.masked_fill(MASK, -math.inf),
        lambda h: h.masked_fill(MASK, -1e4),
        lambda h: h.float().masked_fill(MASK, -1e9),
        lambda h: h + torch.zeros(2, 2).masked_fill(MASK, -1e9),
        lambda h: h.where(~MASK, -6e4),
    ],
    ids=["finfo", "infinity", "ten thousand", "in FP32", "an FP32 mask added", "near the limit"],
)
def test_mp305_masks_that_fp16_holds_or_does_not_meet_are_no_finding(mask):
    assert codes(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)) == []


def test_mp305_a_boolean_mask_is_no_finding():
    attend = lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], attn_mask=~MASK)
    assert codes(attend, torch.ones(2, 2)) == []


def test_mp305_a_large_factor_is_no_mask():
    assert found("MP305", constant("mul", 1e9, math.inf)) == []


# MP306 eps-underflow
def guarded(eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: 1 / (h + eps)


def test_mp306_an_eps_that_is_zero_and_needed_is_an_error():
    f = advise(capture(*of(guarded(1e-8), torch.tensor([[0.0, 1.0]])))).findings[0]
    assert (f.code, f.severity) == ("MP306", "error")
    assert (f.evidence["in_fp16"], f.evidence["smallest_guarded"]) == (0.0, pytest.approx(1e-8))


def test_mp306_an_eps_that_is_zero_and_not_needed_now_is_a_warning():
    assert codes(guarded(1e-8), torch.ones(1, 2)) == [("MP306", "warning")]


def test_mp306_an_eps_with_fewer_bits_is_information():
    f = advise(capture(*of(guarded(1e-6), torch.ones(1, 2)))).findings[0]
    assert (f.code, f.severity) == ("MP306", "info")
    assert "becomes 1.01e-06, subnormal, in FP16" in f.message


def test_mp306_a_clamp_guards_too():
    assert codes(lambda h: h.clamp(min=1e-12), torch.zeros(1, 2)) == [("MP306", "error")]


@pytest.mark.parametrize("fn", [guarded(1e-4), lambda h: 1 / (h.float() + 1e-8), lambda h: h * 1e-8])
def test_mp306_a_larger_eps_an_fp32_one_and_a_factor_are_no_finding(fn):
    assert codes(fn, torch.ones(1, 2)) == []


def test_mp306_an_eps_from_finfo_is_judged_by_its_fp16_value():
    assert codes(lambda h: 1 / (h + torch.finfo(h.dtype).eps), torch.ones(1, 2)) == []


# MP307 log-of-softmax
def in_half(h: torch.Tensor) -> torch.Tensor:
    return torch.log(F.softmax(h, -1).to(h.dtype))


def test_mp307_a_vanished_probability_in_fp16_is_an_error():
    assert codes(in_half, torch.tensor([[0.0, 40.0]])) == [("MP307", "error")]


def test_mp307_probabilities_in_fp16_are_a_warning():
    assert codes(in_half, torch.tensor([[0.0, 4.0]])) == [("MP307", "warning")]


def test_mp307_in_fp32_as_under_autocast_it_is_information():
    assert codes(lambda h: torch.log(F.softmax(h, -1)), torch.tensor([[0.0, 40.0]])) == [("MP307", "info")]


def test_mp307_log_softmax_is_no_finding():
    assert codes(lambda h: F.log_softmax(h, -1), torch.tensor([[0.0, 40.0]])) == []


# MP308 integers-in-fp16
def positions(count: int, dtype: torch.dtype | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: h.sum() + torch.sin(torch.arange(count).to(dtype or h.dtype) / 100).sum()


def test_mp308_positions_beyond_2048_in_fp16_are_a_warning():
    f = advise(capture(*of(positions(3000), torch.ones(1, 2)))).findings[0]
    assert (f.code, f.severity, f.evidence["abs_max"]) == ("MP308", "warning", 2999)
    assert "whole numbers up to 2,999" in f.message


@pytest.mark.parametrize("fn", [positions(2049), positions(3000, torch.float32)])
def test_mp308_positions_that_fp16_holds_or_that_stay_in_fp32_are_no_finding(fn):
    assert codes(fn, torch.ones(1, 2)) == []
