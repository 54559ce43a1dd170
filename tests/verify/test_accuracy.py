"""An arm against FP32, paired by seed: the endpoint, the margin, and the verdict of the paired test."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arm_samples import metrics, one, pairs, trial
from mpdiag.verify.compare import compare_arms, endpoint
from mpdiag.verify.paired_test import LOSS_FLOOR, MARGIN_CAP, SEED_SHARE

NAN = math.nan


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


def test_the_margin_is_half_of_what_the_spread_between_fp32_seeds_surely_is():
    # three seeds of spread 1: the lower 95 % bound of the true spread is sqrt(2 / chi2(0.95, 2)) = 0.578
    c = one(pairs([99.0, 100.0, 101.0], [99.0, 100.0, 101.0]))
    assert c.margin == pytest.approx(0.5 * math.sqrt(2 / stats.chi2.ppf(0.95, 2)))
    assert c.margin == pytest.approx(0.289, abs=5e-4)
    assert (c.test.seed_noise, c.test.worse_beyond) == (1.0, 0.5)
    assert c.test.margin_from == "half the spread between 3 FP32 seeds, the lower 95 % bound of it"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.5, 2.0), min_size=3, max_size=6, unique=True), st.data())
def test_the_margin_comes_from_the_fp32_runs_alone(base, data):
    candidates = st.lists(st.floats(-1e6, 1e6), min_size=len(base), max_size=len(base))
    one_arm, other = data.draw(candidates), data.draw(candidates)
    assert one(pairs(base, one_arm)).margin == one(pairs(base, other)).margin


def test_every_arm_has_the_same_margin_also_one_that_ran_with_fewer_seeds():
    trials = [*pairs([99.0, 100.0, 101.0], [99.0, 100.0, 101.0]), trial("bf16", 0, 99.0), trial("bf16", 1, 100.0)]
    assert one(trials, arm="bf16").margin == one(trials).margin
    assert one(trials, arm="bf16").seeds == 2


def test_a_loss_that_crosses_zero_has_a_margin_from_its_magnitude():
    swinging = [[0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 2.0, -2.0], [0.0, 0.0, 3.0, -3.0]]
    assert [endpoint(trial("fp32", 0, losses)) for losses in swinging] == [0.0] * 3
    assert one(pairs(swinging, swinging)).margin == pytest.approx(0.002)  # a thousandth of the mean size, 2


def test_the_users_own_margin_goes_first():
    base = [0.80, 0.81, 0.82]
    trials = metrics(base, [b - 0.03 for b in base])
    found = {c.quantity: c for c in compare_arms(trials, True, {"accuracy": 0.05})}
    assert (found["accuracy"].margin, found["accuracy"].verdict) == (0.05, "equivalent")
    assert found["accuracy"].test.margin_from == "your own"
    assert found["loss"].test.margin_from != "your own"
    assert one(trials, "accuracy").verdict == "worse"


def test_one_margin_for_every_metric_leaves_the_loss_alone():
    trials = metrics([0.80, 0.81, 0.82], [0.80, 0.81, 0.82])
    found = {c.quantity: c.margin for c in compare_arms(trials, True, {"metric": 0.05})}
    assert found["accuracy"] == 0.05
    assert found["loss"] != 0.05
    assert compare_arms(trials, True, {"loss": 0.25})[0].margin == 0.25


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


def tost(differences: Sequence[float], margin: float, far: float) -> str:
    """scipy's one-sided tests at 5 %: the oracle for the verdict on a loss."""
    beyond = lambda point, side: stats.ttest_1samp(differences, point, alternative=side).pvalue < 0.05
    if beyond(-margin, "greater") and beyond(margin, "less"):
        return "equivalent"
    return "worse" if beyond(far, "greater") else "better" if beyond(-far, "less") else "inconclusive"


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
        plain, surely = statistics.stdev(base), math.sqrt((count - 1) / stats.chi2.ppf(0.95, count - 1))
        margin, beyond = (
            max(min(SEED_SHARE * s, MARGIN_CAP * mean), LOSS_FLOOR * mean) for s in (plain * surely, plain)
        )
        assert c.verdict == tost(differences, margin, beyond)
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
