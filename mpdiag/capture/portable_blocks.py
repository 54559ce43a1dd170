"""Counting inside blocks in torch alone, on any device: to the same integers as the kernel."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mpdiag.blocks import DISTANCES, LOST_RATIO, MX_BLOCK, NVFP4_BLOCK, RATIOS
from mpdiag.capture.block_columns import BLOCK_WIDTH, FLUSHED, LARGEST, MAXIMA, RATIO
from mpdiag.capture.columns import BINS, INF_BITS, LOWEST
from mpdiag.capture.portable import magnitude_bits

_CHUNK = 1 << 18  # elements: a dozen temporaries of 4 bytes each stay within a few megabytes
_FIRST_NORMAL_BITS = 0x00800000
_FRACTION = 0x007FFFFF
_ABOVE_QUARTERS = 0x001FFFFF  # added to bits, it carries into the exponent where the fraction is above 1.75's


def count_blocks(values: torch.Tensor, length: int) -> torch.Tensor:
    """int64[BLOCK_WIDTH] counts of a flat tensor of rows of `length`; on its device, without synchronizing on a GPU."""
    counts = torch.zeros(BLOCK_WIDTH, dtype=torch.int64, device=values.device)
    for blocks in _blocks(values, length):
        bits = magnitude_bits(blocks)
        _count(torch.where(bits < INF_BITS, bits, 0), counts)
    return counts


def _blocks(values: torch.Tensor, length: int) -> Iterator[torch.Tensor]:
    """[blocks, MX_BLOCK], a few at a time; zeros, which are not counted, fill the last block of each row."""
    if length % MX_BLOCK == 0:
        length = values.numel()
    whole = length // MX_BLOCK * MX_BLOCK
    rows = values.view(-1, length)
    for columns in [slice(at, min(at + _CHUNK, whole)) for at in range(0, whole, _CHUNK)]:
        some = max(1, _CHUNK // (columns.stop - columns.start))
        for first in range(0, len(rows), some):
            yield rows[first : first + some, columns].reshape(-1, MX_BLOCK)
    if whole < length:
        for first in range(0, len(rows), _CHUNK // MX_BLOCK):
            rest = rows[first : first + _CHUNK // MX_BLOCK, whole:]
            yield torch.nn.functional.pad(rest, (0, MX_BLOCK - (length - whole)))


def _count(bits: torch.Tensor, counts: torch.Tensor) -> None:
    """Add blocks of finite magnitudes, int32 bits [blocks, MX_BLOCK], to the counts."""
    counts[LARGEST] = torch.maximum(counts[LARGEST], bits.amax().long())
    nonzero = bits > 0
    wide = _wide(bits)
    largest = _wide(bits.amax(dim=1, keepdim=True))
    distance = ((largest + _ABOVE_QUARTERS) >> 23) - (wide >> 23)
    _tally(distance.clamp(max=DISTANCES - 1), nonzero, counts[:RATIO])
    halves, mine = wide.view(-1, NVFP4_BLOCK), nonzero.view(-1, NVFP4_BLOCK)
    largest = _wide(bits.view(-1, NVFP4_BLOCK).amax(dim=1, keepdim=True))
    ratio = _ratio(halves, largest)
    _tally(ratio.clamp(max=RATIOS - 1), mine, counts[RATIO:MAXIMA])
    binade = ((largest >> 23) - 127 - LOWEST).expand_as(halves)
    _tally(binade, mine, counts[MAXIMA:FLUSHED])
    _tally(binade, mine & (ratio >= LOST_RATIO), counts[FLUSHED : FLUSHED + BINS])


def _wide(bits: torch.Tensor) -> torch.Tensor:
    """Bits as if the exponent field went on below zero, so that subnormals have a leading one like the others."""
    subnormal = bits.float().view(torch.int32) - (149 << 23)  # an integer below 2^23 is exact as a float
    return torch.where(bits < _FIRST_NORMAL_BITS, subnormal, bits)


def _ratio(wide: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """-floor(log2(1.5|x| / largest)), of significands as integers: exact."""
    three = 3 * ((wide & _FRACTION) + _FIRST_NORMAL_BITS)
    two = 2 * ((largest & _FRACTION) + _FIRST_NORMAL_BITS)
    return (largest >> 23) - (wide >> 23) + 1 - (three >= two).int() - (three >= 2 * two).int()


def _tally(bins: torch.Tensor, wanted: torch.Tensor, counts: torch.Tensor) -> None:
    """Add one to the counts at each wanted bin. Integers: the order of additions does not matter."""
    if bins.device.type == "cpu":
        counts += torch.bincount(bins[wanted], minlength=len(counts))
    else:  # bincount and masks would synchronize
        counts.scatter_add_(0, torch.where(wanted, bins, 0).long().view(-1), wanted.long().view(-1))
