"""An arm against FP32, paired by seed: equivalent, better, worse or inconclusive, by a rule fixed before the runs.

The endpoint (mean loss of the second half, and the user's metric at the end), the margin's rule and the test are code,
the same for every job; the margin's number comes from the FP32 runs alone. An arm has to be equivalent in every
quantity, so several quantities make a false "equivalent" rarer, not likelier.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from mpdiag.accuracy import PairedTest
from mpdiag.diagnosis import Comparison, Trial
from mpdiag.target.metrics import higher_is_better as is_higher_better
from mpdiag.verify.arms import BASELINE
from mpdiag.verify.paired_test import (
    LOSS_FLOOR,
    METRIC_FLOOR,
    Judgement,
    Margin,
    judge,
    margin_for,
    resolution_of,
    seeds_needed,
)

SAME_START = 1e-5  # runs whose first losses agree to this share began alike: it is rounding that tells them apart
FIRST_LOSSES = 3  # ... one is not enough: with a last layer of zeros every seed begins at the same loss

NOT_FINITE = "not finite"
CRASHED = "the run failed"
NO_STEP_SEEN = "runs are equal or far apart in this metric: it may be too coarse to tell a small difference"
ONE_SEED = "one seed gives no interval"  # what it takes is said once, among the next steps
ONE_RUN = "all seeds gave one run, which gives no interval"

Pairs = Sequence[tuple[Trial, Trial]]


def compare_arms(
    trials: Sequence[Trial], higher_is_better: Mapping[str, bool] | bool, margins: Mapping[str, float] | None = None
) -> tuple[Comparison, ...]:
    """Every arm against the baseline: loss and each metric.

    higher_is_better: for every metric, or by name; a metric that is not in it goes by the words in its name.
    margins: the user's own, absolute, by quantity ("loss" or a metric's name; "metric" is for every metric).
    """
    baseline = {t.seed: t for t in trials if t.arm == BASELINE}
    found: list[Comparison] = []
    for arm in dict.fromkeys(t.arm for t in trials if t.arm != BASELINE):
        pairs = [(baseline[t.seed], t) for t in trials if t.arm == arm and t.seed in baseline]
        names = list(dict.fromkeys(name for b, _ in pairs for name in (b.metric or {})))
        for name in ("loss", *names):
            lower = name == "loss" or not is_higher_better(name, higher_is_better)
            values = [_value(t, name) for t in trials]
            found.append(_quantity(name, arm, pairs, list(baseline.values()), lower, margins or {}, values))
    return tuple(found)


def distinct(pairs: Pairs) -> list[tuple[Trial, Trial]]:
    """The pairs whose baselines differ: a seed that changes nothing gives one run twice, not more evidence.

    On a GPU such twins are not equal to the bit; runs that begin alike are taken for one.
    """
    kept: list[tuple[Trial, Trial]] = []
    for pair in pairs:
        if not any(_begin_alike(pair[0], other[0]) for other in kept):
            kept.append(pair)
    return kept


def _begin_alike(one: Trial, other: Trial) -> bool:
    first = list(zip(one.losses[:FIRST_LOSSES], other.losses[:FIRST_LOSSES], strict=False))
    return one.losses == other.losses or (bool(first) and all(math.isclose(a, b, rel_tol=SAME_START) for a, b in first))


def endpoint(trial: Trial) -> float:
    """The loss endpoint: the mean over the second half of the run."""
    tail = _tail(trial)
    return sum(tail) / len(tail) if tail else math.nan


def _tail(trial: Trial) -> tuple[float, ...]:
    return trial.losses[len(trial.losses) // 2 :]


def _value(trial: Trial, name: str) -> float:
    return endpoint(trial) if name == "loss" else (trial.metric or {}).get(name, math.nan)


def _margin(name: str, baseline: Sequence[Trial], margins: Mapping[str, float]) -> Margin | None:
    """The margin of a quantity, the same for every arm; None where no FP32 run gives a number."""
    runs = [b for b, _ in distinct([(t, t) for t in baseline]) if math.isfinite(_value(b, name))]
    if not runs:
        return None
    if name == "loss":  # not the mean's own size: a loss that crosses zero would have no margin
        scale = statistics.fmean(abs(x) for t in runs for x in _tail(t))
        return margin_for([endpoint(t) for t in runs], scale, LOSS_FLOOR, margins.get("loss"))
    values = [_value(t, name) for t in runs]
    asked = margins.get(name, margins.get("metric"))
    return margin_for(values, statistics.fmean(map(abs, values)), METRIC_FLOOR, asked)


def _quantity(
    name: str,
    arm: str,
    pairs: Pairs,
    baseline: Sequence[Trial],
    lower_is_better: bool,
    margins: Mapping[str, float],
    values: Sequence[float],
) -> Comparison:
    """values: the quantity in every run of every arm, for how coarse it is."""
    used = distinct(pairs)
    base = [_value(b, name) for b, _ in used]
    other = [_value(c, name) for _, c in used]
    margin = _margin(name, baseline, margins)
    broken = _broken(name, pairs)
    judgement, difference, needed = Judgement("inconclusive", None), None, None
    reason: str | None = None
    if broken is not None:
        judgement, reason = Judgement("worse", None, noninferior=False), broken
    elif not used:
        reason = "no paired run"
    elif margin is None or not all(map(math.isfinite, base)):
        reason = "the FP32 baseline is not finite"
    elif len(used) == 1:
        difference, reason = other[0] - base[0], ONE_SEED if len(pairs) == 1 else ONE_RUN
    else:
        differences = [c - b for b, c in zip(base, other, strict=True)]
        difference = statistics.fmean(differences)
        exact = name == "loss" or _same_runs(used, name)
        step = None if exact else resolution_of(values)
        judgement = judge(differences, margin.value, lower_is_better, margin.beyond, step)
        if judgement.verdict == "inconclusive":
            needed = seeds_needed(judgement, margin)
            reason = _undecided(judgement, margin, needed)
        elif not exact and step is None and judgement.interval == (0.0, 0.0):
            reason = NO_STEP_SEEN
    return Comparison(
        quantity=name,
        unit="mean loss of the second half" if name == "loss" else "metric",
        baseline=BASELINE,
        candidate=arm,
        baseline_value=statistics.fmean(base) if base else math.nan,
        candidate_value=statistics.fmean(other) if broken is None and _all_finite(other) else None,
        difference=difference,
        interval=judgement.interval,
        margin=margin.value if margin else None,
        seeds=len(used),
        verdict=judgement.verdict,
        reason=reason,
        test=PairedTest(
            margin_from=margin.words if margin else "no FP32 run gives a number",
            noninferior=judgement.noninferior,
            upper_bound=judgement.upper_bound,
            spread=judgement.spread,
            seed_noise=margin.seed_noise if margin else None,
            worse_beyond=margin.beyond if margin else None,
            seeds_needed=needed,
            resolution=judgement.resolution,
        ),
    )


def _same_runs(pairs: Pairs, name: str) -> bool:
    """Whether every pair is one run twice, to the bit of every loss: then a metric's equality is exact as well."""
    return all(b.losses == c.losses and _value(b, name) == _value(c, name) for b, c in pairs)


def _undecided(judgement: Judgement, margin: Margin, needed: int | None) -> str:
    if judgement.resolution is not None:
        return (
            f"all pairs differ by the same, and the metric moves in steps of {judgement.resolution:.2g}: too coarse "
            f"for a margin of {margin.value:.2g}; a larger set to validate on would tell"
        )
    return f"needs about {needed} seeds" if needed else "more seeds would hardly decide it"


def _all_finite(values: Sequence[float]) -> bool:
    return bool(values) and all(map(math.isfinite, values))


def _broken(name: str, pairs: Pairs) -> str | None:
    """How a run of the arm broke that its FP32 twin did not: this fails, whatever the other seeds' means.

    Every pair counts here, also that of a seed which repeats another, and every step, also an early one from which the
    run recovered. Where FP32 breaks in the same way, mixed precision is not to blame.
    """
    for b, c in pairs:
        if not math.isfinite(_value(b, name)):
            continue
        if c.error:
            return f"{CRASHED}: {c.error}"
        if name != "loss" and c.metric is None:
            return f"{CRASHED}: {c.not_measured.get('metric', 'it gave no metric')}"
        if name != "loss" and name not in (c.metric or {}):
            return f"{CRASHED}: its metric has no {name}, while FP32's has"
        at = next((i for i, x in enumerate(c.losses, 1) if not math.isfinite(x)), None)
        if name == "loss" and at is not None and (_all_finite(b.losses) or not math.isfinite(endpoint(c))):
            return f"{NOT_FINITE} at step {at} of seed {c.seed}, while FP32 is"
        if not math.isfinite(_value(c, name)):
            return f"{NOT_FINITE} with seed {c.seed}, while FP32 is"
    return None
