"""Number formats: exact limits, and rounding against torch's and ml_dtypes' own casts."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.formats import BF16, E4M3, E5M2, FORMATS, FP16, FP32, TF32, FloatFormat

# name: (format, bias, max, log2 min normal, log2 min subnormal, log2 spacing at 1, overflows at)
LIMITS = {
    "FP32": (FP32, 127, 3.4028234663852886e38, -126, -149, -23, 2.0**128 - 2.0**103),
    "TF32": (TF32, 127, 3.4011621342146535e38, -126, -136, -10, 2.0**128 - 2.0**116),
    "BF16": (BF16, 127, 3.3895313892515355e38, -126, -133, -7, 2.0**128 - 2.0**119),
    "FP16": (FP16, 15, 65504.0, -14, -24, -10, 65520.0),
    "E4M3": (E4M3, 7, 448.0, -6, -9, -3, 464.0),
    "E5M2": (E5M2, 15, 57344.0, -14, -16, -2, 61440.0),
}
every_format = pytest.mark.parametrize("name", LIMITS)

TORCH = {"FP16": torch.float16, "BF16": torch.bfloat16, "FP32": torch.float32, "E5M2": torch.float8_e5m2}
ML_DTYPES = {
    "FP16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP32": np.float32,
    "E4M3": ml_dtypes.float8_e4m3fn,
    "E5M2": ml_dtypes.float8_e5m2,
}
E4M3_BEYOND = 464.0  # the tie above 448: it goes back to 448, whose last bit is zero


def random_bits(count: int, seed: int) -> np.ndarray:
    """FP32 numbers from random bit patterns: every exponent alike, subnormals, inf and NaN among them."""
    bits = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    return bits.view(np.float32)


def within_reach(fmt: FloatFormat, count: int, seed: int) -> np.ndarray:
    """FP32 numbers of random sign and mantissa, exponents evenly from below a format's tie to above its max."""
    rng = np.random.default_rng(seed)
    low, high = max(fmt.min_subnormal_exponent - 3, -149), min(fmt.max_exponent + 2, 127)
    exponents = rng.integers(low, high, count, endpoint=True)
    signs = rng.choice([-1.0, 1.0], count)
    with np.errstate(over="ignore"):  # the last FP32 binade may round up to inf, which is a case too
        return (signs * np.ldexp(1 + rng.random(count), exponents)).astype(np.float32)


def ties_and_neighbours(fmt: FloatFormat) -> np.ndarray:
    """Numbers of a format (all of FP8, samples of the others), the tie above each, and both sides of the tie."""
    wide = np.float64 if fmt is FP32 else np.float32  # the next wider type; float64 -> FP16 in torch rounds twice
    low, high = fmt.min_subnormal_exponent, fmt.max_exponent
    mantissas = np.unique(np.linspace(0, 2**fmt.mantissa_bits - 1, 1024).astype(np.int64)).astype(np.float64)
    grid = [mantissas * fmt.min_subnormal]
    for e in range(fmt.min_exponent, high + 1, max(1, (high - low) // 64)):
        grid.append(np.ldexp(1 + mantissas / 2**fmt.mantissa_bits, e))
    below = np.concatenate(grid)
    _, exponent = np.frexp(below)
    unit = np.ldexp(1.0, np.maximum(exponent - 1, fmt.min_exponent) - fmt.mantissa_bits)
    tie = (below + unit / 2).astype(wide)
    assert (tie.astype(np.float64) == below + unit / 2).all()
    points = np.concatenate(
        [below.astype(wide), tie, np.nextafter(tie, wide(-np.inf)), np.nextafter(tie, wide(np.inf))]
    )
    return np.concatenate([points, -points])


def edges(fmt: FloatFormat) -> np.ndarray:
    """Both sides of, and exactly on, each threshold of a format."""
    wide = np.float64 if fmt is FP32 else np.float32
    named = [fmt.rounds_to_zero, fmt.min_subnormal, fmt.min_normal, fmt.max, fmt.overflows_at, 2 * fmt.min_subnormal]
    at = np.array(named, dtype=wide)
    assert (at.astype(np.float64) == named).all()
    points = np.concatenate([at, np.nextafter(at, wide(0)), np.nextafter(at, wide(np.inf))])
    return np.concatenate([points, -points, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype=wide)])


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal numbers, NaN equal to NaN, and the sign of zeros equal."""
    np.testing.assert_array_equal(ours, theirs)
    known = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours[known]), np.signbit(theirs[known]))


def cast_by_torch(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(values).to(dtype).double().numpy()


def cast_by_ml_dtypes(values: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return values.astype(dtype).astype(np.float64)


# limits


def test_formats_lists_the_six_formats_by_name():
    assert list(FORMATS) == ["FP32", "TF32", "BF16", "FP16", "E4M3", "E5M2"]
    assert all(FORMATS[name] is LIMITS[name][0] for name in LIMITS)


@every_format
def test_the_bias_is_the_standards(name):
    fmt, bias, *_ = LIMITS[name]
    assert fmt.bias == bias


@every_format
def test_the_largest_finite_magnitude_is_exact(name):
    fmt, _, largest, *_ = LIMITS[name]
    assert fmt.max == largest


@every_format
def test_the_smallest_normal_magnitude_is_exact(name):
    fmt, exponent = LIMITS[name][0], LIMITS[name][3]
    assert (fmt.min_exponent, fmt.min_normal) == (exponent, 2.0**exponent)


@every_format
def test_the_smallest_subnormal_magnitude_is_exact(name):
    fmt, exponent = LIMITS[name][0], LIMITS[name][4]
    assert (fmt.min_subnormal_exponent, fmt.min_subnormal) == (exponent, 2.0**exponent)


@every_format
def test_half_the_smallest_subnormal_rounds_to_zero(name):
    fmt, exponent = LIMITS[name][0], LIMITS[name][4]
    assert fmt.rounds_to_zero == 2.0 ** (exponent - 1)


@every_format
def test_the_overflow_threshold_is_half_a_unit_above_max(name):
    fmt, threshold = LIMITS[name][0], LIMITS[name][6]
    assert fmt.overflows_at == threshold


@every_format
def test_the_spacing_at_one_is_two_to_minus_the_mantissa_bits(name):
    fmt, spacing = LIMITS[name][0], LIMITS[name][5]
    after_one = fmt.round(np.array([1 + 2.0**spacing, 1 + 2.0**spacing * 0.49]))
    np.testing.assert_array_equal(after_one, [1 + 2.0**spacing, 1.0])


@every_format
def test_max_lies_in_the_binade_of_max_exponent(name):
    fmt = LIMITS[name][0]
    assert fmt.max_exponent == math.frexp(fmt.max)[1] - 1


@pytest.mark.parametrize(("name", "octaves"), [("FP16", 40.0), ("E5M2", 31.8), ("E4M3", 17.8), ("FP32", 277.0)])
def test_octaves_are_the_published_dynamic_ranges(name, octaves):
    assert round(FORMATS[name].octaves, 1) == octaves


@pytest.mark.parametrize("name", ["FP32", "TF32", "BF16", "FP16", "E5M2"])
def test_the_overflow_tie_of_an_ieee_format_overflows(name):
    fmt = FORMATS[name]
    assert fmt.overflows(fmt.overflows_at)
    assert not fmt.overflows(math.nextafter(fmt.overflows_at, 0))


def test_the_overflow_tie_of_e4m3_goes_back_to_448():
    assert not E4M3.overflows(464.0)
    assert E4M3.overflows(math.nextafter(464.0, math.inf))
    assert E4M3.round([464.0])[0] == 448.0


# rounding, spelled out


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (2.0**-25, 0.0),
        (math.nextafter(2.0**-25, 1), 2.0**-24),
        (1.5 * 2.0**-24, 2.0**-23),  # a tie between 1 and 2 units goes to the even 2
        (2.5 * 2.0**-24, 2.0**-23),
        (65504.0, 65504.0),
        (65519.0, 65504.0),
        (65520.0, math.inf),
        (2049.0, 2048.0),
        (2051.0, 2052.0),
        (1 + 2.0**-11, 1.0),
        (1 + 3 * 2.0**-11, 1 + 2.0**-9),
    ],
)
def test_fp16_rounds_to_nearest_with_ties_to_even(value, rounded):
    np.testing.assert_array_equal(FP16.round([value, -value]), [rounded, -rounded])


def test_a_denormal_float64_rounds_to_zero_of_its_sign():
    rounded = FP16.round([5e-324, -5e-324])
    np.testing.assert_array_equal(rounded, [0.0, 0.0])
    np.testing.assert_array_equal(np.signbit(rounded), [False, True])


def test_inf_and_nan_stay_what_they_are_in_ieee_formats():
    np.testing.assert_array_equal(BF16.round([math.inf, -math.inf, math.nan]), [math.inf, -math.inf, math.nan])


def test_a_signalling_nan_is_rounded_without_a_warning():
    signalling = np.array([0x7F800001], dtype=np.uint32).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(FP16.round(signalling)).all()


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_round_keeps_the_shape(shape):
    assert FP16.round(np.ones(shape)).shape == shape


@every_format
def test_every_threshold_rounds_to_the_side_its_name_says(name):
    fmt = FORMATS[name]
    up = lambda x: math.nextafter(x, math.inf)
    assert fmt.round([fmt.rounds_to_zero])[0] == 0
    assert fmt.round([up(fmt.rounds_to_zero)])[0] == fmt.min_subnormal
    assert fmt.round([math.nextafter(fmt.overflows_at, 0)])[0] == fmt.max
    assert not math.isfinite(fmt.round([up(fmt.overflows_at)])[0])


@given(value=st.floats(allow_nan=False, allow_infinity=False, width=64), name=st.sampled_from(sorted(LIMITS)))
def test_rounding_twice_is_rounding_once(value, name):
    fmt = FORMATS[name]
    once = fmt.round([value])
    np.testing.assert_array_equal(fmt.round(once), once)


@given(value=st.floats(min_value=0, allow_infinity=False), name=st.sampled_from(sorted(LIMITS)))
def test_overflows_says_what_round_does(value, name):
    fmt = FORMATS[name]
    assert fmt.overflows(value) == (not math.isfinite(fmt.round([value])[0]))


# against torch and ml_dtypes


@pytest.mark.parametrize("name", TORCH)
def test_round_agrees_with_torch_on_a_million_random_bit_patterns(name):
    values = random_bits(1_000_000, seed=1)
    same(FORMATS[name].round(values), cast_by_torch(values, TORCH[name]))


@pytest.mark.parametrize("name", TORCH)
def test_round_agrees_with_torch_on_a_million_values_within_reach(name):
    values = within_reach(FORMATS[name], 1_000_000, seed=2)
    same(FORMATS[name].round(values), cast_by_torch(values, TORCH[name]))


@pytest.mark.parametrize("name", TORCH)
def test_round_agrees_with_torch_on_ties_and_edges(name):
    values = np.concatenate([ties_and_neighbours(FORMATS[name]), edges(FORMATS[name])])
    same(FORMATS[name].round(values), cast_by_torch(values, TORCH[name]))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_round_agrees_with_ml_dtypes_on_a_million_random_bit_patterns(name):
    values = random_bits(1_000_000, seed=3)
    ours = FORMATS[name].round(values)
    same(ours, cast_by_ml_dtypes(values, ML_DTYPES[name]))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_round_agrees_with_ml_dtypes_on_a_million_values_within_reach(name):
    values = within_reach(FORMATS[name], 1_000_000, seed=4)
    same(FORMATS[name].round(values), cast_by_ml_dtypes(values, ML_DTYPES[name]))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_round_agrees_with_ml_dtypes_on_ties_and_edges(name):
    values = np.concatenate([ties_and_neighbours(FORMATS[name]), edges(FORMATS[name])])
    values = values[np.isfinite(values) | (name != "E4M3")]
    same(FORMATS[name].round(values), cast_by_ml_dtypes(values, ML_DTYPES[name]))


@pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 12), reason="E4M3 gave NaN before torch 2.12"
)
def test_round_agrees_with_torchs_e4m3_but_for_its_saturation():
    # torch >= 2.12 saturates: everything beyond the tie at 464, inf too, becomes 448 of its sign. ml_dtypes and we
    # say NaN there. Up to 464, and for NaN, all three agree.
    values = np.concatenate([random_bits(1_000_000, seed=5), within_reach(E4M3, 1_000_000, 6), edges(E4M3)])
    ours, theirs = E4M3.round(values), cast_by_torch(values, torch.float8_e4m3fn)
    beyond = np.abs(values) > E4M3_BEYOND
    assert 100_000 < beyond.sum() < 1_000_000
    same(ours[~beyond], theirs[~beyond])
    np.testing.assert_array_equal(theirs[beyond], np.copysign(448.0, values[beyond]))
    assert np.isnan(ours[beyond & np.isfinite(values)]).all()


def test_tf32_is_fp32_with_thirteen_bits_rounded_away():
    bits = np.random.default_rng(7).integers(0, 2**32, 1_000_000, dtype=np.uint32)
    values = bits.view(np.float32)
    wide = bits.astype(np.uint64)
    kept = (wide + 0xFFF + ((wide >> 13) & 1)) & 0xFFFFE000  # nearest even on the bits themselves
    same(
        TF32.round(values[np.isfinite(values)]),
        kept.astype(np.uint32).view(np.float32)[np.isfinite(values)].astype(np.float64),
    )


@pytest.mark.parametrize("name", ["E4M3", "E5M2"])
def test_every_code_of_an_fp8_format_rounds_to_itself(name):
    codes = np.arange(256, dtype=np.uint8).view(ML_DTYPES[name]).astype(np.float64)
    same(FORMATS[name].round(codes), codes)


def test_every_code_of_fp16_rounds_to_itself():
    codes = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float64)
    same(FP16.round(codes), codes)


def test_formats_and_round_need_no_torch():
    script = "import sys, mpdiag.formats as f; f.FP16.round([1.0]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
