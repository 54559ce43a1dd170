"""How far each arm's loss is from FP32's, step by step: what curves that lie on each other cannot show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.diagnosis import Trial

MOST_DECADES = 12
"""FP32 itself has seven digits; what lies further down stands on the lowest decade."""


@dataclass(frozen=True)
class Gap:
    """One arm: the largest |loss - FP32 loss of the same seed| over the seeds, by step; NaN where one is not finite."""

    arm: str
    seeds: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class GapAxis:
    """A log10 axis of whole decades; the line one decade below them is zero."""

    low: int
    high: int

    def position(self, gap: float) -> float:
        """log10 of a gap; zero lies on the axis' bottom line, NaN stays NaN."""
        if gap == 0:
            return self.low - 1
        return max(math.log10(gap), self.low) if math.isfinite(gap) else math.nan

    @property
    def decades(self) -> list[int]:
        """The decades to label: at most eight."""
        every = 1 + (self.high - self.low) // 8
        return [e for e in range(self.low, self.high + 1) if (e - self.high) % every == 0]


def gaps(trials: Sequence[Trial]) -> list[Gap]:
    """Each arm but the first, whose runs are the twins that the others are held against."""
    twins = {t.seed: t.losses for t in trials if t.arm == trials[0].arm}
    found = []
    for arm in dict.fromkeys(t.arm for t in trials if t.arm != trials[0].arm):
        pairs = [(t.losses, twins[t.seed]) for t in trials if t.arm == arm and t.seed in twins]
        lines = [[abs(a - b) for a, b in zip(own, twin, strict=False)] for own, twin in pairs]
        steps = max(map(len, lines), default=0)
        values = tuple(_largest([line[i] for line in lines if i < len(line)]) for i in range(steps))
        if values:
            found.append(Gap(arm, len(pairs), values))
    return found


def gap_axis(found: Sequence[Gap], margin: float | None = None) -> GapAxis | None:
    """An axis that holds all of them and the margin; None when no gap is a finite number above zero."""
    sizes = [math.log10(v) for gap in found for v in gap.values if math.isfinite(v) and v > 0]
    if not sizes:
        return None
    sizes += [math.log10(margin)] if margin else []
    high = math.ceil(max(sizes))
    low = max(math.floor(min(sizes)), high - MOST_DECADES)
    return GapAxis(min(low, high - 1), high)


def _largest(sizes: Sequence[float]) -> float:
    return max(sizes) if all(map(math.isfinite, sizes)) else math.nan
