"""Counting exponents on the device, against the slow reference and against the bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counting_samples import FP32_VALUES, quick, random_bits, row_of
from mpdiag.capture import portable
from mpdiag.capture.columns import BINS, CODES, INFS, LOWEST, NANS, ZEROS
from mpdiag.capture.portable import codes, count_codes, magnitude_bits
from mpdiag.histogram import ExponentHistogram


def counted_on_cpu(bits: torch.Tensor) -> torch.Tensor:
    """The quick path's counts of FP32 bit patterns."""
    return portable.count(bits.view(torch.float32))[0]


def by_numpy(values: np.ndarray) -> ExponentHistogram:
    """An independent count of millions: numpy's frexp, not bits."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = values.astype(np.float64)
    finite = np.isfinite(wide) & (wide != 0)
    found = np.unique(np.frexp(wide[finite])[1] - 1, return_counts=True)
    bins = dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
    return ExponentHistogram.from_bins(
        bins, int((wide == 0).sum()), int(np.isinf(wide).sum()), int(np.isnan(wide).sum())
    )


# the reference


@quick
@given(FP32_VALUES.filter(len))
def test_counts_are_those_of_the_slow_reference(values):
    assert row_of(torch.tensor(values)).histogram == ExponentHistogram.of(values)


@quick
@given(FP32_VALUES.filter(lambda values: any(math.isfinite(v) and v for v in values)))
def test_the_extremes_are_the_exact_finite_nonzero_magnitudes(values):
    row = row_of(torch.tensor(values))
    magnitudes = [abs(v) for v in values if math.isfinite(v) and v]
    assert (row.abs_max, row.abs_min) == (max(magnitudes), min(magnitudes))


@quick
@given(st.lists(st.floats(width=16), min_size=1, max_size=50))
def test_fp16_values_are_counted_as_they_are(values):
    row = row_of(torch.tensor(values, dtype=torch.float16))
    assert row.histogram == ExponentHistogram.of(values)


@quick
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50))
def test_bf16_values_are_counted_as_they_are(patterns):
    tensor = torch.tensor(np.array(patterns, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    assert row_of(tensor).histogram == ExponentHistogram.of(tensor.double().tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_is_counted_in_its_binade(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    histogram = row_of(every).histogram
    assert histogram == by_numpy(every.double().numpy())
    infinities_and_nans = {torch.float16: (2, 2 * 1023), torch.bfloat16: (2, 2 * 127)}
    assert (histogram.infs, histogram.nans) == infinities_and_nans[dtype]


def test_four_million_random_bit_patterns_are_counted_in_their_binades():
    bits = random_bits(4_000_000, seed=0)
    assert row_of(bits.view(torch.float32)).histogram == by_numpy(bits.numpy().view(np.float32))


def test_two_million_subnormals_are_counted_in_their_binades():
    bits = random_bits(2_000_000, seed=1) & 0x007FFFFF  # an exponent field of zero, all mantissas
    bits = bits >> (random_bits(2_000_000, seed=2) & 31).clamp(max=22)  # down to the last one, 2^-149
    histogram = row_of(bits.view(torch.float32)).histogram
    assert histogram == by_numpy(bits.numpy().view(np.float32))
    assert (histogram.lowest, histogram.highest) == (-149, -127)


@pytest.mark.parametrize("exponent", range(-149, 128))
def test_a_power_of_two_and_its_lower_neighbour_lie_in_neighbouring_binades(exponent):
    power = torch.tensor([2.0**exponent])
    below = torch.nextafter(power, torch.zeros(1))
    assert row_of(power).histogram.bins == {exponent: 1}
    below_bins = row_of(below).histogram.bins
    assert below_bins == ({exponent - 1: 1} if exponent > -149 else {})


def test_codes_name_each_class():
    values = torch.tensor([2.0**-149, 2.0**-127, 2.0**-126, 1.0, 3.4e38, math.inf, -math.inf, 0.0, -0.0, math.nan])
    expected = [0, 22, 23, 149, 276, INFS, INFS, ZEROS, ZEROS, NANS]
    assert codes(magnitude_bits(values)).tolist() == expected
    assert (LOWEST, BINS, CODES) == (-149, 277, 280)


@pytest.mark.parametrize("pattern", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -0x400000, -0x7FFFFF])
def test_quiet_and_signalling_nans_of_either_sign_count_as_nan(pattern):
    tensor = torch.tensor([pattern], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(tensor).all()
    assert row_of(tensor).histogram == ExponentHistogram(nans=1)


# the CPU's quick path


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_path_is_bit_equal_to_codes_and_bincount(seed):
    bits = random_bits(1_000_000, seed) & 0x7FFFFFFF
    assert torch.equal(counted_on_cpu(bits), torch.bincount(codes(bits), minlength=CODES))


@quick
@given(FP32_VALUES)
def test_the_quick_path_is_bit_equal_on_chosen_values(values):
    bits = magnitude_bits(torch.tensor(values, dtype=torch.float32))
    counted = counted_on_cpu(bits)
    assert counted.dtype == torch.int64
    assert torch.equal(counted, torch.bincount(codes(bits), minlength=CODES))


def test_the_portable_paths_of_a_gpu_agree_with_the_quick_path():
    bits = random_bits(500_000, seed=4) & 0x7FFFFFFF
    bits[:3] = torch.tensor([0, 0x7F800000, 0x7FC00000])
    by_histc = torch.histc(codes(bits).float(), bins=CODES, min=0, max=CODES).long()  # integers only on a GPU
    torch.use_deterministic_algorithms(True)
    try:
        by_scatter = count_codes(bits)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(counted_on_cpu(bits), by_histc)
    assert torch.equal(counted_on_cpu(bits), by_scatter)
