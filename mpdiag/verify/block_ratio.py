"""Ratios of step times from blocks that took turns: their mean, their interval, and what the noise allows to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mpdiag.costs.timing import ArmTime, Timing

CONFIDENCE = 0.95
NARROW = 0.03  # "no difference" is said only of an interval that lies within 3 % of 1
NOISY = 0.02  # FP32 against itself further than this from 1: the machine is too noisy for any ratio
WIDE = 0.2  # ... and so is one whose interval is as wide as what FP16 often gains
MIN_BLOCKS = 3
RESAMPLES = 2000


def ratio_interval(ratios: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of the geometric mean of paired ratios; None for fewer than three.

    Over few blocks the bias-corrected bootstrap (BCa, Efron 1987) is too narrow and Student's t on the logarithms
    assumes their shape, so the wider end of the two is taken on each side.
    """
    logs = [math.log(ratio) for ratio in ratios]
    if len(logs) < MIN_BLOCKS:
        return None
    mean, spread = statistics.fmean(logs), statistics.stdev(logs)
    if spread < 1e-12:  # equal ratios: a bootstrap has nothing to resample
        return math.exp(mean), math.exp(mean)
    import numpy as np
    from scipy import stats

    half = float(stats.t.ppf((1 + confidence) / 2, len(logs) - 1)) * spread / math.sqrt(len(logs))
    drawn = stats.bootstrap(
        (np.asarray(logs),), np.mean, confidence_level=confidence, n_resamples=RESAMPLES, method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    low, high = (float(end) for end in (drawn.low, drawn.high))
    ends = (min(x for x in (mean - half, low) if math.isfinite(x)), max(x for x in (mean + half, high) if x == x))
    return math.exp(ends[0]), math.exp(ends[1])


def block_ratios(arm: ArmTime, baseline: ArmTime) -> list[float]:
    """An arm's block medians over the baseline's, round by round; rounds in which one of them was lost are left out."""
    pairs = zip(arm.block_medians_ms, baseline.block_medians_ms, strict=False)
    return [mine / theirs for mine, theirs in pairs if mine and theirs]


def noise_of(timing: Timing) -> str | None:
    """Why no ratio of these blocks can be trusted: FP32 against itself is off by more than the noise allowed."""
    ratios = block_ratios(timing.control, timing.arms[0])
    interval = ratio_interval(ratios)
    if interval is None:
        return "FP32 against itself has too few blocks to tell the machine's noise"
    middle, (low, high) = geometric_mean(ratios), interval
    if abs(middle - 1) > NOISY or high - low > WIDE:
        return f"FP32 against itself reads x{middle:.3f} ({low:.3f} to {high:.3f}) here: too noisy to compare"
    return None


def judge(interval: tuple[float, float], narrow: float = NARROW) -> str:
    """better (cheaper), worse, equivalent or inconclusive."""
    low, high = interval
    if 1 - narrow < low and high < 1 + narrow:
        return "equivalent"
    if high < 1:
        return "better"
    return "worse" if low > 1 else "inconclusive"


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean for ratios: that of a ratio and of its inverse are each other's inverse."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
