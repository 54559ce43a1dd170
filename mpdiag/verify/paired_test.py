"""The paired test: margin, 90 % interval, verdict, one-sided bound, power and the seeds it would take.

Two one-sided t tests at 5 % each (TOST, Schuirmann 1987): the 90 % interval of the mean paired difference inside the
margin means equivalent. A difference that merely fails to show is never called "same". The t interval takes the
differences for about normal; with three seeds nothing in the data could tell.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

SEED_SHARE = 0.5  # margin in units of the spread between FP32 seeds: half of what a new seed changes anyway
SEED_SURE = 0.95  # confidence that the spread between seeds is no smaller than taken
LOSS_FLOOR = 0.001  # of the FP32 loss: below a thousandth nobody looks
METRIC_FLOOR = 0.005  # of the FP32 metric: half a point of an accuracy that is near 1, less of a lower one
MARGIN_CAP = 0.02  # of the FP32 value: beyond 2 % nobody calls two runs equal, however far apart the seeds are
METRIC_POINT = 0.005  # absolute, half a point of a metric that ends at 1: what no run has, no precision can lose
NEAR_ZERO = 0.5  # FP32 seeds that scatter by this share of a metric's size: most intervals of its mean reach zero
ENOUGH_POWER = 0.8  # the usual planning value: four equal pairs of arms in five are found equivalent
MOST_SEEDS = 100  # nobody trains more often than that to try a precision
SAME = 1e-6  # of a metric's size: values nearer than this are one value, summed up in another order in FP32
FAR = 0.05  # of a metric's size: values as far apart are a success and a failure, and no single step
COARSEST = 0.2  # of a metric's size: one sample in five; nobody validates on fewer, so a larger step is a failure
WHOLES = (1.0, 100.0)  # all samples, as a share or in percent: a metric that counts reaches it in whole steps
FP32_SUM = 4e-7  # relative error of a mean that was added up in FP32: a few times half its last place, 2^-24
MOST_SAMPLES = 100_000  # beyond, FP32_SUM of all hits is no longer small beside one hit
NO_WIDTH = 1e-3  # of a metric's step: an interval that is narrower has the width of FP32's rounding
QUANTILES = 500  # of the spread's distribution, to average power over; error below 0.001


@dataclass(frozen=True)
class Margin:
    """What counts as equal. value: absolute, >= 0. words: the rule behind it. seed_noise: SD between FP32 seeds.

    beyond: >= value; only past it an arm is called worse or better. at(n): what the rule would give with n seeds, if
    the seeds went on scattering so. about_zero: the FP32 runs of a metric cannot be told from zero, and have less than
    half a point of it.
    """

    value: float
    beyond: float
    words: str
    seed_noise: float | None
    at: Callable[[int], float]
    about_zero: bool = False


@dataclass(frozen=True)
class Judgement:
    """Verdict (equivalent, better, worse, inconclusive) and the figures behind it; see accuracy.PairedTest.

    resolution: what an interval of no width was widened by, None where it has a width of its own.
    """

    verdict: str
    interval: tuple[float, float] | None
    noninferior: bool | None = None
    upper_bound: float | None = None
    spread: float | None = None
    resolution: float | None = None


def resolution_of(values: Sequence[float], largest: float = FAR) -> float | None:
    """The step in which a metric moves, from its distinct values over all runs; None where none is seen.

    A metric that counts (hits among 360 images) moves in steps, and what is smaller than a step it cannot show. The
    step is no more than the smallest gap between two values; where all of them are whole multiples of a smaller one
    (81, 1118 and 1155 hits of 4895 have no neighbours), it is that. A run that failed is far from the others, which
    tells nothing of steps: gaps of more than `largest`, a share of the values' size, are not looked at.
    """
    gap = min(_gaps(values, largest), default=None)
    whole = whole_step(values) if gap is not None else None
    return gap if gap is None or whole is None else min(gap, whole)


def _gaps(values: Sequence[float], largest: float) -> Iterator[float]:
    """Between neighbours, those above rounding and below `largest`, both as shares of the size of the values."""
    finite = sorted(value for value in values if math.isfinite(value))
    size = max((abs(value) for value in finite), default=0.0)
    return (b - a for a, b in itertools.pairwise(finite) if SAME * size < b - a < largest * size)


def whole_step(values: Sequence[float]) -> float | None:
    """The largest step of which every value is a whole multiple, and 1 (or 100, in percent) too; None without one.

    For a metric that counts samples, whose runs may all be far apart (18 and 17 hits of 20: 0.9 and 0.85 are 18 and 17
    times 0.05) or all equal (0.578125 is 37 of 64). It is sought from few samples to many, as far as FP32 sums can tell
    one from another; None too where the step would be beyond COARSEST (1.0 is any number of hits of as many).
    """
    import numpy as np

    finite = sorted({abs(value) for value in values if math.isfinite(value)})
    whole = next((w for w in WHOLES if finite and 0 < finite[-1] <= w), None)
    if whole is None:
        return None
    samples = np.arange(1, MOST_SAMPLES + 1)
    for value in reversed(finite):
        hits = samples * (value / whole)
        samples = samples[np.abs(hits - np.rint(hits)) <= FP32_SUM * hits]
    step = whole / float(samples[0]) if samples.size else None
    return step if step is not None and step <= COARSEST * finite[-1] else None


def margin_for(
    baseline: Sequence[float], scale: float, floor: float, asked: float | None = None, point: float = 0.0
) -> Margin:
    """The margin from the FP32 runs' values (one a distinct seed) alone; `asked` is the user's own, which goes first.

    Half the standard deviation between seeds, which n seeds know only roughly: of few seeds it is often too large
    (half of the time with many), and an arm that is worse by exactly half the true spread would then pass in 30 to 45 %
    of all verifications instead of 5 % (tests/verify/test_power.py). So the lower 95 % bound of it is taken, s times
    sqrt((n - 1) / chi2(0.95, n - 1)): 0.58 s with three seeds, 0.65 s with five, 0.71 s with eight. To be called worse
    (or better) an arm has to be beyond half of s itself; in between lies "inconclusive". Capped and floored at shares
    of `scale`, the mean magnitude of the FP32 values. `floor`: LOSS_FLOOR or METRIC_FLOOR.

    A share of the value means nothing where the value is noise about zero: an mAP of 2e-4, 2e-6 and 1e-4 would be
    judged by 2e-6. So where the seeds scatter by half of a metric's size or more (NEAR_ZERO), the cap is `point` if
    that is more: half of the seeds' spread decides, up to half a point. An arm that is worse by half the true spread
    still passes in 5 % at most, for a cap can only make the margin smaller than half the spread's lower bound (for
    seeds about normal; of exponential ones, 10 % with eight). An accuracy of 0.9, 0.4 and 0.01 keeps its 2 %, which are
    more than half a point. `point`: METRIC_POINT; 0 for a loss, whose scale is not its value but the size of its steps.
    """
    noise = statistics.stdev(baseline) if len(baseline) > 1 else None
    if asked is not None:
        return Margin(asked, asked, "your own", noise, lambda _: asked)
    scattered = noise is not None and point > 0 and noise >= NEAR_ZERO * scale
    about_zero = scattered and max(map(abs, baseline)) <= point
    least, most = floor * scale, max(MARGIN_CAP * scale, point if scattered else 0.0)

    def within(spread: float) -> float:
        return max(min(SEED_SHARE * spread, most), least)

    def at(count: int) -> float:
        return within((noise or 0.0) * _surely(count)) if count > 1 else least

    value = at(len(baseline))
    words = f"half the spread between {len(baseline)} FP32 seeds, the lower 95 % bound of it"
    if value == least:
        words = f"{floor * 100:g} % of FP32's value, the least there is"
    elif value == most:
        share = f"{MARGIN_CAP * 100:g} % of FP32's value"
        words = f"{share if most > point or not scattered else f'{point:g}'}, the most there is"
    return Margin(value, within(noise or 0.0), words, noise, at, about_zero)


@functools.cache
def _surely(count: int) -> float:
    """The lower confidence bound of a standard deviation, in units of its estimate from `count` values."""
    from scipy.stats import chi2  # half a second to import, so only where it is used

    return math.sqrt((count - 1) / float(chi2.ppf(SEED_SURE, count - 1)))


def judge(
    differences: Sequence[float],
    margin: float,
    lower_is_better: bool | None,
    beyond: float | None = None,
    resolution: float | None = None,
) -> Judgement:
    """The verdict on paired differences (candidate less baseline, finite, at least one).

    Equivalent within `margin`; worse or better past `beyond` (None: past the margin too). resolution: of a metric; an
    interval that is narrower than rounding, because all pairs differ by the same, is as wide as that to both sides:
    equal differences tell no spread, only that it is within a step. None: the differences are exact. lower_is_better:
    None where it is not known: then a difference to either side may be the harm, and is never called one.
    """
    beyond = margin if beyond is None else beyond
    if len(differences) < 2:
        return Judgement("inconclusive", None)
    low, high = interval = _interval(differences)
    coarse = resolution is not None and high - low < NO_WIDTH * resolution
    if coarse and resolution is not None:
        low, high = interval = low - resolution, high + resolution
    harm = max(high, -low) if lower_is_better is None else high if lower_is_better else -low
    spread = statistics.stdev(differences)
    inside = low == high == 0 or (-margin < low and high < margin)  # equal to the bit is equal by any margin
    if inside:
        verdict = "equivalent"
    elif lower_is_better is not None and (low >= beyond or high <= -beyond):
        verdict = "worse" if (low > 0) == lower_is_better else "better"
    else:
        verdict = "inconclusive"
    return Judgement(verdict, interval, inside or harm < margin, harm, spread, resolution if coarse else None)


def _interval(differences: Sequence[float]) -> tuple[float, float]:
    """The 90 % confidence interval of the mean, from Student's t."""
    half = _t(len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean - half, mean + half


@functools.cache
def _t(freedom: int) -> float:
    """Student's t at 95 %."""
    from scipy.stats import t

    return float(t.ppf(0.95, freedom))


def power(seeds: int, spread: float, margin: float, true_difference: float = 0.0) -> float:
    """How often the test says "equivalent": exact for normal differences of this spread (standard deviation).

    The mean of the differences is normal and their estimated spread an independent chi; given that spread the answer is
    a difference of two normal probabilities, which is averaged over the spread's quantiles.
    """
    import numpy as np
    from scipy.stats import chi2, norm

    if spread == 0:
        return float(abs(true_difference) < margin)
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    estimated = spread * np.sqrt(chi2.ppf(at, seeds - 1) / (seeds - 1))
    error = spread / math.sqrt(seeds)
    room = np.maximum(margin - _t(seeds - 1) * estimated / math.sqrt(seeds), 0.0)
    inside = norm.cdf((room - true_difference) / error) - norm.cdf((-room - true_difference) / error)
    return float(inside.mean())


def seeds_needed(judgement: Judgement, margin: Margin, ran: int = 1) -> int | None:
    """With how many seeds an undecided test would probably say "equivalent"; None where no hundred would do.

    More than the `ran` that left it undecided: those were too few, whatever the chances were.

    The spread is taken as seen, the true difference as the point of the 90 % interval that is nearest to zero: the mean
    of three differences is mostly noise, and planning with it would follow the noise.
    """
    if judgement.interval is None or judgement.spread is None or judgement.resolution is not None:
        return None  # more seeds make the metric's steps no finer
    low, high = judgement.interval
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    spread = judgement.spread
    counts = range(max(2, ran + 1), MOST_SEEDS + 1)
    found = bisect.bisect_left(counts, ENOUGH_POWER, key=lambda n: power(n, spread, margin.at(n), nearest))
    return counts[found] if found < len(counts) else None
