"""How far the elements of a tensor lie below the largest of their block: what block-scaled formats lose.

MXFP8 gives every 32 elements a power of two as their scale, NVFP4 every 16 an FP8 number, so a small element is lost
to its neighbours, not to its tensor. Distances are counted, not values: a tensor times a power of two has the same
counts, and one count answers E4M3 and E5M2. Blocks run along what the product sums over that reads the tensor in the
forward pass, or as a gradient on its way to the layer's input: a linear layer's features; of images the channels at
each pixel, of a filter its taps' channels in a row, as implicit products of channels-last tensors have them, though a
kernel may block otherwise. A weight's gradient sums over the batch, along which nothing is counted. A row's last
block may be shorter. Infinities and NaNs are left out, and do not set the scale of their block: what a
real one does with them is the implementation's own choice (OCP MX 1.0, section 6.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mpdiag.formats import E4M3, FloatFormat

MX_BLOCK = 32  # OCP Microscaling Formats 1.0, table 1
NVFP4_BLOCK = 16  # NVIDIA, Pretraining Large Language Models with NVFP4, arXiv 2509.25149, section 2
DISTANCES = 40  # the last one holds all beyond; E5M2 loses from 33 octaves on
RATIOS = 16  # the last one holds all beyond
LOST_RATIO = 5  # E2M1 ends at 6 and rounds 0.25 to zero: 0.25 / 6 is 2^-4 of two thirds, so ratio 4 survives

FEATURES = "the last dimension"
CHANNELS = "the channels of each pixel"
TAPS = "each filter, channels innermost"
FILTER = "all that one index of the first dimension holds"

NOT_ASKED = "not counted in blocks"
NOT_AN_OPERAND = "not counted in blocks: no operand of a product"
FIRST_STEP = "not counted in blocks: not seen in the first step of any stretch observed"
NO_ROWS = "not counted in blocks: sparse, nested or complex, without rows of numbers"


@dataclass(frozen=True)
class BlockCounts:
    """The non-zero finite elements of a tensor in `steps` steps, relative to the largest of their blocks.

    distances[d], blocks of 32: ceil(log2(largest / 1.75)) - floor(log2|x|) == d; the FP8 formats end at 1.75 times a
    power of two, so the scale is the least that lets nothing overflow, as NVIDIA's recipes have it (arXiv 2506.08027).
    OCP's own rule rounds it down, loses no more than this and clips. ratios[r], blocks of 16:
    floor(log2(1.5|x| / largest)) == -r. nvfp4_lost: elements that become zero in NVFP4, rounded to nearest;
    nvfp4_vanished: those of them whose whole block does, because its scale is zero beside the tensor's largest.
    along: what blocks run along, one of the names above.
    """

    distances: tuple[int, ...]
    ratios: tuple[int, ...]
    nvfp4_lost: int
    nvfp4_vanished: int
    steps: int = 1
    along: str = FEATURES

    def __add__(self, other: BlockCounts) -> BlockCounts:
        return BlockCounts(
            tuple(map(sum, zip_longest(self.distances, other.distances, fillvalue=0))),
            tuple(map(sum, zip_longest(self.ratios, other.ratios, fillvalue=0))),
            self.nvfp4_lost + other.nvfp4_lost,
            self.nvfp4_vanished + other.nvfp4_vanished,
            self.steps + other.steps,
            self.along,
        )

    @property
    def elements(self) -> int:
        """The denominator of every share."""
        return sum(self.distances)

    def mx_underflows(self, fmt: FloatFormat) -> int:
        """How many elements become zero in MX blocks of `fmt` (E4M3 or E5M2).

        Exact where the block's largest is 2^-112 or more (below, the scale itself ends), but for elements that sit on
        the tie, which this counts as surviving.
        """
        return sum(self.distances[_first_lost(fmt) :])

    def mx_energy_lost(self, fmt: FloatFormat) -> float:
        """About the share of the squared norm that goes with them, 0..1: what it were, were all blocks of one size."""
        return _tail_energy(self.distances, _first_lost(fmt))

    def nvfp4_energy_lost(self) -> float:
        """The same for NVFP4, without the blocks that vanish: each is below 2^-18 of the tensor's largest."""
        return _tail_energy(self.ratios, LOST_RATIO)


NOTHING_IN_BLOCKS = BlockCounts((), (), 0, 0)  # of a tensor that is all zero, or empty


def nvfp4_losses(maxima: Mapping[int, int], flushed: Mapping[int, int], abs_max: float) -> tuple[int, int]:
    """(lost, vanished) elements in NVFP4.

    maxima: elements by the binade of their block's largest; flushed: those of ratio LOST_RATIO or beyond; abs_max: the
    tensor's largest. A block's scale counts as largest / 6, unrounded: its E4M3 rounding moves the limit by 1/16 at
    most either way, more where it is subnormal. A block whose scale rounds to zero vanishes; where that limit cuts a
    binade, its blocks count as spread alike in it.
    """
    if not abs_max:
        return 0, 0
    limit = math.log2(abs_max) + math.log2(E4M3.rounds_to_zero / E4M3.max)
    lost = vanished = 0.0
    for binade, elements in maxima.items():
        share = min(max(limit - binade, 0.0), 1.0)
        vanished += share * elements
        lost += share * elements + (1 - share) * flushed.get(binade, 0)
    return round(lost), round(vanished)


def _first_lost(fmt: FloatFormat) -> int:
    """The least distance at which an element of an MX block becomes zero; the one before it only on the tie."""
    return fmt.max_exponent - fmt.min_subnormal_exponent + 2


def _tail_energy(counts: Sequence[int], first: int) -> float:
    """The share that distances from `first` on have in the sum of count * 4^-distance."""
    weights = [count * 4.0**-i for i, count in enumerate(counts)]
    return sum(weights[first:]) / sum(weights) if any(weights) else 0.0
