"""The exponent histogram: its laws, and its predictions against what torch's casts do."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.formats import BF16, E4M3, E5M2, FORMATS, FP16, FloatFormat
from mpdiag.histogram import ExponentHistogram, RangeUsage

few = st.integers(0, 2**40)
histograms = st.builds(
    ExponentHistogram,
    lowest=st.integers(-300, 300),
    counts=st.lists(few, max_size=12).map(tuple),
    zeros=few,
    infs=few,
    nans=few,
)
shifts = st.integers(-400, 400)
formats = st.sampled_from(list(FORMATS.values()))
FP32_FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)
EMPTY = ExponentHistogram()


def of_array(values: np.ndarray) -> ExponentHistogram:
    """As ExponentHistogram.of, for millions of values."""
    finite = np.isfinite(values) & (values != 0)
    exponents = np.frexp(values[finite].astype(np.float64))[1] - 1
    bins = dict(zip(*(part.tolist() for part in np.unique(exponents, return_counts=True)), strict=True))
    return ExponentHistogram.from_bins(
        bins, int((values == 0).sum()), int(np.isinf(values).sum()), int(np.isnan(values).sum())
    )


def spread(count: int, seed: int, low: int = -50, high: int = 20) -> np.ndarray:
    """FP32 gradients with exponents evenly over low..high, random signs and mantissas."""
    rng = np.random.default_rng(seed)
    values = np.ldexp(1 + rng.random(count), rng.integers(low, high, count, endpoint=True))
    return (values * rng.choice([-1, 1], count)).astype(np.float32)


# construction


def test_empty_ends_are_trimmed_on_construction():
    assert ExponentHistogram(-5, (0, 0, 3, 0, 2, 0)) == ExponentHistogram(-3, (3, 0, 2))
    assert ExponentHistogram(-5, (0, 0, 3, 0, 2, 0)).lowest == -3


def test_a_histogram_without_occupied_bins_is_the_empty_one():
    assert ExponentHistogram(17, (0, 0, 0)) == EMPTY
    assert (EMPTY.lowest, EMPTY.highest, EMPTY.counts) == (0, 0, ())


def test_equal_contents_hash_alike():
    assert hash(ExponentHistogram(0, (0, 1))) == hash(ExponentHistogram(1, (1, 0)))


def test_of_counts_each_value_in_its_binade():
    values = [1.0, -1.5, math.nextafter(2.0, 0), 2.0, -0.5, 0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324]
    histogram = ExponentHistogram.of(values)
    assert histogram.bins == {-1074: 1, -1: 1, 0: 3, 1: 1}
    assert (histogram.zeros, histogram.infs, histogram.nans, histogram.total) == (2, 2, 1, 11)


@pytest.mark.parametrize("exponent", [-149, -126, -25, -24, -14, 0, 15, 127])
def test_the_value_just_below_a_power_of_two_counts_one_binade_lower(exponent):
    power = 2.0**exponent
    assert ExponentHistogram.of([power]).bins == {exponent: 1}
    assert ExponentHistogram.of([math.nextafter(power, 0)]).bins == {exponent - 1: 1}


@given(histograms)
def test_from_bins_inverts_bins(histogram):
    h = histogram
    assert ExponentHistogram.from_bins(h.bins, h.zeros, h.infs, h.nans) == h


@given(histograms)
def test_the_first_and_last_kept_bin_are_occupied(histogram):
    if histogram.counts:
        assert histogram.counts[0] > 0
        assert histogram.counts[-1] > 0
        assert (min(histogram.bins), max(histogram.bins)) == (histogram.lowest, histogram.highest)


# laws


@given(histograms, histograms)
def test_merging_is_commutative(a, b):
    assert a + b == b + a


@given(histograms, histograms, histograms)
def test_merging_is_associative(a, b, c):
    assert (a + b) + c == a + (b + c)


@given(histograms)
def test_the_empty_histogram_is_the_identity_of_merging(a):
    assert a + EMPTY == EMPTY + a == a


@given(histograms, histograms)
def test_merging_adds_the_totals(a, b):
    merged = a + b
    assert merged.total == a.total + b.total
    assert merged.finite_nonzero == a.finite_nonzero + b.finite_nonzero


@given(histograms, shifts, shifts)
def test_scaling_twice_is_scaling_by_the_sum(a, i, j):
    assert a.scaled(i).scaled(j) == a.scaled(i + j)


@given(histograms, histograms, shifts)
def test_scaling_distributes_over_merging(a, b, k):
    assert (a + b).scaled(k) == a.scaled(k) + b.scaled(k)


@given(histograms, shifts)
def test_scaling_keeps_every_total(a, k):
    scaled = a.scaled(k)
    assert (scaled.total, scaled.zeros, scaled.infs, scaled.nans) == (a.total, a.zeros, a.infs, a.nans)
    assert scaled.counts == a.counts


@given(st.lists(FP32_FLOATS), st.lists(FP32_FLOATS))
def test_counting_two_lists_is_merging_their_histograms(a, b):
    assert ExponentHistogram.of(a + b) == ExponentHistogram.of(a) + ExponentHistogram.of(b)


@given(st.lists(FP32_FLOATS))
def test_every_value_is_counted_once(values):
    assert ExponentHistogram.of(values).total == len(values)


@given(st.lists(st.floats(2.0**-60, 2.0**60, width=32) | st.just(0.0)), st.integers(-60, 60))
def test_the_histogram_of_scaled_values_is_the_scaled_histogram(values, k):
    # 2^-60..2^60 times 2^-60..2^60 stays inside FP32's normal range
    products = (np.array(values, dtype=np.float32) * np.float32(2.0**k)).tolist()
    assert ExponentHistogram.of(products) == ExponentHistogram.of(values).scaled(k)


@given(histograms, formats, shifts)
def test_shares_are_fractions_that_sum_to_one(a, fmt, k):
    usage = a.usage(fmt, k)
    shares = (usage.underflow, usage.subnormal, usage.normal, usage.overflow)
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) == (pytest.approx(1, abs=1e-12) if a.finite_nonzero else 0)


@given(histograms, formats, shifts)
def test_usage_at_a_scale_is_usage_of_the_scaled_histogram(a, fmt, k):
    assert a.usage(fmt, k) == a.scaled(k).usage(fmt)
    assert a.underflows(fmt, k) == a.scaled(k).underflows(fmt)
    assert a.overflows(fmt, k) == a.scaled(k).overflows(fmt)


@given(histograms, formats, shifts)
def test_a_larger_scale_never_underflows_more_nor_overflows_less(a, fmt, k):
    assert a.underflows(fmt, k + 1) <= a.underflows(fmt, k)
    assert a.overflows(fmt, k + 1) >= a.overflows(fmt, k)
    assert a.energy_lost(fmt, k + 1) <= a.energy_lost(fmt, k)


@given(histograms, shifts)
def test_below_and_the_rest_make_the_whole(a, e):
    assert a.below(e) == sum(count for exponent, count in a.bins.items() if exponent < e)


# concrete shares


def test_usage_of_one_value_in_each_class_of_fp16():
    values = [2.0**-26, 1.01 * 2.0**-25, 2.0**-15, 2.0**-14, 65504.0, 65536.0, 2.0**20, 3 * 2.0**-28]
    assert ExponentHistogram.of(values).usage(FP16) == RangeUsage(2 / 8, 2 / 8, 2 / 8, 2 / 8)


def test_usage_ignores_zeros_infinities_and_nans():
    histogram = ExponentHistogram.of([1.0, 2.0**-30, 0.0, 0.0, math.inf, math.nan])
    assert histogram.usage(FP16) == RangeUsage(0.5, 0.0, 0.5, 0.0)


def test_usage_of_nothing_is_all_zero():
    assert ExponentHistogram.of([0.0, math.nan]).usage(FP16) == RangeUsage(0.0, 0.0, 0.0, 0.0)


def test_the_exact_tie_is_counted_as_surviving():
    assert ExponentHistogram.of([2.0**-25]).underflows(FP16) == 0
    assert torch.tensor(2.0**-25).half().item() == 0.0


# the oracle: what torch's cast does


@pytest.mark.parametrize("log2_scale", [0, 8, 16, 24])
def test_predicted_fp16_underflow_is_exactly_what_half_does(log2_scale):
    values = spread(2_000_000, seed=log2_scale)
    scaled = torch.from_numpy(values) * 2.0**log2_scale
    at_tie = int((scaled.abs() == FP16.rounds_to_zero).sum())
    flushed = int(((scaled.half() == 0) & (scaled != 0)).sum())
    assert at_tie == 0  # none among these: the prediction has no excuse
    assert flushed > 20_000
    assert of_array(values).underflows(FP16, log2_scale) == flushed


@pytest.mark.parametrize("log2_scale", [0, 8, 16, 24])
def test_predicted_underflow_is_short_by_the_exact_ties_only(log2_scale):
    values = np.concatenate([spread(100_000, seed=9), np.full(1234, 2.0 ** (-25 - log2_scale), dtype=np.float32)])
    scaled = torch.from_numpy(values) * 2.0**log2_scale
    flushed = int(((scaled.half() == 0) & (scaled != 0)).sum())
    assert of_array(values).underflows(FP16, log2_scale) == flushed - 1234


@pytest.mark.parametrize("log2_scale", [0, 8, 16, 24])
def test_predicted_fp16_overflow_is_short_by_the_sliver_from_65520_to_65536_only(log2_scale):
    values = spread(4_000_000, seed=log2_scale, low=10 - log2_scale, high=20 - log2_scale)
    scaled = torch.from_numpy(values) * 2.0**log2_scale
    infinite = int(scaled.half().isinf().sum())
    sliver = int(((scaled.abs() >= 65520) & (scaled.abs() < 65536)).sum())
    assert sliver > 10  # 2^-12 of one binade in eleven: about 89
    assert of_array(values).overflows(FP16, log2_scale) == infinite - sliver


@pytest.mark.parametrize("log2_scale", [0, 8, 16, 24])
def test_predicted_fp16_subnormals_are_short_by_the_round_up_to_normal_only(log2_scale):
    values = spread(2_000_000, seed=3 + log2_scale)
    scaled = torch.from_numpy(values) * 2.0**log2_scale
    half = scaled.half()
    subnormal = int(((half != 0) & (half.abs() < 2.0**-14)).sum())
    risen = int(((half.abs() == 2.0**-14) & (scaled.abs() < 2.0**-14)).sum())
    usage = of_array(values).usage(FP16, log2_scale)
    assert round(usage.subnormal * len(values)) == subnormal + risen


@pytest.mark.parametrize("fmt", [E4M3, E5M2, BF16], ids=lambda fmt: fmt.name)
def test_predicted_underflow_of_other_formats_is_what_their_casts_do(fmt):
    dtype = {"E4M3": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2, "BF16": torch.bfloat16}[fmt.name]
    low = fmt.min_subnormal_exponent
    values = spread(1_000_000, seed=5, low=low - 8, high=low + 8)
    values = values[np.abs(values) != fmt.rounds_to_zero]
    tensor = torch.from_numpy(values)
    flushed = int(((tensor.to(dtype).float() == 0) & (tensor != 0)).sum())
    assert flushed > 100_000
    assert of_array(values).underflows(fmt) == flushed


@pytest.mark.parametrize(("fmt", "top"), [(E4M3, 512.0), (E5M2, 65536.0)], ids=["E4M3", "E5M2"])
def test_predicted_fp8_overflow_is_short_by_what_lies_between_the_tie_and_the_next_power_of_two(fmt, top):
    values = spread(1_000_000, seed=6, low=fmt.max_exponent - 3, high=fmt.max_exponent + 3)
    size = np.abs(values.astype(np.float64))
    beyond = int((~np.isfinite(fmt.round(values))).sum())
    between = int(((size < top) & ~np.isfinite(fmt.round(values))).sum())
    assert between > 1000
    assert of_array(values).overflows(fmt) == beyond - between


# energy


def energy_in_float64(values: np.ndarray, fmt: FloatFormat, log2_scale: int) -> float:
    """The share of the squared norm that a cast after scaling turns to zero, from the values themselves."""
    wide = values.astype(np.float64)
    lost = fmt.round(np.ldexp(wide, log2_scale)) == 0
    return float((wide[lost] ** 2).sum() / (wide**2).sum())


@pytest.mark.parametrize("log2_scale", [0, 8, 16])
def test_energy_lost_is_the_direct_sum_of_squares_where_each_binade_is_evenly_filled(log2_scale):
    # lost part 2^-12..2^-1 of the whole: exponents from the tie's 6 below to 6 above it
    values = spread(2_000_000, seed=8, low=-31 - log2_scale, high=-20 - log2_scale)
    direct = energy_in_float64(values, FP16, log2_scale)
    assert 1e-5 < direct < 1e-2
    assert of_array(values).energy_lost(FP16, log2_scale) == pytest.approx(direct, rel=0.01)


@given(
    st.lists(st.floats(2.0**-40, 2.0**10, width=32), min_size=1).filter(lambda x: 2.0**-25 not in x),
)
def test_energy_lost_is_within_a_factor_four_of_the_direct_sum_whatever_the_spread(values):
    # a binade weighs 4^e for squares between 4^e and 4^(e+1): a quotient is off by less than 4 in its odds
    array = np.array(values, dtype=np.float32)
    direct, estimate = energy_in_float64(array, FP16, 0), of_array(array).energy_lost(FP16)
    if direct in (0, 1) or estimate in (0, 1):
        assert direct == pytest.approx(estimate, abs=1e-12)
    else:
        odds = (estimate / (1 - estimate)) / (direct / (1 - direct))
        assert 0.25 * (1 - 1e-9) <= odds <= 4 * (1 + 1e-9)


def test_ninety_nine_percent_of_the_elements_may_carry_a_millionth_of_the_energy():
    histogram = ExponentHistogram.from_bins({-26: 99, -15: 1})
    assert histogram.usage(FP16).underflow == 0.99
    assert histogram.energy_lost(FP16) == pytest.approx(99 * 4.0**-11 / (1 + 99 * 4.0**-11), rel=1e-12)


def test_nothing_counted_loses_no_energy():
    assert ExponentHistogram.of([0.0, math.inf]).energy_lost(FP16) == 0.0


def test_all_below_the_tie_loses_all_the_energy():
    assert ExponentHistogram.of([2.0**-30, 2.0**-40]).energy_lost(FP16) == 1.0


@given(histograms, formats, shifts)
def test_energy_lost_is_a_fraction(a, fmt, k):
    assert 0 <= a.energy_lost(fmt, k) <= 1


def test_energy_lost_survives_exponents_whose_squares_exceed_a_double():
    assert ExponentHistogram.from_bins({-1074: 5, 1000: 1}).energy_lost(FP16) == 0.0


def test_abs_sum_puts_each_element_in_the_middle_of_its_binade():
    assert ExponentHistogram.from_bins({0: 2, 3: 1, -1: 4}, zeros=7, infs=1).abs_sum == 3.0 + 12.0 + 3.0


def test_abs_sum_is_near_the_true_sum_of_evenly_filled_binades():
    values = spread(1_000_000, seed=11, low=-5, high=5)
    assert of_array(values).abs_sum == pytest.approx(float(np.abs(values.astype(np.float64)).sum()), rel=2e-3)


# the house rule


def test_the_histogram_needs_no_torch():
    script = "import sys, mpdiag.histogram; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_torch_free_check_can_fail():
    script = "import sys, torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
