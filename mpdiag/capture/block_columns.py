"""What a row of a block table holds: distances and ratios inside blocks, and the blocks' own largest by binade."""

from __future__ import annotations

import torch

from mpdiag.blocks import DISTANCES, RATIOS, BlockCounts, nvfp4_losses
from mpdiag.capture.columns import BINS, LOWEST

RATIO = DISTANCES
MAXIMA = RATIO + RATIOS  # elements by the binade of their block's largest
FLUSHED = MAXIMA + BINS  # those of them at or beyond LOST_RATIO
LARGEST = FLUSHED + BINS  # the bits of the largest finite magnitude
BLOCK_WIDTH = LARGEST + 1


def block_counts_of(counts: torch.Tensor) -> BlockCounts:
    """One row of a host table, int64[BLOCK_WIDTH]."""
    numbers = counts.tolist()
    largest = float(torch.tensor(numbers[LARGEST], dtype=torch.int32).view(torch.float32))
    lost, vanished = nvfp4_losses(_binades(numbers[MAXIMA:FLUSHED]), _binades(numbers[FLUSHED:LARGEST]), largest)
    return BlockCounts(_trimmed(numbers[:RATIO]), _trimmed(numbers[RATIO:MAXIMA]), lost, vanished)


def _binades(counts: list[int]) -> dict[int, int]:
    return {LOWEST + i: count for i, count in enumerate(counts) if count}


def _trimmed(counts: list[int]) -> tuple[int, ...]:
    """Without the zeros at the end."""
    return tuple(counts[: max((i + 1 for i, count in enumerate(counts) if count), default=0)])
