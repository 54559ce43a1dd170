"""How often each exponent occurs in a tensor.

A loss scale of 2^k moves every gradient by exactly k binades, so the histogram of a scaled tensor is the same
histogram, shifted: `histogram(x * 2**k) == histogram(x).scaled(k)` (away from FP32's own limits). One FP32 run
answers every power-of-two scale and every format, in integer arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mpdiag.formats import FloatFormat


@dataclass(frozen=True)
class RangeUsage:
    """Where a tensor lies in a format: shares (0..1) of its finite non-zero elements; they add up to 1.

    underflow: become zero. subnormal: survive with fewer bits. normal: keep all bits. overflow: become infinite.
    """

    underflow: float
    subnormal: float
    normal: float
    overflow: float


@dataclass(frozen=True)
class ExponentHistogram:
    """Element counts by binade: `counts[i]` elements have floor(log2|x|) == lowest + i.

    Zeros, infinities and NaNs are counted apart. Empty ends are trimmed on construction, so equal contents are
    equal objects.
    """

    lowest: int = 0
    counts: tuple[int, ...] = ()
    zeros: int = 0
    infs: int = 0
    nans: int = 0

    def __post_init__(self) -> None:
        occupied = [i for i, count in enumerate(self.counts) if count]
        first, last = (occupied[0], occupied[-1] + 1) if occupied else (0, 0)
        object.__setattr__(self, "lowest", self.lowest + first if occupied else 0)
        object.__setattr__(self, "counts", tuple(int(c) for c in self.counts[first:last]))

    @classmethod
    def of(cls, values: Iterable[float]) -> ExponentHistogram:
        """Count plain numbers one by one; the slow reference for what the device counts."""
        bins: dict[int, int] = {}
        zeros = infs = nans = 0
        for value in values:
            if value == 0:
                zeros += 1
            elif math.isnan(value):
                nans += 1
            elif math.isinf(value):
                infs += 1
            else:
                exponent = math.frexp(value)[1] - 1
                bins[exponent] = bins.get(exponent, 0) + 1
        return cls.from_bins(bins, zeros, infs, nans)

    @classmethod
    def from_bins(cls, bins: dict[int, int], zeros: int = 0, infs: int = 0, nans: int = 0) -> ExponentHistogram:
        """Build from {exponent: count}."""
        if not bins:
            return cls(0, (), zeros, infs, nans)
        lowest, highest = min(bins), max(bins)
        return cls(lowest, tuple(bins.get(e, 0) for e in range(lowest, highest + 1)), zeros, infs, nans)

    @property
    def bins(self) -> dict[int, int]:
        """{exponent: count} of the occupied binades, lowest first."""
        return {self.lowest + i: count for i, count in enumerate(self.counts) if count}

    @property
    def finite_nonzero(self) -> int:
        """The denominator of every share: elements that are neither zero, infinite nor NaN."""
        return sum(self.counts)

    @property
    def total(self) -> int:
        """All elements counted."""
        return self.finite_nonzero + self.zeros + self.infs + self.nans

    @property
    def highest(self) -> int:
        """The exponent of the last occupied binade; 0 when none is occupied."""
        return self.lowest + len(self.counts) - 1 if self.counts else 0

    def __add__(self, other: ExponentHistogram) -> ExponentHistogram:
        bins = self.bins
        for exponent, count in other.bins.items():
            bins[exponent] = bins.get(exponent, 0) + count
        return self.from_bins(bins, self.zeros + other.zeros, self.infs + other.infs, self.nans + other.nans)

    def scaled(self, log2_factor: int) -> ExponentHistogram:
        """The histogram of the same elements times 2^log2_factor."""
        return ExponentHistogram(self.lowest + log2_factor, self.counts, self.zeros, self.infs, self.nans)

    def from_exponent(self, lowest: int) -> ExponentHistogram:
        """Only the binades from `lowest` upwards; zeros, infinities and NaNs are left out."""
        return self.from_bins({e: count for e, count in self.bins.items() if e >= lowest})

    def below(self, exponent: int) -> int:
        """How many finite non-zero elements have floor(log2|x|) < exponent."""
        return sum(self.counts[: max(0, exponent - self.lowest)])

    def underflows(self, fmt: FloatFormat, log2_scale: int = 0) -> int:
        """How many elements times 2^log2_scale become zero in `fmt`.

        Exact but for elements that sit precisely on the tie (FP16: 2^-25), which this counts as surviving
        because the rest of their binade does.
        """
        return self.below(fmt.min_subnormal_exponent - 1 - log2_scale)

    def overflows(self, fmt: FloatFormat, log2_scale: int = 0) -> int:
        """How many elements times 2^log2_scale lie in binades wholly above `fmt`.

        Elements between `fmt.overflows_at` and the next power of two (FP16: 65520..65536) share a binade with
        finite values and are not counted; `TensorTable.abs_max` tells whether there are any.
        """
        return self.finite_nonzero - self.below(fmt.max_exponent + 1 - log2_scale)

    def usage(self, fmt: FloatFormat, log2_scale: int = 0) -> RangeUsage:
        """Shares of the finite non-zero elements, times 2^log2_scale, by what `fmt` does to them."""
        total = self.finite_nonzero
        if total == 0:
            return RangeUsage(0.0, 0.0, 0.0, 0.0)
        underflow = self.underflows(fmt, log2_scale)
        small = self.below(fmt.min_exponent - log2_scale)
        overflow = self.overflows(fmt, log2_scale)
        return RangeUsage(
            underflow / total,
            (small - underflow) / total,
            (total - small - overflow) / total,
            overflow / total,
        )

    def energy_lost(self, fmt: FloatFormat, log2_scale: int = 0) -> float:
        """The share of the squared norm carried by elements that become zero in `fmt`, 0..1.

        Each binade is weighted with 4^e, as if its elements were spread alike in it; their common factor
        cancels. 99 % of the elements may carry 1e-6 of the norm, so this stands beside every count.
        """
        if not self.counts:
            return 0.0
        weights = {e: count * 4.0 ** (e - self.highest) for e, count in self.bins.items()}
        limit = fmt.min_subnormal_exponent - 1 - log2_scale
        return sum(w for e, w in weights.items() if e < limit) / sum(weights.values())

    @property
    def abs_sum(self) -> float:
        """An estimate of sum |x| with each element at the mean of a uniform binade, 1.5 * 2^e."""
        return sum(count * 1.5 * 2.0**e for e, count in self.bins.items())
