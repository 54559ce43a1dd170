"""An arm against FP32: the comparison and the paired test behind it, the curves' band, the controls' outcome."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PairedTest:
    """The figures behind one Comparison of a loss or a metric, all in its unit.

    noninferior: the candidate is not worse than FP32 by the margin, at 95 %; None where nothing can be said.
    upper_bound: how much worse it may be, the one-sided 95 % bound (negative: it is better). spread: standard deviation
    of the paired differences. seed_noise: standard deviation between FP32 seeds. seeds_needed: with so many the test
    says "equivalent" four times in five, if the truth is as near to equal as the interval allows; None where the test
    has decided, or where a hundred would not do. worse_beyond: the margin without the allowance for few seeds; only
    past it an arm is called worse, or better. margin_from: the rule behind the margin. The rule is fixed before the
    runs; its number comes from the FP32 runs alone, never from a candidate. resolution: of a metric, the smallest step
    between two values of it in any runs, by which an interval of no width was widened to both sides; else None.
    about_zero: more of this metric is better, and the FP32 runs have less than half a point of it and cannot be told
    from zero: there is nothing to lose yet, and no arm passes by it.
    """

    margin_from: str
    noninferior: bool | None = None
    upper_bound: float | None = None
    spread: float | None = None
    seed_noise: float | None = None
    seeds_needed: int | None = None
    worse_beyond: float | None = None
    resolution: float | None = None
    about_zero: bool = False

    def spread_in_margins(self, margin: float | None) -> float | None:
        """Spread over margin: what decides how many seeds it takes (0.5: five, 1: ten, 2.8: seventy)."""
        return None if self.spread is None or not margin else self.spread / margin


@dataclass(frozen=True)
class Comparison:
    """A candidate arm against the FP32 baseline in one quantity.

    difference is candidate minus baseline for losses and metrics (mean over paired seeds); for costs, where is_ratio
    is true, it is candidate over baseline. interval: 90 % confidence; margin: what counted as equal, fixed before the
    runs (for a ratio: how far from 1).
    verdict: equivalent, better, worse, inconclusive, not-measured.
    """

    quantity: str
    unit: str
    baseline: str
    candidate: str
    baseline_value: float | None
    candidate_value: float | None
    difference: float | None
    interval: tuple[float, float] | None
    margin: float | None
    seeds: int
    verdict: str
    reason: str | None = None
    is_ratio: bool = False
    test: PairedTest | None = None  # what is behind the verdict on a loss or a metric; None for a ratio

    @property
    def decides(self) -> bool:
        """Whether it counts in a verdict: not where FP32's own runs are about zero and the test is undecided."""
        return not (self.verdict == "inconclusive" and self.test is not None and self.test.about_zero)


@dataclass(frozen=True)
class CurveBand:
    """The smoothed loss of an arm less FP32's of the same seed, step by step, with a band for all steps at once.

    steps: counted from 1, at most 200 of them. mean_difference, low, high: one each a step; None with the reason beside
    it. seeds: pairs. confidence: of the band as a whole; three seeds reach 0.75, four 0.875, more 0.9 and above.
    smoothed_over: span of the exponential mean, in steps. first_step_outside: the first step, of all, whose band
    excludes zero: from there on the arm's loss is told apart from FP32's, be it by ever so little.
    """

    arm: str
    seeds: int
    steps: tuple[int, ...] = ()
    mean_difference: tuple[float, ...] | None = None
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    confidence: float | None = None
    smoothed_over: int | None = None
    first_step_outside: int | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ControlOutcome:
    """Whether an arm that leaves out a part of the recipe was worse, which shows that the test can fail on this job.

    failed: True, False, or None where it is undecided. why: in words. broke: it was not finite, which shows that
    breakage is noticed and no more; failed is None then.
    """

    arm: str
    failed: bool | None
    why: str
    broke: bool = False


@dataclass(frozen=True)
class GradientError:
    """How far an arm's gradient is from IEEE FP32's on the same weights and batches, before any training.

    All parameters are one vector g. gradient_error: |g - g32| / |g32|, root mean square over the batches, 0..; cosine:
    of the angle between them; noise_share: |g - g32| over what g32 changes from batch to batch (its standard
    deviation), None for one batch. loss_error: of the loss, relative. worst: the parameter with the largest relative
    error, worst_error, among those that hold a millionth of the squared norm. reason: why there are no figures.
    """

    arm: str
    precision: str
    loss_error: float | None = None
    gradient_error: float | None = None
    cosine: float | None = None
    noise_share: float | None = None
    worst: str | None = None
    worst_error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class GradientCheck:
    """The errors of every arm on `batches` batches at the weights where the runs begin; reason: why there are none.

    repeat_error: FP32's own, against itself on the first batch; 0 where it repeats to the bit.
    """

    batches: int = 0
    arms: tuple[GradientError, ...] = ()
    reason: str | None = None
    repeat_error: float | None = None


NO_GRADIENT_CHECK = GradientCheck(reason="not measured: the verification ended before it")
