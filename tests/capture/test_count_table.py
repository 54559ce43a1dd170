"""The table of counts: its rows, how it grows and starts anew, and how a loss scale is taken out of it."""

from __future__ import annotations

import math

import pytest
import torch

from counting_samples import CPU, add_update, row_of
from mpdiag.capture.columns import ABS_MAX, ABS_MIN, BINS, LOWEST, Row, empty_table, unscaled
from mpdiag.capture.counting import CountTable
from mpdiag.histogram import ExponentHistogram

EVERY_CLASS = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-126), 1.0, -1.5, 3.4028234663852886e38]


# the table


def test_adding_twice_to_a_row_merges():
    row = row_of(torch.tensor([1.0, 0.0]), torch.tensor([4.0, math.nan, 0.25]))
    assert row.histogram == ExponentHistogram.from_bins({-2: 1, 0: 1, 2: 1}, zeros=1, nans=1)
    assert (row.abs_max, row.abs_min) == (4.0, 0.25)


def test_rows_are_kept_apart():
    table = CountTable(CPU)
    table.add(0, torch.tensor([1.0]))
    table.add(2, torch.tensor([2.0, 4.0]))
    rows = table.take()
    assert {row: rows[row].histogram.bins for row in rows} == {0: {0: 1}, 2: {1: 1, 2: 1}}


@pytest.mark.parametrize("row", [1, 2, 3, 7, 1000])
def test_the_table_grows_to_any_row_and_keeps_what_was_counted(row):
    table = CountTable(CPU, rows=1)
    table.add(0, torch.tensor([1.0, 3.0]))
    table.add(row, torch.tensor([8.0]))
    rows = table.take()
    assert rows.keys() == {0, row}
    assert rows[0] == Row(ExponentHistogram.from_bins({0: 1, 1: 1}), 3.0, 1.0, 0, 0, 0)
    assert rows[row] == Row(ExponentHistogram.from_bins({3: 1}), 8.0, 8.0, 0, 0, 0)


def test_a_grown_table_still_has_no_smallest_element_in_its_new_rows():
    table = CountTable(CPU, rows=1)
    table.add(5, torch.tensor([0.0]))
    assert table.take()[5].abs_min == math.inf


def test_take_starts_the_table_anew():
    table = CountTable(CPU)
    add_update(table, 3, torch.ones(2), torch.ones(2) + 2.0**-12)
    row = table.take()[3]
    assert (row.stagnant_fp16, row.wanted) == (2, 2)
    assert table.take() == {}
    table.add(3, torch.tensor([0.5]))
    assert table.take() == {3: Row(ExponentHistogram(-1, (1,)), 0.5, 0.5, 0, 0, 0)}


def test_a_row_without_a_finite_nonzero_element_has_no_extremes():
    row = row_of(torch.tensor([0.0, math.inf, math.nan]))
    assert (row.abs_max, row.abs_min) == (0.0, math.inf)


def test_one_of_each_class_in_one_row():
    histogram = row_of(torch.tensor(EVERY_CLASS)).histogram
    assert (histogram.zeros, histogram.infs, histogram.nans) == (2, 2, 1)
    assert histogram.bins == {-149: 1, -126: 1, 0: 2, 127: 1}


# the loss scale


@pytest.mark.parametrize("k", [-3, 0, 1, 16, 24])
def test_rows_of_scaled_gradients_are_counted_as_if_they_had_not_been_scaled(k):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(k))
    scaled = CountTable(CPU)
    scaled.add(0, values * 2.0**k)
    plain = CountTable(CPU)
    plain.add(0, values)
    assert torch.equal(unscaled(scaled.hand_over().values(), 2.0**k), plain.hand_over().values())


def test_a_scale_between_powers_of_two_divides_the_extremes_and_moves_the_binades_by_its_floor():
    table = CountTable(CPU)
    table.add(0, torch.tensor([3.0, 768.0]))
    row = unscaled(table.hand_over().values(), 3.0)
    assert row[0, ABS_MAX : ABS_MIN + 1].to(torch.int32).view(torch.float32).tolist() == [256.0, 1.0]
    assert (row[0, :BINS].nonzero().flatten() + LOWEST).tolist() == [0, 8]


def test_what_unscaling_would_push_below_fp32_is_kept_as_its_smallest():
    table = CountTable(CPU)
    table.add(0, torch.tensor([2.0**-140, 2.0**-149]))
    assert unscaled(table.hand_over().values(), 2.0**20)[0, 0] == 2


def test_a_row_in_which_nothing_was_counted_stays_empty_when_it_is_unscaled():
    assert torch.equal(unscaled(empty_table(2, CPU), 2.0**16), empty_table(2, CPU))
