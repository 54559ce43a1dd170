"""Ratios of step times from blocks that took turns: their mean, their interval, and what the noise allows to say."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache

from mpdiag.costs.timing import ArmTime, Timing

CONFIDENCE = 0.95
NARROW = 0.03  # "no difference" is an interval within 3 % of 1; "faster", one wholly beyond (region of equivalence,
# Kruschke, "Rejecting or Accepting Parameter Values", 2018): both verdicts can be wrong only by more than noise alone
NOISY = 0.05  # FP32 against itself not surely within this of 1: said to be noisy. Half the gain of 10 % worth finding
MIN_BLOCKS = 3
RESAMPLES = 2000


def ratio_interval(ratios: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The interval of the geometric mean of paired ratios; None for fewer than three.

    Over few blocks the bias-corrected bootstrap (BCa, Efron 1987) is too narrow and Student's t on the logarithms
    assumes their shape, so the wider end of the two is taken on each side.
    """
    return _interval_of(tuple(math.log(ratio) for ratio in ratios), confidence)


@lru_cache(maxsize=256)
def _interval_of(logs: tuple[float, ...], confidence: float) -> tuple[float, float] | None:
    """Kept, for a run is judged anew at each checkpoint, and every ratio asks for that of the control."""
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


def paired_blocks(arm: ArmTime, baseline: ArmTime) -> list[tuple[float, float]]:
    """(the arm's block median, the baseline's) in ms, of every round in which neither was lost."""
    pairs = zip(arm.block_medians_ms, baseline.block_medians_ms, strict=False)
    return [(mine, theirs) for mine, theirs in pairs if mine and theirs]


def block_ratios(arm: ArmTime, baseline: ArmTime) -> list[float]:
    """An arm's block medians over the baseline's, round by round; rounds in which one of them was lost are left out."""
    return [mine / theirs for mine, theirs in paired_blocks(arm, baseline)]


def noise_band(timing: Timing) -> float | None:
    """How far FP32 against itself may stray from 1: the farther end of its interval, 0.02 for 2 %; None untold.

    Either way, because what made it read high may make another arm read low.
    """
    interval = ratio_interval(block_ratios(timing.control, timing.arms[0]))
    return None if interval is None else _band(interval)


def noise_of(timing: Timing) -> str | None:
    """What FP32 against itself reads where it is not surely within 5 % of 1: small differences cannot be told then.

    No veto: `judge` asks every ratio to be clear of the noise, and x1.35 is, on a machine that strays by 10 %.
    """
    ratios = block_ratios(timing.control, timing.arms[0])
    interval = ratio_interval(ratios)
    if interval is None or _band(interval) <= NOISY:
        return None
    low, high = interval
    read = f"FP32 against itself reads x{geometric_mean(ratios):.3f} ({low:.3f} to {high:.3f})"
    return f"{read} here: too noisy to tell small differences"


def _band(interval: tuple[float, float]) -> float:
    return max(interval[1], 1 / interval[0]) - 1


def judge(interval: tuple[float, float], noise: float = 0.0, narrow: float = NARROW) -> str:
    """better (cheaper), worse, equivalent or inconclusive. noise: `noise_band` of the same blocks, 0 without one.

    Better and worse only where the whole interval lies beyond 3 % and beyond the noise. So no correction for the number
    of arms is needed: simulated (tests/verify/test_verdict_rates.py), at most 5 in 1000 measurements of equal arms call
    any of their twelve ratios faster or slower, whatever the noise, from three rounds on. Over twelve rounds an arm
    that takes 10 % less is found in all where blocks scatter by 2 %, one that takes 35 % more where by 8 %.
    """
    low, high = interval
    if noise <= narrow and 1 / (1 + narrow) < low and high < 1 + narrow:
        return "equivalent"
    beyond = 1 + max(narrow, noise)
    if high < 1 / beyond:
        return "better"
    return "worse" if low > beyond else "inconclusive"


def undecided(noise: float, narrow: float = NARROW) -> str:
    """Why `judge` found neither a difference nor none."""
    if noise > narrow:
        return f"FP32 against itself strays by up to {noise:.1%} here, and the interval is not clear of that"
    return f"the interval is neither within {narrow:.0%} of 1 nor clear of it"


def geometric_mean(ratios: Sequence[float]) -> float:
    """The mean for ratios: that of a ratio and of its inverse are each other's inverse."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
