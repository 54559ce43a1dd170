"""Counting exponents in torch alone, on any device: to the same integers as the kernel.

Bits decide, never log2: float32 log2 of the value just below a power of two rounds up to the next integer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from mpdiag.capture.columns import BINS, CODES, INF_BITS, INFS, NANS, ZEROS

_FIRST_NORMAL_BITS = 0x00800000
_NORMAL_SHIFT = 22  # exponent field 1 (2^-126) has code 23
_CHUNK = 1 << 19  # elements: their temporaries stay in a CPU's cache; the best of 2^15 .. 2^20 by measurement
_FEW = 1 << 17  # elements: below, the 65,536 counters of pairs cost more than they save

Bits = npt.NDArray[np.int32]
Fields = npt.NDArray[np.int64]


def magnitude_bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of |x| as FP32, int32. FP16 and BF16 widen exactly; FP64 is rounded to FP32 first."""
    return values.float().resolve_neg().view(torch.int32) & 0x7FFFFFFF


def codes(bits: torch.Tensor) -> torch.Tensor:
    """The code of each element: its binade's index, or INFS, ZEROS, NANS. int32, same shape."""
    subnormal = (bits.float().view(torch.int32) >> 23) - 127  # an integer below 2^23 is exact as a float
    code = torch.where(bits < _FIRST_NORMAL_BITS, subnormal, (bits >> 23) + _NORMAL_SHIFT)
    code = torch.where(bits == 0, ZEROS, code)
    return torch.where(bits > INF_BITS, NANS, code)


def count(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int64[CODES] counts of a flat tensor, and the bits of its largest and smallest finite non-zero magnitude.

    All on the tensor's device, without synchronizing on a GPU; 0 and infinity's bits where there is no such element.
    """
    if values.device.type == "cpu":
        return _count_on_cpu(values)
    bits = magnitude_bits(values)
    finite = torch.where(bits < INF_BITS, bits, 0)
    nonzero = torch.where(bits > 0, bits, INF_BITS)
    return count_codes(bits), finite.amax(), nonzero.amin().clamp(max=INF_BITS)


def count_codes(bits: torch.Tensor) -> torch.Tensor:
    """int64[CODES] counts of `codes(bits)` on a device other than the CPU."""
    if torch.are_deterministic_algorithms_enabled():  # histc refuses to run then, though integers cannot differ
        ones = torch.ones((), dtype=torch.int64, device=bits.device).expand(bits.numel())
        return torch.zeros(CODES, dtype=torch.int64, device=bits.device).scatter_add_(0, codes(bits).long(), ones)
    # with min 0 and max == bins each integer falls into the bin of its own value
    return torch.histc(codes(bits), bins=CODES, min=0, max=CODES).long()


def _count_on_cpu(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass over the exponent fields, chunk by chunk; the rare elements are looked at only if there are any."""
    by_field = np.zeros(256, dtype=np.int64)
    subnormal = torch.zeros(CODES, dtype=torch.int64)
    nans, largest, least = 0, 0, INF_BITS
    for first in range(0, values.numel(), _CHUNK):
        bits = magnitude_bits(values[first : first + _CHUNK])
        fields, top, bottom = _fields_of_few(bits.numpy()) if len(bits) < _FEW else _fields_of_many(bits)
        by_field += fields
        if top >= INF_BITS:
            finite = bits[bits < INF_BITS]
            top = int(finite.amax()) if finite.numel() else 0
            nans += int((bits > INF_BITS).sum())
        if bottom < _FIRST_NORMAL_BITS:
            subnormal += torch.bincount(codes(bits[(bits < _FIRST_NORMAL_BITS) & (bits > 0)]), minlength=CODES)
        largest, least = max(largest, top), min(least, bottom)
    counted = subnormal
    counted[ZEROS] = int(by_field[0]) - subnormal.sum()
    counted[_NORMAL_SHIFT + 1 : BINS] = torch.from_numpy(by_field[1:255])
    counted[INFS], counted[NANS] = int(by_field[255]) - nans, nans
    return counted, torch.tensor(largest), torch.tensor(least)


def _fields_of_few(bits: Bits) -> tuple[Fields, int, int]:
    """Counts of the 256 exponent fields, the largest bits and the smallest non-zero ones (2^31 where all are zero).

    numpy, because a call of it costs a third of one of torch's.
    """
    below = (bits - 1) & 0x7FFFFFFF  # a zero becomes the largest of all
    return np.bincount(bits >> 23, minlength=256), int(bits.max()), int(below.min()) + 1


def _fields_of_many(bits: torch.Tensor) -> tuple[Fields, int, int]:
    """The same with all of the CPU's cores. Two fields are counted as one number: half as many increments."""
    fields = (bits >> 23).to(torch.uint8)
    even = fields.numel() & ~1
    pairs = torch.bincount(fields[:even].view(torch.int16).to(torch.int32) & 0xFFFF, minlength=65536).view(256, 256)
    by_field = pairs.sum(0) + pairs.sum(1) + torch.bincount(fields[even:], minlength=256)
    # a zero becomes the largest of all
    return by_field.numpy(), int(bits.amax()), int(((bits - 1) & 0x7FFFFFFF).amin()) + 1
