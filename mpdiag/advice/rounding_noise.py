"""How far rounding noise lies below a tensor in a format, in decibels, from the same counts that foretell what is lost.

Signal-to-quantization-noise ratio: 10 log10(sum x^2 / sum (x - rounded x)^2). A number in [2^e, 2^(e+1)) is rounded in
steps of 2^(e - stored bits), so its error is taken as uniform over one step, step^2 / 12 (Bennett 1948; Widrow and
Kollar, Quantization Noise, 2008), and its square as 2 * 4^e. With p significant bits that is 6.02 p + 7.8 dB for normal
numbers, within a decibel of real casts. Below them the step stays; what becomes zero is noise altogether.
"""

from __future__ import annotations

import math

from mpdiag.blocks import LOST_RATIO, NVFP4_BLOCK, BlockCounts
from mpdiag.formats import FloatFormat
from mpdiag.histogram import ExponentHistogram

_SQUARE = 2.0  # mean of x^2 over [1, 2): 7/3 where numbers are spread alike, 1.9 in the tail of a normal density
_STEP = 1 / 12  # mean squared error of rounding to steps of 1
_CLIP = 36 * (1 / 16) ** 2 / 3  # of a block's largest, 6: its E4M3 scale is off by 1/16 at most, taken as uniform
_NOISE = {1: 1.0, 2: 0.25, 3: 0.25, 4: 0.25}  # E2M1's steps squared, by ratio: 1 in [2, 4), 0.5 below
_TOP_SQUARE, _TOP_STEP = (6**3 - 4**3) / 3 / 2, 4.0  # [4, 6], E2M1's last two numbers: mean of x^2, step squared


def noise_db(histogram: ExponentHistogram, fmt: FloatFormat, log2_scale: int = 0) -> float | None:
    """The ratio in dB for a tensor times 2^log2_scale, without what overflows; None where nothing is left."""
    top = min(histogram.highest + log2_scale, fmt.max_exponent)
    signal = noise = 0.0
    for exponent, count in histogram.scaled(log2_scale).bins.items():
        if exponent > top:
            continue
        square = _SQUARE * 4.0 ** (exponent - top)
        step = max(exponent, fmt.min_exponent) - fmt.mantissa_bits
        flushed = exponent < fmt.min_subnormal_exponent - 1
        signal += count * square
        noise += count * (square if flushed else _STEP * 4.0 ** (step - top))
    return _decibels(signal, noise)


def mx_noise_db(counts: BlockCounts, fmt: FloatFormat) -> float | None:
    """The same for MX blocks of `fmt`, were all blocks of one size."""
    scaled = ExponentHistogram.from_bins({fmt.max_exponent - d: n for d, n in enumerate(counts.distances) if n})
    return noise_db(scaled, fmt)


def nvfp4_noise_db(counts: BlockCounts) -> float | None:
    """The same for NVFP4, rounded to nearest, without blocks that vanish; one element of each block is its largest.

    Too low where blocks hold few numbers, or equal ones: a block's largest is hardly rounded, and these all are.
    """
    top, *below = counts.ratios or (0,)
    largest = min(top, math.ceil(counts.elements / NVFP4_BLOCK))
    signal = largest * 36 + (top - largest) * _TOP_SQUARE
    noise = largest * _CLIP + (top - largest) * _TOP_STEP * _STEP
    for ratio, count in enumerate(below, start=1):
        square = 16 * _SQUARE * 4.0**-ratio
        signal += count * square
        noise += count * (square if ratio >= LOST_RATIO else _NOISE[ratio] * _STEP)
    return _decibels(signal, noise)


def _decibels(signal: float, noise: float) -> float | None:
    return 10 * math.log10(signal / noise) if signal and noise else None
