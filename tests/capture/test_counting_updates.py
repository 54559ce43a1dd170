"""Counting weight updates: their binades, which of them were wanted and which are lost in 16 bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counting_samples import CPU, add_update, quick
from mpdiag.capture.columns import Row
from mpdiag.capture.counting import CountTable
from mpdiag.capture.tally import Tensor, tabled
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram

# updates


def direct_stagnation(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> int:
    """Element by element in Python: the weight stored in 16 bits, plus the FP32 update, stored again."""
    count = 0
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        update = torch.tensor(new) - torch.tensor(old)
        stored = torch.tensor(old).to(dtype).item()
        if update.item() != 0 and (torch.tensor(stored) + update).to(dtype).item() == stored:
            count += 1
    return count


@pytest.mark.parametrize("log2_ratio", [-6, -9, -11, -13])
def test_stagnation_is_that_of_a_direct_computation(log2_ratio):
    generator = torch.Generator().manual_seed(log2_ratio + 100)
    before = torch.randn(500, generator=generator)
    after = before + torch.randn(500, generator=generator) * 2.0**log2_ratio
    after[::7] = before[::7]
    table = CountTable(CPU)
    add_update(table, 0, before, after)
    row = table.take()[0]
    assert row.stagnant_fp16 == direct_stagnation(before, after, torch.float16)
    assert row.stagnant_bf16 == direct_stagnation(before, after, torch.bfloat16)
    assert 0 < row.stagnant_bf16 < row.histogram.finite_nonzero or log2_ratio == -13
    assert row.histogram.zeros >= len(before[::7])


@pytest.mark.parametrize(
    ("update", "fp16", "bf16"),
    [
        (2.0**-10, 0, 1),  # one FP16 ulp of 1
        (2.0**-11, 1, 1),  # a tie, to the even 1
        (-(2.0**-11), 0, 1),  # below a power of two the spacing is half
        (-(2.0**-12), 1, 1),
        (2.0**-7, 0, 0),
        (2.0**-8, 0, 1),
        (-(2.0**-8), 0, 0),
        (-(2.0**-9), 0, 1),
        (0.0, 0, 0),
    ],
)
def test_an_update_of_a_weight_of_one_is_felt_as_its_half_ulp_says(update, fp16, bf16):
    before = torch.ones(1)
    table = CountTable(CPU)
    add_update(table, 0, before, before + update)
    row = table.take()[0]
    assert (row.stagnant_fp16, row.stagnant_bf16) == (fp16, bf16)


def test_the_update_is_counted_in_its_own_binade():
    table = CountTable(CPU)
    add_update(table, 0, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.25, 2.0, 2.0]))
    row = table.take()[0]
    assert row.histogram == ExponentHistogram.from_bins({-2: 1, 0: 1}, zeros=1)
    assert (row.abs_max, row.abs_min) == (1.0, 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_updates_of_16_bit_weights_are_counted_exactly(dtype):
    before = torch.tensor([1.0, 2.0], dtype=dtype)
    after = torch.tensor([1.0, 2.5], dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, before, after)
    assert table.take()[0].histogram == ExponentHistogram.from_bins({-1: 1}, zeros=1)


@pytest.mark.parametrize("gradient", [None, torch.zeros(4), torch.ones(4)], ids=["none", "zeros", "ones"])
def test_an_update_of_fp32_weights_is_wanted_where_it_is_not_zero(gradient):
    before = torch.ones(4)
    after = before + torch.tensor([0.0, 2.0**-12, 2.0**-8, 0.5])
    table = CountTable(CPU)
    add_update(table, 0, before, after, gradient)
    row = table.take()[0]
    assert (row.wanted, row.stagnant_fp16, row.stagnant_bf16) == (3, 1, 2)


@pytest.mark.parametrize(("dtype", "own"), [(torch.float16, "stagnant_fp16"), (torch.bfloat16, "stagnant_bf16")])
def test_an_update_of_16_bit_weights_is_wanted_where_the_gradient_is_not_zero(dtype, own):
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0], dtype=dtype)
    after = torch.tensor([1.0, 1.5, 1.0, 0.5, 2.0], dtype=dtype)
    gradient = torch.tensor([1.0, -1.0, 0.0, 0.0, -(2.0**-14)], dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, before, after, gradient)
    row = table.take()[0]
    # the first and the last stayed although asked to move; the fourth moved without a gradient (weight decay, momentum)
    assert row.wanted == 3
    assert {name: getattr(row, name) for name in ("stagnant_fp16", "stagnant_bf16")} == {
        "stagnant_fp16": 0,
        "stagnant_bf16": 0,
        own: 2,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_that_all_stay_have_lost_every_wanted_update(dtype):
    weights = torch.ones(100, dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, weights, weights.clone(), torch.full((100,), 1e-3, dtype=dtype))
    row = table.take()[0]
    assert (row.wanted, row.stagnant_fp16 + row.stagnant_bf16, row.histogram.zeros) == (100, 100, 100)


@quick
@given(st.lists(st.sampled_from([0.0, 2.0**-12, 2.0**-9, 0.25, -0.25, -(2.0**-13)]), min_size=1, max_size=50))
def test_no_more_updates_are_stagnant_than_wanted(updates):
    before = torch.ones(len(updates))
    table = CountTable(CPU)
    add_update(table, 0, before, before + torch.tensor(updates))
    row = table.take()[0]
    assert row.wanted == sum(u != 0 for u in updates)
    assert max(row.stagnant_fp16, row.stagnant_bf16) <= row.wanted


def test_wanted_updates_of_several_calls_add_up():
    table = CountTable(CPU)
    add_update(table, 0, torch.ones(2), torch.tensor([1.0, 1.5]))
    add_update(table, 0, torch.ones(3), torch.tensor([1.5, 1.5, 1.0]))
    assert table.take()[0].wanted == 3


def table_of(kind: TensorKind, dtype: str, row: Row) -> TensorTable:
    return tabled(Tensor("fc.weight", "Linear", kind, dtype), row, 2, [row.abs_max, row.abs_max], None)


@pytest.mark.parametrize(
    ("dtype", "stagnant"),
    [("float32", {"FP16": 0.25, "BF16": 0.75}), ("float16", {"FP16": 0.25}), ("bfloat16", {"BF16": 0.75})],
)
def test_the_stagnant_share_is_of_the_wanted_updates_and_16_bit_weights_have_their_own_format_only(dtype, stagnant):
    row = Row(ExponentHistogram(-1, (2,), zeros=18), 0.5, 0.5, 2, 6, 8)
    assert table_of(TensorKind.WEIGHT_UPDATE, dtype, row).stagnant == stagnant


def test_a_tensor_without_a_wanted_update_has_no_stagnant_share_and_neither_has_one_that_is_no_update():
    unwanted, row = (Row(ExponentHistogram(zeros=9), 0.0, math.inf, 0, 0, wanted) for wanted in (0, 4))
    assert table_of(TensorKind.WEIGHT_UPDATE, "float32", unwanted).stagnant is None
    assert table_of(TensorKind.WEIGHT, "float32", row).stagnant is None


def test_16_bit_weights_that_never_moved_still_have_a_stagnant_share():
    row = Row(ExponentHistogram(zeros=9), 0.0, math.inf, 9, 0, 9)
    assert table_of(TensorKind.WEIGHT_UPDATE, "float16", row).stagnant == {"FP16": 1.0}
