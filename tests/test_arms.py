"""From trials to a verdict: paired equivalence tests, the arms, the plan within its budget, and one arm's run."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from mpdiag.diagnosis import Advice, Comparison, Finding, LossScaleAdvice, Trial
from mpdiag.errors import UserCodeError
from mpdiag.settings import MIN_VERIFY_STEPS
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import Precision
from mpdiag.verify.arms import Arm, arms_for
from mpdiag.verify.compare import COST_NOISE, LOSS_FLOOR, MARGIN_CAP, SEED_SHARE, compare_arms, endpoint
from mpdiag.verify.plan import CUT_FIRST, Plan, fit
from mpdiag.verify.trials import train_arm
from mpdiag.verify.verdict import decide

CPU = torch.device("cpu")
NAN, INF = math.nan, math.inf


def trial(arm: str, seed: int, loss: float | Sequence[float] = 1.0, metric: Any = None, **more: Any) -> Trial:
    """A run of four steps with a constant loss, or with the losses given."""
    losses = (float(loss),) * 4 if isinstance(loss, int | float) else tuple(loss)
    named = {"accuracy": metric} if isinstance(metric, int | float) else metric
    return Trial(arm, arm.upper(), True, seed, len(losses), losses, named, **more)


def pairs(base: Sequence[float], other: Sequence[float], arm: str = "fp16") -> list[Trial]:
    made = [trial("fp32", seed, loss) for seed, loss in enumerate(base)]
    return made + [trial(arm, seed, loss) for seed, loss in enumerate(other)]


def metrics(base: Sequence[float], other: Sequence[float]) -> list[Trial]:
    made = [trial("fp32", seed, 1 + seed / 10, value) for seed, value in enumerate(base)]
    return made + [trial("fp16", seed, 1 + seed / 10, value) for seed, value in enumerate(other)]


def one(trials: Sequence[Trial], quantity: str = "loss", arm: str = "fp16", higher: bool = True) -> Comparison:
    found = [c for c in compare_arms(trials, higher) if c.quantity == quantity and c.candidate == arm]
    assert len(found) == 1
    return found[0]


# the endpoint


def test_the_endpoint_is_the_mean_of_the_second_half():
    assert endpoint(trial("fp32", 0, [9.0, 9.0, 1.0, 2.0])) == 1.5


def test_of_an_odd_number_of_steps_the_longer_half_counts():
    assert endpoint(trial("fp32", 0, [9.0, 1.0, 2.0])) == 1.5


def test_a_run_without_a_step_has_no_endpoint():
    assert math.isnan(endpoint(trial("fp32", 0, [])))


def test_a_nan_early_in_the_run_does_not_reach_the_endpoint_but_a_late_one_does():
    assert endpoint(trial("fp32", 0, [NAN, 1.0, 1.0, 1.0])) == 1.0
    assert math.isnan(endpoint(trial("fp32", 0, [1.0, 1.0, 1.0, NAN])))


# the paired test


def test_the_difference_is_candidate_minus_baseline_averaged_over_the_pairs():
    c = one(pairs([1.0, 2.0, 3.0], [1.5, 2.0, 3.25]))
    assert (c.baseline_value, c.difference, c.seeds) == (2.0, 0.25, 3)
    assert c.candidate_value == 2.25


def test_the_margin_is_half_the_spread_between_fp32_seeds():
    assert one(pairs([99.0, 100.0, 101.0], [99.0, 100.0, 101.0])).margin == 0.5


def test_the_margin_is_at_most_two_percent_of_the_baseline():
    assert one(pairs([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])).margin == pytest.approx(0.04)
    assert one(pairs([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0])).margin == pytest.approx(0.04)
    assert one(metrics([0.5, 0.7, 0.9], [0.5, 0.7, 0.9]), "accuracy").margin == pytest.approx(0.014)


def test_seeds_far_apart_do_not_excuse_a_difference_beyond_two_percent():
    # half the spread between seeds would be 0.5; the arm is a tenth worse in every pair
    assert one(pairs([1.0, 2.0, 3.0], [1.2, 2.2, 3.2])).verdict == "worse"


def test_the_margin_of_a_loss_is_at_least_a_thousandth_of_it():
    assert one(pairs([2.0, 2.0001, 1.9999], [2.0, 2.0, 2.0])).margin == pytest.approx(0.002)


def test_the_margin_of_a_metric_is_at_least_half_a_percent_of_it():
    assert one(metrics([0.8, 0.8, 0.8], [0.8, 0.8, 0.8]), "accuracy").margin == pytest.approx(0.004)


def test_the_interval_is_students_t_of_the_differences():
    c = one(pairs([1.0, 2.0, 3.0, 4.0], [1.1, 2.3, 2.9, 4.2]))
    expected = stats.t.interval(0.9, 3, loc=c.difference, scale=stats.sem([0.1, 0.3, -0.1, 0.2]))
    assert c.interval == pytest.approx(expected)


def test_the_ends_of_the_interval_are_plain_floats():
    # numpy's would be refused by JSON
    assert [type(end) for end in one(pairs([1.0, 2.0, 3.0], [1.1, 2.3, 2.9])).interval] == [float, float]


def tost(differences: Sequence[float], margin: float) -> str:
    """scipy's two one-sided tests at 5 %: the oracle for the verdict on a loss."""
    beyond = lambda point, side: stats.ttest_1samp(differences, point, alternative=side).pvalue < 0.05
    if beyond(-margin, "greater") and beyond(margin, "less"):
        return "equivalent"
    return "worse" if beyond(margin, "greater") else "better" if beyond(-margin, "less") else "inconclusive"


@pytest.mark.parametrize(
    ("level", "unit"), [(100.0, 1.0), (10.0, 0.4)], ids=["margin from the seeds", "margin at its cap"]
)
def test_the_verdict_is_that_of_two_one_sided_t_tests(level, unit):
    source, seen = random.Random(5), []
    for _ in range(150):
        count, shift = source.randint(2, 8), source.uniform(-1.2, 1.2) * unit
        spread = source.uniform(0.05, 0.6) * unit
        base = [source.gauss(level, 1) for _ in range(count)]
        differences = [source.gauss(shift, spread) for _ in base]
        c = one(pairs(base, [b + d for b, d in zip(base, differences, strict=True)]))
        seen.append(c.verdict)
        mean = statistics.fmean(base)
        margin = max(min(SEED_SHARE * statistics.stdev(base), MARGIN_CAP * mean), LOSS_FLOOR * mean)
        assert c.verdict == tost(differences, margin)
    assert min(seen.count(v) for v in ("equivalent", "worse", "better", "inconclusive")) >= 10


def test_a_higher_loss_is_worse_and_a_lower_one_better():
    assert one(pairs([1.0, 1.1, 1.2], [2.0, 2.1, 2.2])).verdict == "worse"
    assert one(pairs([1.0, 1.1, 1.2], [0.5, 0.6, 0.7])).verdict == "better"


def test_a_lower_metric_is_worse_where_higher_is_better():
    down = metrics([0.90, 0.91, 0.92], [0.70, 0.71, 0.72])
    assert one(down, "accuracy", higher=True).verdict == "worse"
    assert one(down, "accuracy", higher=False).verdict == "better"


def test_the_loss_is_lower_is_better_whatever_the_metric():
    assert one(pairs([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]), higher=False).verdict == "worse"
    assert one(pairs([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]), higher=True).verdict == "worse"


def test_equal_runs_are_equivalent():
    c = one(pairs([1.0, 1.1, 1.2], [1.0, 1.1, 1.2]))
    assert (c.verdict, c.reason, c.interval) == ("equivalent", None, (0.0, 0.0))


@pytest.mark.parametrize("higher", [True, False])
def test_a_metric_that_is_zero_in_every_run_is_equivalent(higher):
    c = one(metrics([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]), "accuracy", higher=higher)
    assert (c.verdict, c.difference) == ("equivalent", 0.0)


def test_every_metric_has_a_comparison_of_its_own():
    trials = [
        trial(arm, s, 1 + s / 10, {"f1": 0.5 + s / 10, "bleu": 30.0 + s}) for arm in ("fp32", "fp16") for s in (0, 1)
    ]
    assert [c.quantity for c in compare_arms(trials, True)][:3] == ["loss", "f1", "bleu"]


def test_the_arms_are_compared_in_the_order_they_were_run():
    trials = [trial(arm, s, 1 + s / 10) for s in (0, 1) for arm in ("fp32", "fp16", "bf16")]
    assert [c.candidate for c in compare_arms(trials, True) if c.quantity == "loss"] == ["fp16", "bf16"]


# few seeds, and seeds that are no evidence


def test_one_seed_is_inconclusive_and_says_what_it_takes():
    c = one(pairs([1.0], [1.0]))
    assert (c.verdict, c.interval, c.difference, c.seeds) == ("inconclusive", None, 0.0, 1)
    assert "--seeds 3 or more" in c.reason


def test_seeds_that_give_the_same_baseline_count_once():
    c = one(pairs([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    assert (c.seeds, c.verdict) == (1, "inconclusive")


def test_two_distinct_baselines_among_three_seeds_make_two_pairs():
    c = one(pairs([1.0, 1.0, 2.0], [1.0, 1.5, 2.0]))
    assert (c.seeds, c.difference) == (2, 0.0)  # of the twins the first is kept


def test_a_candidate_seed_without_its_baseline_makes_no_pair():
    trials = [*pairs([1.0, 1.1, 1.2], [1.0, 1.1, 1.2]), trial("fp16", 9, 50.0)]
    assert one(trials).seeds == 3


def test_without_any_pair_nothing_is_said_about_the_candidate():
    c = one([trial("fp16", 0, 1.0)])
    assert (c.verdict, c.seeds, c.reason) == ("inconclusive", 0, "no paired run")


def test_an_undecided_comparison_says_how_many_seeds_it_takes():
    # differences of spread 1 and mean 0, margin 0.5: t(0.95, 12) / sqrt(13) = 0.494 is the first below it
    c = one(pairs([99.0, 100.0, 101.0], [100.0, 99.0, 101.0]))
    assert (c.verdict, c.margin, c.reason) == ("inconclusive", 0.5, "needs about 13 seeds")


@pytest.mark.parametrize(
    "differences",
    [(20.0, -20.0, 0.0), (0.0, 1.0, 2.0)],
    ids=["spread too wide for a hundred seeds", "mean beyond the margin, which no number brings inside"],
)
def test_a_hopeless_comparison_names_no_number_of_seeds(differences):
    base = (99.0, 100.0, 101.0)
    c = one(pairs(base, [b + d for b, d in zip(base, differences, strict=True)]))
    assert (c.verdict, c.margin, c.reason) == ("inconclusive", 0.5, "more seeds would hardly decide it")


# failures


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_candidate_that_is_not_finite_is_worse(value):
    c = one(pairs([1.0, 1.1, 1.2], [1.0, value, 1.2]))
    assert (c.verdict, c.reason, c.candidate_value, c.difference, c.interval) == (
        "worse",
        "not finite, while FP32 is",
        None,
        None,
        None,
    )


def test_a_metric_that_is_not_finite_is_worse_though_the_loss_is_equivalent():
    trials = metrics([0.9, 0.91, 0.92], [0.9, NAN, 0.92])
    assert one(trials).verdict == "equivalent"
    assert one(trials, "accuracy").verdict == "worse"


def test_a_candidate_that_failed_is_worse_and_says_how():
    trials = pairs([1.0, 1.1, 1.2], [1.0, 1.1, 1.2])
    trials[4] = replace(trials[4], error="no kernel for Half")
    c = one(trials)
    assert (c.verdict, c.reason) == ("worse", "the run failed: no kernel for Half")


def test_a_metric_that_failed_is_worse_and_says_how_though_the_loss_is_equivalent():
    trials = metrics([0.9, 0.91, 0.92], [0.9, 0.91, 0.92])
    trials[4] = replace(trials[4], metric=None, not_measured={"metric": "ValueError: no kernel for Half"})
    assert one(trials).verdict == "equivalent"
    metric = one(trials, "accuracy")
    assert metric.verdict == "worse"
    assert "ValueError: no kernel for Half" in metric.reason


def test_a_candidate_that_failed_at_its_first_step_is_worse():
    trials = [*pairs([1.0], []), trial("fp16", 0, [], error="boom")]
    assert one(trials).verdict == "worse"


@pytest.mark.parametrize("candidate", [1.0, NAN])
def test_one_baseline_that_is_not_finite_decides_nothing(candidate):
    c = one(pairs([NAN], [candidate]))
    assert (c.verdict, c.reason) == ("inconclusive", "the FP32 baseline is not finite")


@pytest.mark.parametrize("value", [NAN, INF])
def test_several_baselines_of_which_one_is_not_finite_decide_nothing(value):
    c = one(pairs([1.0, value, 1.2], [1.0, 1.1, 1.2]))
    assert (c.verdict, c.reason) == ("inconclusive", "the FP32 baseline is not finite")


# rates


def verdicts(seed: int, count: int, true_difference: float, spread: float, times: int = 300) -> list[str]:
    """Verdicts on simulated arms with a margin of 0.01: the floor, a thousandth of a loss of 10."""
    source = random.Random(seed)
    found = []
    for _ in range(times):
        base = [10 + source.gauss(0, 0.001) for _ in range(count)]
        found.append(one(pairs(base, [b + source.gauss(true_difference, spread) for b in base])).verdict)
    return found


def test_equal_arms_are_called_equivalent_nine_times_in_ten_with_five_seeds():
    # reference: power 0.95 for n = 5 at a spread of half the margin
    found = verdicts(1, 5, 0.0, 0.005)
    assert 0.90 <= found.count("equivalent") / len(found) <= 0.99
    assert found.count("worse") == 0


def test_three_seeds_find_equal_arms_equivalent_about_half_the_time():
    found = verdicts(2, 3, 0.0, 0.005)  # reference: power 0.55
    assert 0.45 <= found.count("equivalent") / len(found) <= 0.65


def test_an_arm_exactly_one_margin_worse_is_called_equivalent_at_most_one_time_in_twenty():
    found = verdicts(3, 5, 0.01, 0.005, times=600)
    assert 0.0 < found.count("equivalent") / len(found) <= 0.07


def test_an_arm_three_margins_worse_is_called_worse_and_never_equivalent():
    found = verdicts(4, 5, 0.03, 0.005)
    assert found.count("worse") / len(found) >= 0.95
    assert found.count("equivalent") == found.count("better") == 0


# costs


def costs(arm: str, seed: int = 0, **more: Any) -> Trial:
    fields = {"step_time_ms": 40.0, "peak_memory_bytes": 8 * 2**30, "energy_joules_per_sample": 0.5} | more
    return trial(arm, seed, 1.0 + seed / 10, **fields)


@pytest.mark.parametrize(
    ("field", "unit", "value", "ratio"),
    [
        ("step_time_ms", "ms a step", 10.0, 0.25),
        ("peak_memory_bytes", "bytes", 6 * 2**30, 0.75),
        ("energy_joules_per_sample", "joules a sample", 0.25, 0.5),
    ],
)
def test_a_cost_is_the_candidates_over_the_baselines(field, unit, value, ratio):
    c = one([costs("fp32"), costs("fp16", **{field: value})], field)
    assert (c.difference, c.verdict, c.unit, c.candidate_value, c.margin) == (ratio, "better", unit, value, COST_NOISE)
    assert "no interval" in c.reason


def test_costs_alone_are_ratios():
    trials = [replace(costs(arm), metric={"accuracy": 0.9}) for arm in ("fp32", "fp16")]
    trials = [replace(t, energy_joules_per_sample=None) for t in trials]
    found = {c.quantity: (c.is_ratio, c.verdict) for c in compare_arms(trials, True)}
    assert found == {
        "loss": (False, "inconclusive"),
        "accuracy": (False, "inconclusive"),
        "step_time_ms": (True, "equivalent"),
        "peak_memory_bytes": (True, "equivalent"),
        "energy_joules_per_sample": (True, "not-measured"),
    }


@pytest.mark.parametrize(
    ("ms", "verdict"),
    [(38.0, "better"), (38.9, "equivalent"), (40.0, "equivalent"), (41.1, "equivalent"), (41.3, "worse")],
)
def test_within_three_percent_costs_are_equal(ms, verdict):
    assert one([costs("fp32"), costs("fp16", step_time_ms=ms)], "step_time_ms").verdict == verdict


def test_an_idle_gpu_decides_nothing_about_time_and_energy_but_does_about_memory():
    idle = costs("fp32", tensor_core={"sm": 0.19})
    trials = [idle, costs("fp16", step_time_ms=20.0, peak_memory_bytes=2**30, energy_joules_per_sample=0.1)]
    found = {c.quantity: c for c in compare_arms(trials, True)}
    assert found["step_time_ms"].verdict == found["energy_joules_per_sample"].verdict == "inconclusive"
    assert found["step_time_ms"].difference == 0.5
    assert "mostly idle" in found["step_time_ms"].reason
    assert found["peak_memory_bytes"].verdict == "better"


@pytest.mark.parametrize("tensor_core", [None, {}, {"any_tensor": 0.0}, {"sm": 0.2}])
def test_a_busy_gpu_or_one_nobody_measured_is_not_idle(tensor_core):
    trials = [costs("fp32", tensor_core=tensor_core), costs("fp16", step_time_ms=20.0)]
    assert one(trials, "step_time_ms").verdict == "better"


def test_a_cost_that_was_not_measured_has_no_number_and_the_trials_reason():
    reasons = {"step_time_ms": "needs a CUDA GPU"}
    trials = [trial("fp32", 0, not_measured=reasons), trial("fp16", 0, not_measured=reasons)]
    c = one(trials, "step_time_ms")
    assert (c.verdict, c.reason, c.seeds) == ("not-measured", "needs a CUDA GPU", 0)
    assert (c.baseline_value, c.candidate_value, c.difference, c.margin) == (None, None, None, None)


def test_costs_come_from_the_pair_that_has_them():
    trials = [trial("fp32", 0, 1.0), costs("fp32", 1), trial("fp16", 0, 1.0), costs("fp16", 1, step_time_ms=20.0)]
    assert one(trials, "step_time_ms").difference == 0.5


# the verdict

SCALE = LossScaleAdvice(14, "dynamic", 2, 14, {}, 0.1, 0.0, 0.1, 0.0, "", "", 2000)
FINDING = Finding("MP101", "activation-overflow", "error", "head", "too large", {}, "keep it in FP32")
SEEDS = (0, 1, 2)
RUNS = tuple(replace(trial(arm, s, [1.0] * 100), emulated=False) for s in SEEDS for arm in ("fp32", "fp16", "bf16"))


def judged(arm: str, verdict: str, quantity: str = "loss", reason: str | None = None, **more: Any) -> Comparison:
    fields: dict[str, Any] = {"difference": 0.25, "interval": (0.1, 0.4), "margin": 0.05} | more
    return Comparison(
        quantity=quantity, unit="", baseline="fp32", candidate=arm, baseline_value=1.0, candidate_value=1.25, seeds=3,
        verdict=verdict, reason=reason, **fields,
    )  # fmt: skip


def decided(
    *comparisons: Comparison, findings: tuple[Finding, ...] = (), trials: Sequence[Trial] = RUNS
) -> tuple[str, str]:
    return decide(Advice("FP16", SCALE, findings), trials, comparisons)


def test_fp16_equal_to_fp32_is_a_go():
    verdict, reason = decided(judged("fp16", "equivalent"))
    assert (verdict, reason) == (
        "go",
        "FP16 with the recommended loss scale equals FP32 over 100 steps and 3 seeds",
    )


def test_a_better_metric_beside_an_equal_loss_is_a_go():
    assert decided(judged("fp16", "equivalent"), judged("fp16", "better", "accuracy"))[0] == "go"


def test_one_worse_quantity_outweighs_the_equal_ones():
    metric_lost = (judged("fp16", "equivalent"), judged("fp16", "worse", "accuracy"))
    assert decided(*metric_lost, judged("bf16", "worse"))[0] == "no-go"


def test_an_error_makes_a_go_a_go_with_changes_and_is_named():
    verdict, reason = decided(judged("fp16", "equivalent"), findings=(FINDING,))
    assert verdict == "go-with-changes"
    assert "MP101 has to be mended first" in reason


@pytest.mark.parametrize("severity", ["warning", "info"])
def test_a_finding_that_is_no_error_leaves_a_go_a_go(severity):
    assert decided(judged("fp16", "equivalent"), findings=(replace(FINDING, severity=severity),))[0] == "go"


def test_bf16_is_the_way_out_where_fp16_is_worse():
    verdict, reason = decided(judged("fp16", "worse"), judged("bf16", "equivalent"))
    assert verdict == "go-with-changes"
    assert reason.startswith("train in BF16, which equals FP32 over 100 steps and 3 seeds; FP16 does not (")
    assert reason.endswith("(loss differs by +0.25, margin 0.05)")


def test_fp16_and_bf16_both_worse_is_a_no_go():
    verdict, reason = decided(judged("fp16", "worse"), judged("bf16", "worse"))
    assert verdict == "no-go"
    assert reason.startswith("neither FP16 nor BF16 keeps up with FP32")


@pytest.mark.parametrize("others", [(), (judged("bf16", "inconclusive"),)])
def test_fp16_worse_and_bf16_undecided_is_inconclusive(others):
    verdict, reason = decided(judged("fp16", "worse"), *others)
    assert verdict == "inconclusive"
    assert reason.endswith("BF16 is undecided")


def test_an_undecided_fp16_is_inconclusive_and_says_why():
    verdict, reason = decided(judged("fp16", "inconclusive", reason="needs about 9 seeds"))
    assert verdict == "inconclusive"
    assert reason == (
        "FP16 against FP32 over 100 steps and 3 seeds is undecided: "
        "loss differs by +0.25, margin 0.05, needs about 9 seeds"
    )


def test_an_undecided_fp16_beside_an_equal_bf16_says_so():
    reason = decided(judged("fp16", "inconclusive"), judged("bf16", "equivalent"))[1]
    assert reason.endswith("margin 0.05. BF16 equals FP32")


def test_a_failed_run_gives_its_reason():
    failed = judged("fp16", "worse", reason="the run failed: boom", difference=None, interval=None)
    assert decided(failed, judged("bf16", "worse"))[1].endswith(
        "over 100 steps and 3 seeds (loss: the run failed: boom)"
    )
    assert "(loss: the run failed: boom)" in decided(failed)[1]


def test_an_undecided_quantity_without_a_difference_gives_its_reason():
    none = judged("fp16", "inconclusive", reason="the FP32 baseline is not finite", difference=None, interval=None)
    assert decided(none)[1].endswith(" is undecided: loss: the FP32 baseline is not finite")


def test_without_a_comparison_of_fp16_nothing_is_decided():
    verdict, reason = decided(trials=())
    assert verdict == "inconclusive"
    assert "it was not run" in reason


def test_a_cost_never_decides_the_verdict():
    assert decided(judged("fp16", "equivalent"), judged("fp16", "worse", "step_time_ms", difference=2.0))[0] == "go"
    assert decided(judged("fp16", "better", "step_time_ms", difference=0.5))[0] == "inconclusive"


@pytest.mark.parametrize(
    ("verdict", "ratio", "words"),
    [
        ("better", 0.5, "; 2.00x as fast"),
        ("worse", 1.25, "; slower, 0.80x the speed"),
        ("inconclusive", 1.28, "; step time x1.28, on a GPU that was mostly idle"),
    ],
)
def test_a_go_says_what_it_gains(verdict, ratio, words):
    cost = judged("fp16", verdict, "step_time_ms", difference=ratio)
    assert decided(judged("fp16", "equivalent"), cost)[1].endswith(words)


def test_a_go_says_what_memory_it_takes():
    cost = judged("fp16", "better", "peak_memory_bytes", difference=0.642)
    assert decided(judged("fp16", "equivalent"), cost)[1].endswith("; 0.64x the memory")


def test_an_emulated_run_says_so():
    runs = [replace(t, emulated=True) for t in RUNS]
    reason = decided(judged("fp16", "equivalent"), trials=runs)[1]
    assert reason.startswith("FP16 (emulated CUDA policy) with the recommended")


def test_one_seed_is_written_without_an_s():
    reason = decided(judged("fp16", "equivalent"), trials=RUNS[:3])[1]
    assert reason.endswith("over 100 steps and 1 seed")


def test_the_steps_that_bf16_equals_fp32_over_are_bf16s_own():
    runs = [replace(t, steps=2, losses=t.losses[:2], error="boom") if t.arm == "fp16" else t for t in RUNS]
    failed = judged("fp16", "worse", reason="the run failed: boom", difference=None, interval=None)
    reason = decided(failed, judged("bf16", "equivalent"), trials=runs)[1]
    assert reason.startswith("train in BF16, which equals FP32 over 100 steps and 3 seeds")


# the arms


def names(advice: LossScaleAdvice) -> list[str]:
    return [arm.name for arm in arms_for(advice, CPU)[0]]


def arm_named(name: str, advice: LossScaleAdvice = SCALE) -> Arm:
    return next(arm for arm in arms_for(advice, CPU)[0] if arm.name == name)


def test_the_arms_on_a_cpu():
    arms, left_out = arms_for(SCALE, CPU)
    assert [a.name for a in arms] == ["fp32", "fp16", "fp16-unscaled", "bf16", "fp16-pure"]
    assert [a.name for a in arms if a.control] == ["fp16-unscaled", "fp16-pure"]
    assert left_out == ["arm fp32-configured: left out, because your settings already compute FP32 in full"]


def test_settings_that_are_not_ieee_get_an_arm_of_their_own():
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        arms, left_out = arms_for(SCALE, CPU)
    finally:
        matmul.fp32_precision = before
    configured = next(a for a in arms if a.name == "fp32-configured")
    assert "mkldnn.matmul=bf16" in configured.precision.name
    assert (configured.precision.autocast, configured.precision.ieee) == (None, False)
    assert left_out == []


def test_the_baseline_is_ieee_fp32_and_comes_first():
    first = arms_for(SCALE, CPU)[0][0]
    assert (first.name, first.precision) == ("fp32", Precision("FP32", ieee=True))


def test_fp16_starts_at_the_recommended_scale():
    precision = arm_named("fp16").precision
    assert (precision.autocast, precision.log2_scale, precision.growth_interval) == (torch.float16, 14, 2000)


def test_fp16_grows_at_the_recommended_interval():
    assert arm_named("fp16", replace(SCALE, growth_interval=8000)).precision.growth_interval == 8000


def test_a_static_scale_never_grows():
    advice = replace(SCALE, mode="static", growth_interval=None)
    assert arm_named("fp16", advice).precision.growth_interval == 10**9


def test_where_no_scale_is_feasible_fp16_starts_at_the_upper_end():
    advice = replace(SCALE, log2_scale=None, mode="none", lower_log2=18, upper_log2=1)
    assert arm_named("fp16", advice).precision.log2_scale == 1


def test_where_no_scale_is_needed_fp16_trains_without_one_and_needs_no_unscaled_control():
    advice = replace(SCALE, log2_scale=0, mode="none", growth_interval=None)
    arms, left_out = arms_for(advice, CPU)
    assert [a.name for a in arms] == ["fp32", "fp16", "bf16", "fp16-pure"]
    assert arms[1].precision.log2_scale is None
    assert "arm fp16-unscaled: left out, because no loss scale is recommended" in left_out


def test_a_dynamic_scale_of_one_still_has_a_scaler():
    assert arm_named("fp16", replace(SCALE, log2_scale=0)).precision.log2_scale == 0


def test_where_no_gradient_was_seen_fp16_trains_without_a_scale():
    advice = LossScaleAdvice(None, "none", None, None, {}, None, None, None, None, None, "none seen")
    assert names(advice) == ["fp32", "fp16", "bf16", "fp16-pure"]


def test_the_other_arms_have_no_scale():
    assert arm_named("bf16").precision == Precision("BF16 autocast", torch.bfloat16)
    assert arm_named("fp16-unscaled").precision.log2_scale is None
    assert arm_named("fp16-pure").precision.pure is True


# the plan


def plan(steps: int, seeds: int, budget: float, a_step: float = 1.0) -> Plan:
    """All five arms at `a_step` seconds a step each."""
    return fit(arms_for(SCALE, CPU)[0], steps, seeds, {"fp32": a_step, "fp16": a_step}, budget)


def kept(found: Plan) -> list[str]:
    return [a.name for a in found.arms]


ALL_ARMS = ["fp32", "fp16", "fp16-unscaled", "bf16", "fp16-pure"]


def test_a_plan_within_its_budget_is_not_cut():
    found = plan(100, 3, budget=1500.0)
    assert (kept(found), found.steps, found.seeds, found.cut) == (ALL_ARMS, 100, 3, ())


def test_steps_are_cut_first():
    found = plan(100, 3, budget=750.0)
    assert (kept(found), found.steps, found.seeds) == (ALL_ARMS, 50, 3)
    assert found.cut == ("only 50 of 100 steps were trained, to keep the time budget of 750 s",)


def test_then_seeds():
    # three seeds would leave 10 steps; two leave 15, one 30
    found = plan(100, 3, budget=150.0)
    assert (kept(found), found.steps, found.seeds) == (ALL_ARMS, 30, 1)
    assert found.cut == (
        "only 30 of 100 steps were trained, to keep the time budget of 150 s",
        "only 1 of 3 seeds were run, to keep the time budget of 150 s",
    )


def test_twenty_steps_are_enough_to_keep_every_seed():
    assert (plan(100, 3, 300.0).steps, plan(100, 3, 300.0).seeds) == (20, 3)


def test_then_arms_least_needed_first():
    # 20 s: five arms 4 steps, four arms 5
    found = plan(100, 3, budget=20.0)
    assert (kept(found), found.steps, found.seeds) == (["fp32", "fp16", "fp16-unscaled", "bf16"], 5, 1)
    assert found.cut[0] == "arm fp16-pure: not run, the time budget of 20 s was too short"


def test_fp32_and_fp16_are_kept_even_over_budget():
    found = plan(100, 3, budget=1.0)
    assert (kept(found), found.steps, found.seeds) == (["fp32", "fp16"], MIN_VERIFY_STEPS, 1)
    assert len(found.cut) == 5


def test_the_other_arms_cost_what_fp16_costs():
    found = fit(arms_for(SCALE, CPU)[0], 100, 1, {"fp32": 1.0, "fp16": 0.25}, 100.0)
    assert found.steps == 50  # 1 + 4 * 0.25 = 2 s a step


def test_what_a_run_costs_besides_its_steps_is_taken_off_the_budget():
    found = fit(arms_for(SCALE, CPU)[0], 100, 1, {"fp32": 1.0, "fp16": 1.0}, 250.0, run_seconds=10.0)
    assert found.steps == 40  # 250 s less 5 runs of 10 s, at 5 s a step


def test_a_job_too_quick_to_time_is_not_cut():
    assert plan(100, 3, budget=60.0, a_step=0.0).cut == ()


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_short_verification_within_its_budget_is_not_cut(steps):
    found = plan(steps, 3, budget=1e6)
    assert (kept(found), found.steps, found.seeds, found.cut) == (ALL_ARMS, steps, 3, ())


PLANS = (st.integers(MIN_VERIFY_STEPS, 500), st.integers(1, 8), st.floats(0.1, 5000), st.floats(0.001, 5))


def seconds(found: Plan, a_step: float) -> float:
    return len(found.arms) * found.steps * found.seeds * a_step


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_a_plan_keeps_its_budget_unless_it_is_the_least_there_is(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    least = kept(found) == ["fp32", "fp16"] and found.steps == MIN_VERIFY_STEPS and found.seeds == 1
    assert least or seconds(found, a_step) <= budget * (1 + 1e-9)


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_everything_that_is_cut_is_named(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    text = " ".join(found.cut)
    assert [name for name in CUT_FIRST if f"arm {name}:" in text] == [
        n for n in CUT_FIRST if n in ALL_ARMS and n not in kept(found)
    ]
    assert (f"of {steps} steps" in text) == (found.steps < steps)
    assert (f"of {seeds} seeds" in text) == (found.seeds < seeds)


@settings(max_examples=100, deadline=None)
@given(*PLANS)
def test_nothing_is_cut_that_the_budget_allows(steps, seeds, budget, a_step):
    found = plan(steps, seeds, budget, a_step)
    if 5 * steps * seeds * a_step <= budget * (1 - 1e-9):
        assert found.cut == ()


# one arm's run


def one_weight() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model


def mean_output(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).float().mean()


def job(compute_loss: Callable[[nn.Module, Any], Any] = mean_output, evaluate: Any = None) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, compute_loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=one_weight,
        train_batches=lambda: [torch.ones(1, 1), torch.ones(1, 1) * 2],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.25)},
        evaluate=evaluate,
    )


FP32 = Arm("fp32", Precision("FP32", ieee=True))


def fp16(log2_scale: int | None) -> Arm:
    return Arm("fp16", Precision("FP16 autocast", torch.float16, log2_scale=log2_scale))


def train(the_job: Job, arm: Arm = FP32, steps: int = 4, **more: Any) -> Trial:
    return train_arm(the_job, arm, the_job.start(0, steps), steps, CPU, **more)


def test_an_arm_records_every_loss_in_order_and_starts_its_batches_anew():
    # w goes 0.5, 0.25, -0.25, -0.5; batches 1, 2, 1, 2
    assert train(job()).losses == (0.5, 0.5, -0.25, -1.0)


def test_a_trial_says_what_it_was():
    found = train(job())
    assert (found.arm, found.precision, found.seed, found.steps, found.emulated) == ("fp32", "FP32", 0, 4, False)
    assert train(job(), fp16(4)).emulated is True


def test_the_steps_a_scale_too_high_skips_are_counted():
    # the weight's gradient is scale times input, and inputs are 1, 2, 1, 2, 1: it overflows FP16 from 2^16 on
    found = train(job(), fp16(17), steps=5)
    assert found.skipped_steps == 3
    assert found.loss_scales_log2 == (16.0, 15.0, 15.0, 14.0, 14.0)
    assert found.final_log2_scale == 14.0
    assert found.losses == (0.5, 1.0, 0.5, 0.5, 0.25)  # the weight stays where it is while steps are skipped


def test_a_scale_that_fits_skips_nothing():
    found = train(job(), fp16(10))
    assert (found.skipped_steps, found.final_log2_scale) == (0, 10.0)
    assert "skipped_steps" not in found.not_measured


@pytest.mark.parametrize("arm", [FP32, fp16(None)])
def test_an_arm_without_a_scale_has_no_skipped_steps_and_says_why(arm):
    found = train(job(), arm)
    assert (found.skipped_steps, found.final_log2_scale, found.loss_scales_log2) == (None, None, None)
    assert "without a loss scale" in found.not_measured["skipped_steps"]
    assert "without a loss scale" in found.not_measured["final_log2_scale"]


def failing_at(step: int) -> Callable[[nn.Module, Any], torch.Tensor]:
    calls = []

    def compute_loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(batch)
        if len(calls) == step:
            raise RuntimeError("no kernel for Half")
        return mean_output(model, batch)

    return compute_loss


def test_a_run_that_fails_keeps_the_losses_until_then():
    found = train(job(failing_at(3), evaluate=lambda model: {"accuracy": 1.0}), fp16(None))
    assert found.losses == (0.5, 0.5)
    assert (found.steps, found.metric) == (2, None)
    assert "no kernel for Half" in found.error
    assert found.not_measured["metric"] == "the run failed"


def test_a_run_that_fails_at_once_is_a_trial_without_losses():
    found = train(job(failing_at(1)), fp16(None))
    assert (found.losses, found.steps) == ((), 0)
    assert "no kernel for Half" in found.error


@pytest.mark.parametrize("step", [1, 3])
def test_what_the_users_code_raises_in_the_baseline_is_raised(step):
    # a fault of the job, not of mixed precision
    with pytest.raises(UserCodeError, match="no kernel for Half"):
        train(job(failing_at(step)), FP32)


def test_the_metric_is_the_users():
    found = train(job(evaluate=lambda model: {"weight": model.weight.item()}))
    assert found.metric == {"weight": -1.0}
    assert (found.error, "metric" in found.not_measured) == (None, False)


def test_a_job_without_a_metric_says_so():
    found = train(job())
    assert found.metric is None
    assert found.not_measured["metric"] == "the target defines no evaluate(model)"


def no_test_set(model: nn.Module) -> dict[str, float]:
    raise ValueError("no test set")


def test_a_metric_that_fails_is_not_measured_and_the_losses_still_count():
    found = train(job(evaluate=no_test_set), fp16(None))
    assert found.losses == train(job(), fp16(None)).losses
    assert (found.error, found.metric, found.steps) == (None, None, 4)
    assert "no test set" in found.not_measured["metric"]


def test_a_metric_that_fails_in_the_baseline_is_raised():
    with pytest.raises(UserCodeError, match="no test set"):
        train(job(evaluate=no_test_set), FP32)


def test_a_loss_that_is_not_finite_is_recorded_and_does_not_end_the_run():
    found = train(job(lambda model, batch: mean_output(model, batch) / 0.0))
    assert found.steps == 4
    assert found.losses[0] == INF


def test_costs_have_no_number_on_a_cpu_and_say_why():
    found = train(job())
    for name in ("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample"):
        assert getattr(found, name) is None
        assert found.not_measured[name] == "needs a CUDA GPU; this run was on the CPU"


def test_each_step_is_announced():
    seen: list[int] = []
    train(job(), on_step=lambda: seen.append(1))
    assert len(seen) == 4
