"""Number formats, derived from their bit widths alone.

Limits are never read from `torch.finfo` (it lacks the smallest subnormal) nor from a cast (casts to FP8
changed between torch releases). Rounding is to nearest, ties to even (IEEE 754-2019, 4.3.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: sign, `exponent_bits`, `mantissa_bits` (stored, without the leading one).

    `finite_only` formats (OCP E4M3, "FN") have no infinity: the top exponent is used for numbers and only its
    all-ones mantissa is NaN (OCP 8-bit Floating Point Specification 1.0, table 1).
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    finite_only: bool = False

    @property
    def bias(self) -> int:
        """The exponent bias, 2^(exponent_bits-1) - 1."""
        return int(2 ** (self.exponent_bits - 1) - 1)

    @property
    def max_exponent(self) -> int:
        """log2 of the largest power of two that is finite."""
        reserved = 1 if self.finite_only else 2
        return int(2**self.exponent_bits) - reserved - self.bias

    @property
    def max(self) -> float:
        """The largest finite magnitude (FP16: 65504)."""
        missing = 2 if self.finite_only else 1
        return math.ldexp(2 - missing * 2.0**-self.mantissa_bits, self.max_exponent)

    @property
    def min_exponent(self) -> int:
        """log2 of the smallest normal magnitude (FP16: -14)."""
        return 1 - self.bias

    @property
    def min_normal(self) -> float:
        """The smallest magnitude with all its significant bits (FP16: 2^-14)."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def min_subnormal_exponent(self) -> int:
        """log2 of the smallest non-zero magnitude (FP16: -24)."""
        return self.min_exponent - self.mantissa_bits

    @property
    def min_subnormal(self) -> float:
        """The smallest non-zero magnitude (FP16: 2^-24)."""
        return math.ldexp(1.0, self.min_subnormal_exponent)

    @property
    def rounds_to_zero(self) -> float:
        """The largest magnitude that rounds to zero, the tie included (FP16: 2^-25, not 2^-24)."""
        return self.min_subnormal / 2

    @property
    def overflows_at(self) -> float:
        """Half a unit in the last place above `max` (FP16: 65520, which already becomes infinite).

        Whether the point itself overflows depends on the last bit of `max`: see `tie_overflows`.
        """
        return self.max + math.ldexp(1.0, self.max_exponent - self.mantissa_bits - 1)

    @property
    def tie_overflows(self) -> bool:
        """True when `overflows_at` itself rounds away from `max`: the last bit of `max` is one (not in E4M3)."""
        return not self.finite_only

    @property
    def octaves(self) -> float:
        """Width of the range from `min_subnormal` to `max` in powers of two (FP16: 40.0)."""
        return math.log2(self.max) - self.min_subnormal_exponent

    def overflows(self, magnitude: float) -> bool:
        """Whether a magnitude rounds beyond `max`."""
        return magnitude > self.overflows_at or (self.tie_overflows and magnitude == self.overflows_at)

    def round(self, values: NDArray[np.float64] | Any) -> NDArray[np.float64]:
        """Each value rounded to this format, held as float64; beyond `max` becomes infinite (E4M3: NaN).

        Any shape. float64 has more than twice the bits of every format here, so each step is exact.
        """
        import numpy as np

        with np.errstate(invalid="ignore", over="ignore"):
            wide = np.asarray(values, dtype=np.float64)
            _, exponent = np.frexp(wide)  # |x| in [0.5, 1) * 2^exponent: floor(log2|x|) is exponent - 1
            unit = np.maximum(exponent - 1, self.min_exponent) - self.mantissa_bits
            rounded = np.ldexp(np.rint(np.ldexp(wide, -unit)), unit)
            beyond = (np.abs(rounded) > self.max) | np.isinf(wide)
            lost = np.nan if self.finite_only else np.copysign(np.inf, wide)
            return np.asarray(np.where(beyond, lost, np.where(np.isnan(wide), wide, rounded)))


FP32 = FloatFormat("FP32", exponent_bits=8, mantissa_bits=23)
TF32 = FloatFormat("TF32", exponent_bits=8, mantissa_bits=10)
BF16 = FloatFormat("BF16", exponent_bits=8, mantissa_bits=7)
FP16 = FloatFormat("FP16", exponent_bits=5, mantissa_bits=10)
E4M3 = FloatFormat("E4M3", exponent_bits=4, mantissa_bits=3, finite_only=True)
E5M2 = FloatFormat("E5M2", exponent_bits=5, mantissa_bits=2)

FORMATS = {each.name: each for each in (FP32, TF32, BF16, FP16, E4M3, E5M2)}
