"""An arm against FP32, paired by seed: equivalent, better, worse or inconclusive, by a rule fixed before the runs.

Two one-sided tests (TOST, Schuirmann 1987): the 90 % confidence interval of the mean paired difference inside the
margin means equivalent. A difference that merely fails to show is never called "same".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from mpdiag.diagnosis import Comparison, Trial
from mpdiag.verify.arms import BASELINE

SEED_SHARE = 0.5  # margin in units of the spread between FP32 seeds: half of what a new seed changes anyway
LOSS_FLOOR = 0.001  # of the FP32 loss: below a thousandth nobody looks
METRIC_FLOOR = 0.005  # of the FP32 metric: half a point of accuracy
IDLE_BELOW = 0.2  # multiprocessors active less than a fifth of the time: the host, not the GPU, sets the pace
MARGIN_CAP = 0.02  # of the FP32 value: beyond 2 % nobody calls two runs equal, however far apart the seeds are
COST_NOISE = 0.03  # ratios within 3 % are not told apart by one block an arm


NOT_FINITE = "not finite, while FP32 is"


def compare_arms(trials: Sequence[Trial], higher_is_better: bool) -> tuple[Comparison, ...]:
    """Every arm against the baseline: loss, each metric, and costs where they were measured."""
    baseline = {t.seed: t for t in trials if t.arm == BASELINE}
    found: list[Comparison] = []
    for arm in dict.fromkeys(t.arm for t in trials if t.arm != BASELINE):
        pairs = _distinct([(baseline[t.seed], t) for t in trials if t.arm == arm and t.seed in baseline])
        found.append(_loss(arm, pairs))
        names = list(dict.fromkeys(name for b, _ in pairs for name in (b.metric or {})))
        found += [_metric(arm, pairs, name, higher_is_better) for name in names]
        found += _costs(arm, pairs)
    return tuple(found)


def _distinct(pairs: list[tuple[Trial, Trial]]) -> list[tuple[Trial, Trial]]:
    """The pairs whose baselines differ: a seed that changes nothing gives one run twice, not more evidence."""
    return list({b.losses: (b, c) for b, c in reversed(pairs)}.values())[::-1]


def endpoint(trial: Trial) -> float:
    """The loss endpoint: the mean over the second half of the run."""
    tail = trial.losses[len(trial.losses) // 2 :]
    return sum(tail) / len(tail) if tail else math.nan


def _loss(arm: str, pairs: list[tuple[Trial, Trial]]) -> Comparison:
    failure = next((c.error for _, c in pairs if c.error), None)
    values = [(endpoint(b), endpoint(c)) for b, c in pairs]
    return _paired("loss", "mean loss of the second half", arm, values, LOSS_FLOOR, failure, lower_is_better=True)


def _metric(arm: str, pairs: list[tuple[Trial, Trial]], name: str, higher_is_better: bool) -> Comparison:
    failure = next((c.error or c.not_measured.get("metric") for _, c in pairs if c.metric is None), None)
    values = [((b.metric or {}).get(name, math.nan), (c.metric or {}).get(name, math.nan)) for b, c in pairs]
    return _paired(name, "metric", arm, values, METRIC_FLOOR, failure, lower_is_better=not higher_is_better)


def _paired(
    quantity: str,
    unit: str,
    arm: str,
    values: list[tuple[float, float]],
    floor: float,
    failure: str | None,
    lower_is_better: bool,
) -> Comparison:
    base = [b for b, _ in values]
    other = [c for _, c in values]
    baseline_value = statistics.fmean(base) if base else math.nan
    finite = bool(base) and all(map(math.isfinite, base))
    spread = statistics.stdev(base) if len(base) > 1 and finite else 0.0
    margin = max(min(SEED_SHARE * spread, MARGIN_CAP * abs(baseline_value)), floor * abs(baseline_value))
    verdict, reason, interval = "inconclusive", None, None
    difference: float | None = None
    candidate_value = statistics.fmean(other) if other and all(map(math.isfinite, other)) else None
    if not values:
        reason = "no paired run"
    elif not finite:
        reason = "the FP32 baseline is not finite"
    elif failure is not None:
        verdict, reason = "worse", f"the run failed: {failure}"
    elif candidate_value is None:
        verdict, reason = "worse", NOT_FINITE
    else:
        differences = [c - b for b, c in values]
        difference = statistics.fmean(differences)
        interval = _interval(differences)
        if interval is None:
            reason = "one distinct run gives no interval: it takes --seeds 3 or more, and seeds that change something"
        else:
            verdict, reason = _judge(interval, margin, lower_is_better, differences)
    return Comparison(
        quantity, unit, BASELINE, arm, baseline_value, candidate_value, difference, interval, margin, len(values),
        verdict, reason,
    )  # fmt: skip


def _interval(differences: list[float]) -> tuple[float, float] | None:
    """The 90 % confidence interval of the mean, from Student's t; None for a single pair."""
    if len(differences) < 2:
        return None
    from scipy.stats import t  # half a second to import, so only where it is used

    half = float(t.ppf(0.95, len(differences) - 1)) * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def _judge(
    interval: tuple[float, float], margin: float, lower_is_better: bool, differences: list[float]
) -> tuple[str, str | None]:
    low, high = interval
    if low == high == 0:
        return "equivalent", None
    if -margin < low and high < margin:
        return "equivalent", None
    if low >= margin or high <= -margin:
        return ("worse" if (low > 0) == lower_is_better else "better"), None
    needed = _seeds_needed(differences, margin)
    return "inconclusive", f"needs about {needed} seeds" if needed else "more seeds would hardly decide it"


def _seeds_needed(differences: list[float], margin: float) -> int | None:
    """How many pairs would bring the interval inside the margin, if mean and spread stay as they are.

    None: more than a hundred, or no number would.
    """
    from scipy.stats import t

    room = margin - abs(statistics.fmean(differences))
    spread = statistics.stdev(differences)
    return next((n for n in range(2, 101) if t.ppf(0.95, n - 1) * spread / math.sqrt(n) < room), None)


def _costs(arm: str, pairs: list[tuple[Trial, Trial]]) -> list[Comparison]:
    """Ratios of the costs, candidate over baseline, from the pair that has them."""
    found = []
    for field, unit in (
        ("step_time_ms", "ms a step"),
        ("peak_memory_bytes", "bytes"),
        ("energy_joules_per_sample", "joules a sample"),
    ):
        measured = [(b, c) for b, c in pairs if getattr(b, field) and getattr(c, field)]
        if not measured:
            reason = next((c.not_measured[field] for _, c in pairs if field in c.not_measured), "not measured")
            found.append(
                Comparison(field, unit, BASELINE, arm, None, None, None, None, None, 0, "not-measured", reason, True)
            )
            continue
        base, other = (getattr(trial, field) for trial in measured[0])
        ratio = other / base
        verdict = "better" if ratio < 1 - COST_NOISE else "worse" if ratio > 1 + COST_NOISE else "equivalent"
        reason = "one block an arm: no interval; 3 % is taken for noise"
        if field != "peak_memory_bytes" and _idle(measured[0][0]):
            verdict = "inconclusive"
            reason = "the GPU was mostly idle: this job is too small for its pace to be the arithmetic's"
        found.append(
            Comparison(field, unit, BASELINE, arm, base, other, ratio, None, COST_NOISE, 1, verdict, reason, True)
        )
    return found


def _idle(trial: Trial) -> bool:
    """Whether the FP32 run already left the GPU waiting for the host."""
    return trial.tensor_core is not None and trial.tensor_core.get("sm", 1.0) < IDLE_BELOW
