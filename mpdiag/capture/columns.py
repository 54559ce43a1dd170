"""What a row of a count table holds: counts by binade and code, extremes, and how many updates stagnate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpdiag.histogram import ExponentHistogram

LOWEST = -149  # log2 of the smallest FP32 subnormal
BINS = 277  # binades -149..127
INFS, ZEROS, NANS = BINS, BINS + 1, BINS + 2  # codes beyond the binades
CODES = BINS + 3
ABS_MAX, ABS_MIN, STAGNANT_FP16, STAGNANT_BF16, WANTED = range(CODES, CODES + 5)
WIDTH = CODES + 5

INF_BITS = 0x7F800000


@dataclass(frozen=True)
class Row:
    """One tensor's counts, on the host."""

    histogram: ExponentHistogram
    abs_max: float
    abs_min: float
    stagnant_fp16: int
    stagnant_bf16: int
    wanted: int


def empty_table(rows: int, device: torch.device) -> torch.Tensor:
    """A table in which nothing has been counted: int64 [rows, WIDTH]."""
    table = torch.zeros(rows, WIDTH, dtype=torch.int64, device=device)
    table[:, ABS_MIN] = INF_BITS
    return table


def row_of(counts: torch.Tensor) -> Row:
    """One row of a host table."""
    numbers = counts.tolist()
    ends = torch.tensor(numbers[ABS_MAX : ABS_MIN + 1], dtype=torch.int32).view(torch.float32).tolist()
    return Row(
        ExponentHistogram(LOWEST, tuple(numbers[:BINS]), numbers[ZEROS], numbers[INFS], numbers[NANS]),
        abs_max=ends[0],
        abs_min=ends[1],
        stagnant_fp16=numbers[STAGNANT_FP16],
        stagnant_bf16=numbers[STAGNANT_BF16],
        wanted=numbers[WANTED],
    )


def unscaled(counts: torch.Tensor, scale: float) -> torch.Tensor:
    """The rows of gradients that were multiplied by a loss scale, as if they had not been.

    Dividing by 2^k moves every binade by k, exactly; a scale between powers of two moves them by floor(log2 scale),
    so that up to all elements may be one binade off, and only then. The extremes are divided as numbers.
    """
    k = int(torch.frexp(torch.tensor(scale))[1]) - 1
    moved = counts.clone()
    binades = counts[:, :BINS]
    moved[:, :BINS] = 0
    if k >= 0:
        moved[:, : BINS - k] = binades[:, k:]
        moved[:, 0] += binades[:, :k].sum(dim=1)  # below FP32's own smallest: kept as its smallest
    else:
        moved[:, -k:BINS] = binades[:, :k]
        moved[:, BINS - 1] += binades[:, BINS + k :].sum(dim=1)
    ends = counts[:, [ABS_MAX, ABS_MIN]].to(torch.int32).view(torch.float32)
    moved[:, [ABS_MAX, ABS_MIN]] = (ends / scale).view(torch.int32).long()
    return moved
