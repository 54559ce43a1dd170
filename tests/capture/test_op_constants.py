"""What the second pass sees of constants, masks, logarithms of probabilities and large whole numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mpdiag.operations import OpRole, OpTable
from op_samples import of, one, rms, rms_by_pow, select

# constants


def constants(tables: tuple[OpTable, ...]) -> list[tuple[str, str | None, float | None, float | None, str | None]]:
    return [
        (t.op, t.argument, t.value, t.in_fp16, t.amp_dtype)
        for t in select(tables, role=OpRole.CONSTANT)
        if t.module == "Body"
    ]


def test_an_eps_of_1e_8_is_zero_in_fp16():
    assert constants(of(rms, torch.ones(1, 2))) == [("add", "other", 1e-8, 0.0, "float16")]


def test_an_eps_next_to_fp32_stays_what_it_is():
    assert constants(of(rms_by_pow, torch.ones(1, 2))) == [("add", "other", 1e-8, 0.0, "float32")]


def test_the_eps_of_torchs_norm_is_fp32():
    assert constants(of(lambda h: F.layer_norm(h, (2,), eps=1e-12), torch.ones(1, 2))) == [
        ("native_layer_norm", "eps", 1e-12, 0.0, "float32")
    ]


def test_a_clamp_has_both_its_constants():
    found = constants(of(lambda h: h.clamp(1e-9, 5e4), torch.ones(1, 2)))
    assert found == [("clamp", "min", 1e-9, 0.0, "float16"), ("clamp", "max", 5e4, 49984.0, "float16")]


def test_constants_well_inside_fp16_are_no_rows():
    assert constants(of(lambda h: (h * 3 + 0.5).clamp(-1, 100) / 8, torch.ones(1, 2))) == []


def test_exponents_dimensions_and_probabilities_are_no_constants():
    assert constants(of(lambda h: F.dropout(h.pow(5000.0).sum(-1, keepdim=True), 1e-6), torch.ones(1, 2))) == []


MASK = torch.tensor([[False, True], [False, False]])


def test_a_fill_of_minus_a_billion_raises_in_fp16_and_the_types_go_on():
    tables = of(lambda h: F.softmax(h.masked_fill(MASK, -1e9), -1) * h, torch.ones(2, 2))
    constant = one(tables, role=OpRole.CONSTANT)
    assert (constant.value, constant.in_fp16, constant.amp_dtype) == (-1e9, -math.inf, "float16")
    assert "without overflow" in constant.amp_error
    assert "without overflow" in one(tables, op="masked_fill").amp_error
    assert one(tables, op="softmax").amp_dtype == "float32"
    assert all(t.amp_dtype is not None for t in tables)


def test_a_fill_in_place_raises_and_goes_on_too():
    def fill(h: torch.Tensor) -> torch.Tensor:
        scores = h + 0
        scores.masked_fill_(MASK, -1e9)
        return F.softmax(scores, -1)

    tables = of(fill, torch.ones(2, 2))
    assert "without overflow" in one(tables, role=OpRole.CONSTANT).amp_error
    assert one(tables, op="masked_fill").amp_result == "inf"
    assert one(tables, op="softmax").amp_result == "finite"


@pytest.mark.parametrize(
    ("op", "argument", "mask"),
    [
        ("where", "other", lambda h: torch.where(MASK, h, -1e9)),
        ("where", "self", lambda h: torch.where(MASK, torch.tensor(-1e9), h)),
        ("add", "other", lambda h: h + torch.tensor(-1e9)),
        ("mul", "other", lambda h: MASK.to(h.dtype) * -1e9 + h),
    ],
)
def test_a_mask_by_where_or_addition_becomes_minus_infinity(op, argument, mask):
    found = constants(of(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)))
    assert found == [(op, argument, -1e9, -math.inf, "float16")]


def test_a_mask_built_in_fp32_counts_as_fp16_where_it_is_cast_later():
    def build(h: torch.Tensor) -> torch.Tensor:
        mask = torch.full((2, 2), -1e9).triu(1)
        return F.softmax(h + mask.to(h.dtype), -1)

    assert constants(of(build, torch.ones(2, 2))) == [("full", "fill_value", -1e9, -math.inf, "float16")]


def test_a_mask_built_in_fp32_and_left_there_stays_fp32():
    def build(h: torch.Tensor) -> torch.Tensor:
        return F.softmax(h + torch.full((2, 2), -1e9).triu(1), -1)

    assert constants(of(build, torch.ones(2, 2))) == [("full", "fill_value", -1e9, -math.inf, "float32")]


def test_the_least_number_of_the_scores_own_type_is_another_one_in_fp16():
    def fill(h: torch.Tensor) -> torch.Tensor:
        return F.softmax(h.masked_fill(MASK, torch.finfo(h.dtype).min), -1)

    constant = one(of(fill, torch.ones(2, 2)), role=OpRole.CONSTANT)
    assert constant.value == torch.finfo(torch.float32).min
    assert (constant.amp_value, constant.in_fp16, constant.amp_error) == (-65504, -65504, None)


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: h.masked_fill(MASK, -math.inf),
        lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], attn_mask=~MASK),
        lambda h: h * ~MASK,
    ],
)
def test_minus_infinity_and_boolean_masks_are_no_constants(mask):
    assert constants(of(mask, torch.ones(2, 2))) == []


def test_what_a_mask_was_filled_into_or_added_to_is_marked_and_nothing_else():
    def fill(h: torch.Tensor) -> torch.Tensor:
        scores = h.masked_fill(MASK, torch.finfo(h.dtype).min)
        return F.softmax(scores + 1, -1) * 2

    tables = of(fill, torch.ones(2, 2))
    assert {t.op for t in tables if t.masked} == {"masked_fill", "add", "softmax"}
    assert one(tables, op="softmax", role=OpRole.LOGITS).masked
    assert not one(tables, op="softmax").masked


# a softmax's logarithm, whole numbers


def test_the_probabilities_in_a_logarithm_are_seen_with_their_type():
    x = torch.tensor([[0.0, 40.0]])
    fp32 = one(of(lambda h: torch.log(F.softmax(h, -1)), x), role=OpRole.PROBABILITY)
    assert (fp32.op, fp32.amp_dtype, fp32.abs_max) == ("log", "float32", 1)
    assert fp32.abs_min == pytest.approx(math.exp(-40), rel=1e-6)
    half = one(of(lambda h: torch.log(F.softmax(h, -1).to(h.dtype) + 1e-8), x), role=OpRole.PROBABILITY)
    assert half.amp_dtype == "float16"


def test_a_log_softmax_and_another_logarithm_hold_no_probabilities():
    tables = of(lambda h: F.log_softmax(h, -1) + torch.log(h), torch.ones(1, 2))
    assert [t for t in tables if t.role is OpRole.PROBABILITY] == []


@pytest.mark.parametrize(
    ("numbers", "amp_dtype"),
    [
        (lambda h: torch.arange(3000.0)[:, None] @ torch.ones(1, 2), "float16"),
        (lambda h: torch.arange(3000).to(h.dtype), "float16"),
        (lambda h: torch.arange(3000)[:, None].float() * torch.ones(2), "float32"),
        (lambda h: torch.arange(3000, dtype=torch.float32) / 3000, "float32"),
    ],
    ids=["a product of positions", "cast to the type of an activation", "FP32", "normalised in FP32"],
)
def test_whole_numbers_beyond_2048_are_seen_with_the_type_that_holds_them(numbers, amp_dtype):
    tables = of(lambda h: numbers(h).float().sum() + h.sum(), torch.ones(1, 2))
    found = one(tables, role=OpRole.INTEGERS)
    assert (found.abs_max, found.amp_dtype) == (2999, amp_dtype)


@pytest.mark.parametrize("last", [0, 1, 2049])
def test_whole_numbers_up_to_2048_are_no_row(last):
    tables = of(lambda h: torch.arange(last).to(h.dtype).sum() + h.sum(), torch.ones(1, 2))
    assert select(tables, role=OpRole.INTEGERS) == []
