"""An arm against FP32, paired by seed: equivalent, better, worse or inconclusive, by a rule fixed before the runs.

The endpoint (mean loss of the second half, and the user's metric at the end), the margin's rule and the test are code,
the same for every job; the margin's number comes from the FP32 runs alone. An arm has to be equivalent in every
quantity, so several quantities make a false "equivalent" rarer, not likelier.

One thing is left out: a metric of which the FP32 runs themselves have less than half a point and which scatters between
seeds about as much as it is large (paired_test). It has not begun to tell runs apart: nothing is lost with it, and
nothing is shown by it. So it passes no arm and holds up no verdict; the loss decides. An arm that is clearly worse in
it is worse all the same. A metric of which less is better is never left out: near zero it has everything to lose.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpdiag.accuracy import PairedTest
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Comparison, Trial
from mpdiag.target.metrics import higher_is_better as is_higher_better
from mpdiag.verify.paired_test import (
    LOSS_FLOOR,
    METRIC_FLOOR,
    METRIC_POINT,
    Judgement,
    Margin,
    judge,
    margin_for,
    resolution_of,
    seeds_needed,
    whole_step,
)
from mpdiag.verify.twins import Pairs, distinct

LARGEST = 1e150  # squares of more are beyond every float, and so is a spread
LEAST_LOSSES = 2  # the first comes before any update, so it tells of the forward pass alone

NOT_FINITE = "not finite"
CRASHED = "the run failed"
NEVER_STEPPED = "no step was made"  # the loss may be FP32's all the same, where FP32's hardly moves
NOT_GIVEN = "not-measured"  # the verdict on a metric that the arm's evaluate() does not give: it trained all the same
NO_STEP_SEEN = "FP32's runs are equal in this metric: it may be too coarse to tell a small difference"
ONE_STEP = "one step shows no training: its loss comes before the first update"
TOO_LARGE = f"values beyond {LARGEST:.0e} cannot be judged"
NO_DIRECTION = "its name does not say which way is better: set HIGHER_IS_BETTER"
ONE_SEED = "one seed gives no interval"  # what it takes is said once, among the next steps
ABOUT_ZERO = "FP32's own runs are about zero in it: a longer run, or one from a trained state, would tell"
ONE_RUN = "all seeds gave one run, which gives no interval"


def compare_arms(
    trials: Sequence[Trial], higher_is_better: Mapping[str, bool] | bool, margins: Mapping[str, float] | None = None
) -> tuple[Comparison, ...]:
    """Every arm against the baseline: loss and each metric.

    higher_is_better: for every metric, or by name; a metric that is not in it goes by the words in its name. One whose
    name says nothing may be found equal, and never better or worse: a guess would make a "go" of a harm.
    margins: the user's own, absolute, by quantity ("loss" or a metric's name; "metric" is for every metric).
    """
    baseline = {t.seed: t for t in trials if t.arm == BASELINE}
    found: list[Comparison] = []
    for arm in dict.fromkeys(t.arm for t in trials if t.arm != BASELINE):
        pairs = [(baseline[t.seed], t) for t in trials if t.arm == arm and t.seed in baseline]
        names = list(dict.fromkeys(name for b, _ in pairs for name in (b.metric or {})))
        for name in ("loss", *names):
            higher = False if name == "loss" else is_higher_better(name, higher_is_better)
            lower = None if higher is None else not higher
            values = [_value(t, name) for t in trials if not _vast(t, name)]
            found.append(_quantity(name, arm, pairs, list(baseline.values()), lower, margins or {}, values))
    return tuple(found)


def endpoint(trial: Trial) -> float:
    """The loss endpoint: the mean over the second half of the run."""
    tail = _tail(trial)
    return sum(tail) / len(tail) if tail else math.nan


def _tail(trial: Trial) -> tuple[float, ...]:
    return trial.losses[len(trial.losses) // 2 :]


def _value(trial: Trial, name: str) -> float:
    return endpoint(trial) if name == "loss" else (trial.metric or {}).get(name, math.nan)


def _vast(trial: Trial, name: str) -> bool:
    values = _tail(trial) if name == "loss" else (_value(trial, name),)
    return any(LARGEST < abs(x) < math.inf for x in values)


def _margin(name: str, baseline: Sequence[Trial], margins: Mapping[str, float]) -> Margin | None:
    """The margin of a quantity, the same for every arm; None where no FP32 run gives a number."""
    runs = [b for b, _ in distinct([(t, t) for t in baseline]) if math.isfinite(_value(b, name)) and not _vast(b, name)]
    if not runs:
        return None
    if name == "loss":  # not the mean's own size: a loss that crosses zero would have no margin
        scale = statistics.fmean(abs(x) for t in runs for x in _tail(t))
        return margin_for([endpoint(t) for t in runs], scale, LOSS_FLOOR, margins.get("loss"))
    values = [_value(t, name) for t in runs]
    asked = margins.get(name, margins.get("metric"))
    return margin_for(values, statistics.fmean(map(abs, values)), METRIC_FLOOR, asked, METRIC_POINT)


def _quantity(
    name: str,
    arm: str,
    pairs: Pairs,
    baseline: Sequence[Trial],
    lower_is_better: bool | None,
    margins: Mapping[str, float],
    values: Sequence[float],
) -> Comparison:
    """values: the quantity in every run of every arm, for how coarse it is."""
    used = [pair for pair in distinct(pairs) if name == "loss" or not _lacks(name, pair)]
    base = [_value(b, name) for b, _ in used or distinct(pairs)]
    other = [_value(c, name) for _, c in used]
    margin = _margin(name, baseline, margins)
    about_zero = margin is not None and margin.about_zero and lower_is_better is False
    vast = any(_vast(t, name) for pair in used or pairs for t in pair)
    broken = _broken(name, pairs)
    found = _Found(Judgement("worse", None, noninferior=False), broken) if broken is not None else None
    found = found or _unjudged(name, pairs, used, margin, vast)
    if found is None:
        assert margin is not None  # else it is unjudged
        found = _judged(name, used, margin, about_zero, lower_is_better, values)
    not_given = _not_given(name, pairs)
    if not_given is not None and found.judgement.verdict != "worse":  # whatever the seeds say that have it
        found = _Found(Judgement(NOT_GIVEN, None), not_given)
    judgement = found.judgement
    return Comparison(
        quantity=name,
        unit="mean loss of the second half" if name == "loss" else "metric",
        baseline=BASELINE,
        candidate=arm,
        baseline_value=None if vast else statistics.fmean(base) if base else math.nan,
        candidate_value=statistics.fmean(other) if broken is None and not vast and _all_finite(other) else None,
        difference=found.difference,
        interval=judgement.interval,
        margin=margin.value if margin else None,
        seeds=len(used),
        verdict=judgement.verdict,
        reason=found.reason,
        test=PairedTest(
            margin_from=margin.words if margin else "no FP32 run gives a number",
            noninferior=judgement.noninferior,
            upper_bound=judgement.upper_bound,
            spread=judgement.spread,
            seed_noise=margin.seed_noise if margin else None,
            worse_beyond=margin.beyond if margin else None,
            seeds_needed=found.seeds_needed,
            resolution=judgement.resolution,
            about_zero=about_zero,
        ),
    )


@dataclass(frozen=True)
class _Found:
    """A judgement, and what a comparison says beside it."""

    judgement: Judgement
    reason: str | None = None
    difference: float | None = None
    seeds_needed: int | None = None


def _unjudged(name: str, pairs: Pairs, used: Pairs, margin: Margin | None, vast: bool) -> _Found | None:
    """Why there is nothing to test; None where there is. `used` are the pairs that count."""
    open_ = Judgement("inconclusive", None)
    if not used:
        return _Found(open_, "no paired run")
    if name == "loss" and any(len(t.losses) < LEAST_LOSSES for pair in used for t in pair):
        return _Found(open_, ONE_STEP)
    if vast:
        return _Found(open_, TOO_LARGE)
    if margin is None or not all(math.isfinite(_value(b, name)) for b, _ in used):
        return _Found(open_, "the FP32 baseline is not finite")
    if len(used) == 1:
        reason = ONE_SEED if len(pairs) == 1 else ONE_RUN
        return _Found(open_, reason, _value(used[0][1], name) - _value(used[0][0], name))
    return None


def _judged(
    name: str, used: Pairs, margin: Margin, about_zero: bool, lower_is_better: bool | None, values: Sequence[float]
) -> _Found:
    """The test on two pairs or more; values: as of `_quantity`."""
    base, other = ([_value(pair[which], name) for pair in used] for which in (0, 1))
    differences = [c - b for b, c in zip(base, other, strict=True)]
    difference = statistics.fmean(differences)
    exact = name == "loss" or _same_runs(used, name)
    step = None if exact else resolution_of(values)
    if not exact and step is None:
        # few things are counted, and the runs are far apart (7 or 8 hits of ten) or all equal: equal to the bit, though
        # the losses are not, or a hit fewer in every pair, which judge() heeds where all pairs differ by the same
        step = whole_step([*base, *other])
        step = resolution_of(base, math.inf) if step is None and not any(differences) else step
    judgement = judge(differences, margin.value, lower_is_better, margin.beyond, step)
    if about_zero and judgement.verdict in ("equivalent", "inconclusive") and judgement.interval != (0.0, 0.0):
        return _Found(replace(judgement, verdict="inconclusive", noninferior=None), ABOUT_ZERO, difference)
    if judgement.verdict == "inconclusive":
        if lower_is_better is None and _moved(judgement, margin):
            return _Found(judgement, NO_DIRECTION, difference)
        needed = seeds_needed(judgement, margin, len(used))
        return _Found(judgement, _undecided(judgement, margin, needed), difference, needed)
    unseen = not exact and step is None and judgement.interval == (0.0, 0.0)
    return _Found(judgement, NO_STEP_SEEN if unseen else None, difference)


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


def _moved(judgement: Judgement, margin: Margin) -> bool:
    """Whether the whole interval is past the margin, to either side: what would be "worse" or "better"."""
    low, high = judgement.interval or (0.0, 0.0)
    return low >= margin.beyond or high <= -margin.beyond


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
        if name != "loss" and _lacks(name, (b, c)):
            continue  # it trained: see _not_given
        if name == "loss" and 0 < c.steps <= (c.skipped_steps or 0):
            return f"{NEVER_STEPPED}: the GradScaler skipped all {c.steps} with seed {c.seed}"
        at = next((i for i, x in enumerate(c.losses, 1) if not math.isfinite(x)), None)
        if name == "loss" and at is not None and (_all_finite(b.losses) or not math.isfinite(endpoint(c))):
            return f"{NOT_FINITE} at step {at} of seed {c.seed}, while FP32 is"
        if not math.isfinite(_value(c, name)):
            return f"{NOT_FINITE} with seed {c.seed}, while FP32 is"
    return None


def _lacks(name: str, pair: tuple[Trial, Trial]) -> bool:
    """Whether the candidate trained to its end and has no value of a metric that its FP32 twin has."""
    b, c = pair
    return name in (b.metric or {}) and c.error is None and name not in (c.metric or {})


def _not_given(name: str, pairs: Pairs) -> str | None:
    """Why evaluate() gave no value of a metric under the arm's precision; None where it gave one for every seed."""
    first = next((c for b, c in pairs if _lacks(name, (b, c))), None)
    if name == "loss" or first is None:
        return None
    if first.metric is None:
        return f"evaluate() gives no value here: {first.not_measured.get('metric', 'it gave no metric')}"
    return f"evaluate() gives no {name} here, while in FP32 it does"
