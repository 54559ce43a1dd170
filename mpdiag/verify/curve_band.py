"""Loss curves, paired by seed: the smoothed difference from FP32 with one band for all steps together.

A step-by-step interval excludes zero somewhere even for equal arms. Here the largest of |mean| / error over all steps
is held against what it would be if each seed's difference might as well have had the other sign (sign flips of whole
curves, so that steps stay as correlated as they are; the maximum counts all steps at once). That is nearly exact for
any number of seeds if the curves of equal arms lie symmetrically about zero (each band's error is of the curves as they
are: simulated, 24 to 26 % of equal arms stand out where 25 % may, and 13 % where 12.5 % may); it needs no normal
distribution. Its price:
n seeds have 2^(n-1) sign patterns, so three seeds cannot be surer than 75 %, four than 87.5 %. A bootstrap over seeds
and a t band for 20 steps at once were tried too: with three seeds and white noise they are right in 0 and 41 % of the
cases instead of 90 % (with few seeds the error itself comes out near zero at some step).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mpdiag.accuracy import CurveBand
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Trial
from mpdiag.verify.twins import distinct

FEWEST_SEEDS = 3  # two have two sign patterns: a band of 50 % says nothing
WANTED = 0.9  # as sure as the intervals of the endpoints
WINDOWS = 10  # the mean is taken over about a tenth of the run: shorter is noise, longer hides when it began
MOST_POINTS = 200  # of a band in the record; a screen has no room for more
MOST_FLIPS = 512  # all patterns up to ten seeds; of more seeds so many at random, always the same ones
SHARED_ERROR = 0.1  # share of the error taken from all steps: by chance a few seeds agree somewhere to the last digit
DIGITS = 6  # of a figure in the record

Array = npt.NDArray[np.float64]


def curve_bands(trials: Sequence[Trial]) -> tuple[CurveBand, ...]:
    """The band of every arm but the baseline, in the order they were run."""
    baseline = {t.seed: t for t in trials if t.arm == BASELINE}
    arms = dict.fromkeys(t.arm for t in trials if t.arm != BASELINE)
    return tuple(
        _band(arm, distinct([(baseline[t.seed], t) for t in trials if t.arm == arm and t.seed in baseline]))
        for arm in arms
    )


def _band(arm: str, pairs: Sequence[tuple[Trial, Trial]]) -> CurveBand:
    if len(pairs) < FEWEST_SEEDS:
        return CurveBand(arm, len(pairs), reason=f"a band over the steps takes {FEWEST_SEEDS} distinct seeds")
    length = min(_finite(t.losses) for pair in pairs for t in pair)
    if length == 0:
        return CurveBand(arm, len(pairs), reason="a run has no finite loss to begin with")
    raw = np.array([[c.losses[i] - b.losses[i] for i in range(length)] for b, c in pairs])
    span = max(1, length // WINDOWS)
    mean, half, confidence = simultaneous(smoothed(raw, span))
    outside = np.flatnonzero((mean - half > 0) | (mean + half < 0))
    shown = np.unique(np.linspace(0, length - 1, min(length, MOST_POINTS)).round().astype(int))
    whole = max(len(t.losses) for pair in pairs for t in pair)
    return CurveBand(
        arm=arm,
        seeds=len(pairs),
        steps=tuple(int(i) + 1 for i in shown),
        mean_difference=_rounded(mean[shown]),
        low=_rounded((mean - half)[shown]),
        high=_rounded((mean + half)[shown]),
        confidence=confidence,
        smoothed_over=span,
        first_step_outside=int(outside[0]) + 1 if outside.size else None,
        reason=f"ends after step {length}, the last that every run has finite" if length < whole else None,
    )


def smoothed(curves: Array, span: int) -> Array:
    """The exponential mean along the last axis, weight 2 / (span + 1) on the newest; no bias at the start."""
    alpha = 2 / (span + 1)
    found = np.empty_like(curves)
    total, weight = np.zeros(curves.shape[:-1]), 0.0
    for i in range(curves.shape[-1]):
        total = (1 - alpha) * total + alpha * curves[..., i]
        weight = (1 - alpha) * weight + alpha
        found[..., i] = total / weight
    return found


def simultaneous(curves: Array) -> tuple[Array, Array, float]:
    """Mean over the seeds, half-width of the band, and its confidence, for curves [seeds, steps].

    The band excludes zero somewhere in at most 1 - confidence of all verifications of equal arms, and somewhere before
    the arms part in no more where they part later. How far they are apart it tells only roughly: for that there is the
    interval of the endpoint.
    """
    shared = SHARED_ERROR * float(curves.var(axis=0, ddof=1).mean()) / len(curves)  # of the curves as they are: flipped
    # ones scatter by the difference itself, and a difference late in the run would make early noise look large
    mean, error = _mean_and_error(curves, shared)
    largest = np.sort([_largest(*_mean_and_error(curves * signs[:, None], shared)) for signs in _flips(len(curves))])
    beyond = max(1, math.floor((1 - WANTED) * len(largest) + 1e-9))
    return mean, _times(float(largest[-1 - beyond]), error), 1 - beyond / len(largest)


def _flips(seeds: int) -> list[Array]:
    """The sign patterns, the first all +1; a pattern and its opposite are one."""
    if 2 ** (seeds - 1) <= MOST_FLIPS:
        return [np.array((1.0, *rest)) for rest in itertools.product((1.0, -1.0), repeat=seeds - 1)]
    source = np.random.default_rng(0)
    return [np.ones(seeds), *source.choice((1.0, -1.0), (MOST_FLIPS - 1, seeds))]


def _mean_and_error(curves: Array, shared: float) -> tuple[Array, Array]:
    """The mean over the seeds and its standard error, steadied by a share of that of all steps, squared."""
    squared = curves.var(axis=0, ddof=1) / len(curves)
    return curves.mean(axis=0), np.sqrt((1 - SHARED_ERROR) * squared + shared)


def _largest(mean: Array, error: Array) -> float:
    """The largest |mean| / error of all steps; 0 / 0 is 0: arms equal to the bit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.abs(mean) / error, nan=0.0, posinf=math.inf).max())


def _times(factor: float, error: Array) -> Array:
    return np.where(error > 0, factor * np.where(error > 0, error, 1.0), 0.0)


def _finite(losses: Sequence[float]) -> int:
    """How many losses come before the first that is not finite."""
    return next((i for i, x in enumerate(losses) if not math.isfinite(x)), len(losses))


def _rounded(values: Array) -> tuple[float, ...]:
    return tuple(float(f"{v:.{DIGITS}g}") for v in values)
