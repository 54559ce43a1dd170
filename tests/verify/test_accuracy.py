"""An arm against FP32, paired by seed: endpoint, margin, verdict, and what fails whatever the means."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from arm_samples import metrics, one, pairs, trial
from mpdiag.diagnosis import Trial
from mpdiag.verify.compare import compare_arms, endpoint
from mpdiag.verify.paired_test import LOSS_FLOOR, MARGIN_CAP, SEED_SHARE, power

NAN, INF = math.nan, math.inf


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


def coarse(base: Sequence[float], other: Sequence[float], more: Sequence[float] = ()) -> list[Trial]:
    """Runs whose losses differ, with a metric that moves in steps; `more`: a control's values."""
    made = [trial("fp32", seed, 1 + seed / 10, value) for seed, value in enumerate(base)]
    made += [trial("fp16", seed, 1.0001 + seed / 10, value) for seed, value in enumerate(other)]
    return made + [trial("control", seed, 2 + seed / 10, value) for seed, value in enumerate(more)]


def test_equal_differences_of_a_coarse_metric_are_known_to_a_step_and_no_better():
    hits = [359 / 360, 358 / 360, 359 / 360]
    c = one(coarse(hits, hits), "accuracy")
    assert c.interval == pytest.approx((-1 / 360, 1 / 360))
    assert (c.verdict, c.test.resolution) == ("equivalent", pytest.approx(1 / 360))  # the margin is 0.005
    assert c.test.upper_bound == pytest.approx(1 / 360)


def test_a_step_beyond_the_margin_leaves_it_undecided_and_more_seeds_do_not_help():
    c = one(coarse([0.98, 0.99, 0.98], [0.98, 0.99, 0.98]), "accuracy")
    assert (c.verdict, c.interval) == ("inconclusive", pytest.approx((-0.01, 0.01)))
    assert c.test.seeds_needed is None
    assert c.reason == (
        "all pairs differ by the same, and the metric moves in steps of 0.01: too coarse for a margin of 0.0049; a "
        "larger set to validate on would tell"
    )


def test_the_step_is_the_smallest_between_any_two_runs_also_a_controls():
    c = one(coarse([0.98, 0.98, 0.98], [0.98, 0.98, 0.98], [0.978, 0.5, 0.1]), "accuracy")
    assert c.test.resolution == pytest.approx(0.002)
    assert (c.verdict, c.interval) == ("equivalent", pytest.approx((-0.002, 0.002)))


def test_a_step_is_no_rounding_error():
    base = [0.9972222447395325, 0.9944444298744202, 0.9972222447395325]
    other = [0.9972222328186035, 0.9944444298744202, 0.9972222447395325]  # FP32's last bit
    assert one(coarse(base, other), "accuracy").test.resolution == pytest.approx(1 / 360, rel=1e-4)


def test_the_same_loss_of_a_step_in_every_pair_is_widened_too():
    c = one(coarse([0.90, 0.91, 0.92], [0.89, 0.90, 0.91]), "accuracy")
    assert c.interval == pytest.approx((-0.02, 0.0), abs=1e-9)
    assert c.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("fp32", "fp16"), [(18 / 20, 17 / 20), (17 / 20, 18 / 20), (90.0, 85.0), (1.0, 0.9), (18.0, 17.0)]
)
def test_one_sample_of_few_fewer_in_every_pair_is_too_coarse_to_tell(fp32, fp16):
    c = one(coarse([fp32] * 3, [fp16] * 3), "accuracy")
    step = abs(fp32 - fp16)
    assert (c.verdict, c.test.resolution) == ("inconclusive", pytest.approx(step))
    assert c.interval == pytest.approx((fp16 - fp32 - step, fp16 - fp32 + step))
    assert "too coarse for a margin of" in c.reason


@pytest.mark.parametrize(("fp32", "fp16"), [(18 / 20, 15 / 20), (1.0, 0.1), (0.98, 0.1), (1.0, 0.5), (90.0, 75.0)])
def test_several_samples_fewer_in_every_pair_are_worse(fp32, fp16):
    assert one(coarse([fp32] * 3, [fp16] * 3), "accuracy").verdict == "worse"


@pytest.mark.parametrize("control", [1.0, 0.1])
def test_a_metric_in_which_no_run_differed_but_failures_says_so(control):
    c = one(coarse([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [control] * 3), "accuracy")
    assert (c.verdict, c.interval, c.test.resolution) == ("equivalent", (0.0, 0.0), None)
    assert c.reason == "FP32's runs are equal in this metric: it may be too coarse to tell a small difference"


def test_hits_among_ten_images_that_are_equal_in_all_pairs_show_nothing():
    c = one(coarse([0.7, 0.8, 0.7], [0.7, 0.8, 0.7]), "accuracy")
    assert c.test.resolution == pytest.approx(0.1)
    assert (c.verdict, c.interval) == ("inconclusive", pytest.approx((-0.1, 0.1)))


def test_a_fine_metric_of_seeds_far_apart_is_not_taken_for_a_coarse_one():
    c = one(coarse([0.2, 0.5, 0.8], [0.20001, 0.50001, 0.80001]), "accuracy")
    assert (c.verdict, c.difference) == ("equivalent", pytest.approx(1e-5))


def test_runs_that_are_equal_to_the_bit_are_equal_in_a_coarse_metric_too():
    c = one(metrics([0.98, 0.99, 0.98], [0.98, 0.99, 0.98]), "accuracy")  # the losses are the same
    assert (c.verdict, c.interval, c.test.resolution, c.reason) == ("equivalent", (0.0, 0.0), None, None)


def test_an_interval_with_a_width_of_its_own_is_left_as_it_is():
    c = one(coarse([0.90, 0.91, 0.92], [0.90, 0.91, 0.91]), "accuracy")
    assert c.test.resolution is None
    assert c.interval == pytest.approx(stats.t.interval(0.9, 2, loc=c.difference, scale=stats.sem([0, 0, -0.01])))


def test_a_loss_has_no_steps():
    c = one(pairs([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))
    assert (c.interval, c.test.resolution) == ((0.0, 0.0), None)


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
    assert c.reason == "one seed gives no interval"


def test_seeds_that_give_the_same_baseline_count_once():
    c = one(pairs([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]))
    assert (c.seeds, c.verdict) == (1, "inconclusive")


def test_runs_that_only_rounding_tells_apart_count_once():
    # a seed that changes nothing, on a GPU whose sums come in another order each time
    alike = [[1.0, 0.9, 0.8, 0.7], [1.0 + 2**-22, 0.9, 0.8 + 2**-21, 0.71]]
    assert one(pairs(alike, alike)).seeds == 1


def test_seeds_that_begin_at_one_loss_and_then_part_count_each():
    # a last layer of zeros: every seed begins at log(classes)
    parting = [[2.303, 2.2, 2.1, 2.0], [2.303, 2.21, 2.12, 2.0]]
    assert one(pairs(parting, parting)).seeds == 2


STEPS = 60


def leaving(seed: int, begins: int, drift: float = 0.0) -> list[float]:
    """Losses that stay at ln 50 until the step that a warm-up begins at, and then fall, each batch in its own way.

    drift: what rounding has changed by the time the loss moves; it grows by a tenth each step.
    """
    source, level, losses = random.Random(seed), 3.912, []
    for step in range(STEPS):
        if step >= begins:
            level -= 0.01 + 0.004 * source.random()
        noise = source.gauss(0, 0.01) if step >= begins else 0.0
        losses.append(level + noise + drift * 1.1 ** max(step - begins, 0))
    return losses


@pytest.mark.parametrize("begins", [1, 4, 10, 30])
def test_seeds_that_leave_one_loss_late_count_each(begins):
    runs = [leaving(seed, begins) for seed in range(3)]
    assert one(pairs(runs, runs)).seeds == 3


@pytest.mark.parametrize("begins", [1, 4, 10, 30])
@pytest.mark.parametrize("drift", [1e-8, 1e-7, 1e-6, 1e-5])
def test_runs_that_leave_one_loss_late_and_together_count_once(begins, drift):
    runs = [leaving(0, begins), leaving(0, begins, drift), leaving(0, begins, -drift)]
    assert one(pairs(runs, runs)).seeds == 1


def test_runs_that_never_leave_their_first_loss_count_once():
    runs = [[3.912 + drift * step for step in range(STEPS)] for drift in (0.0, 1e-8, -1e-7)]
    assert one(pairs(runs, runs)).seeds == 1


def test_two_distinct_baselines_among_three_seeds_make_two_pairs():
    c = one(pairs([1.0, 1.0, 2.0], [1.0, 1.5, 2.0]))
    assert (c.seeds, c.difference) == (2, 0.0)  # of the twins the first is kept


def test_a_candidate_seed_without_its_baseline_makes_no_pair():
    trials = [*pairs([1.0, 1.1, 1.2], [1.0, 1.1, 1.2]), trial("fp16", 9, 50.0)]
    assert one(trials).seeds == 3


def test_without_any_pair_nothing_is_said_about_the_candidate():
    c = one([trial("fp16", 0, 1.0)])
    assert (c.verdict, c.seeds, c.reason) == ("inconclusive", 0, "no paired run")


def test_between_the_sure_margin_and_the_plain_one_lies_inconclusive():
    # margin 0.289, worse beyond 0.5
    verdicts = [
        one(pairs([99.0, 100.0, 101.0], [b + d for b in (99.0, 100.0, 101.0)])).verdict for d in (0.2, 0.4, 0.6)
    ]
    assert verdicts == ["equivalent", "inconclusive", "worse"]


def test_an_arm_that_can_only_be_better_is_not_worse_though_its_interval_is_wide():
    c = one(pairs([99.0, 100.0, 101.0], [98.3, 99.9, 100.0]))  # differences -0.7, -0.1, -1.0
    low, high = c.interval
    assert low < -0.5 < high < c.margin
    assert (c.verdict, c.test.noninferior) == ("inconclusive", True)
    assert c.test.upper_bound == high
    assert one(pairs([99.0, 100.0, 101.0], [99.7, 100.1, 102.0])).test.noninferior is False


def test_of_a_metric_the_harm_is_what_it_loses():
    c = one(metrics([0.90, 0.91, 0.92], [0.902, 0.913, 0.921]), "accuracy")
    assert c.test.upper_bound == pytest.approx(-c.interval[0])
    assert c.test.noninferior is True
    lower = one(metrics([0.90, 0.91, 0.92], [0.902, 0.913, 0.921]), "accuracy", higher=False)
    assert lower.test.upper_bound == pytest.approx(lower.interval[1])


def test_the_spread_of_the_differences_is_recorded():
    c = one(pairs([99.0, 100.0, 101.0], [100.0, 99.0, 101.0]))
    assert c.test.spread == 1.0
    assert c.test.spread_in_margins(c.margin) == pytest.approx(1 / c.margin)


def test_an_undecided_comparison_says_how_many_seeds_it_takes():
    c = one(pairs([99.0, 100.0, 101.0], [100.0, 99.0, 101.0]))
    assert (c.verdict, c.reason) == ("inconclusive", f"needs about {c.test.seeds_needed} seeds")
    # with n seeds of such spread the margin is half of its lower bound; differences scatter by 1 around 0
    margin = lambda n: 0.5 * math.sqrt((n - 1) / stats.chi2.ppf(0.95, n - 1))
    needed = c.test.seeds_needed
    assert power(needed, 1.0, margin(needed)) >= 0.8 > power(needed - 1, 1.0, margin(needed - 1))
    assert needed == 49


def test_a_decided_comparison_needs_no_seeds():
    assert one(pairs([99.0, 100.0, 101.0], [99.0, 100.0, 101.0])).test.seeds_needed is None


def test_a_hopeless_comparison_names_no_number_of_seeds():
    base = (99.0, 100.0, 101.0)
    c = one(pairs(base, [b + d for b, d in zip(base, (20.0, -20.0, 0.0), strict=True)]))
    assert (c.verdict, c.test.seeds_needed, c.reason) == ("inconclusive", None, "more seeds would hardly decide it")


# failures


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_candidate_that_is_not_finite_is_worse(value):
    c = one(pairs([1.0, 1.1, 1.2], [1.0, value, 1.2]))
    assert (c.verdict, c.reason, c.candidate_value, c.difference, c.interval) == (
        "worse",
        "not finite at step 1 of seed 1, while FP32 is",
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


@pytest.mark.parametrize("without", [(4,), (3, 4, 5)])
def test_a_metric_that_evaluate_did_not_give_is_not_measured_and_says_why(without):
    trials = metrics([0.9, 0.91, 0.92], [0.9, 0.91, 0.92])
    for index in without:
        trials[index] = replace(trials[index], metric=None, not_measured={"metric": "no kernel for Half, at a.py:3"})
    assert one(trials).verdict == "equivalent"
    metric = one(trials, "accuracy")
    assert (metric.verdict, metric.difference, metric.interval) == ("not-measured", None, None)
    assert metric.reason == "evaluate() gives no value here: no kernel for Half, at a.py:3"
    assert metric.test.noninferior is None
    assert 0.9 < metric.baseline_value < 0.92  # FP32 has one


def test_a_metric_that_lacks_a_seed_is_worse_all_the_same_where_the_others_are():
    trials = metrics([0.9, 0.91, 0.92], [0.7, 0.71, 0.72])
    trials[4] = replace(trials[4], metric=None)
    assert (one(trials, "accuracy").verdict, one(trials, "accuracy").seeds) == ("worse", 2)
    trials[5] = replace(trials[5], metric={"accuracy": NAN})
    assert one(trials, "accuracy").reason == "not finite with seed 2, while FP32 is"


def test_a_run_that_failed_before_its_metric_is_worse_in_it():
    trials = metrics([0.9, 0.91, 0.92], [0.9, 0.91, 0.92])
    trials[4] = replace(trials[4], metric=None, error="boom")
    assert one(trials, "accuracy").reason == "the run failed: boom"


@pytest.mark.parametrize("other", [1.0, 9.0])
def test_the_loss_of_one_step_shows_nothing_for_it_comes_before_the_first_update(other):
    short = pairs([[1.0], [1.1], [1.2]], [[other], [other], [other]])
    assert (one(short).verdict, one(short).reason) == (
        "inconclusive",
        "one step shows no training: its loss comes before the first update",
    )
    assert one(pairs([[1.0] * 2, [1.1] * 2, [1.2] * 2], [[1.0] * 2, [1.1] * 2, [1.2] * 2])).verdict == "equivalent"


def test_a_loss_that_is_not_finite_at_the_only_step_is_worse():
    assert one(pairs([[1.0], [1.1]], [[NAN], [1.1]])).verdict == "worse"


def test_a_candidate_that_failed_at_its_first_step_is_worse():
    trials = [*pairs([1.0], []), trial("fp16", 0, [], error="boom")]
    assert one(trials).verdict == "worse"


def test_a_nan_early_in_the_run_fails_though_the_run_recovered():
    base = [[1.0 + s / 10] * 8 for s in range(3)]
    other = [list(losses) for losses in base]
    other[2][1] = NAN
    c = one(pairs(base, other))
    assert (c.verdict, c.reason) == ("worse", "not finite at step 2 of seed 2, while FP32 is")
    assert c.test.noninferior is False


def test_a_nan_that_fp32_has_too_is_not_mixed_precisions_fault():
    base = [[1.0 + s / 10] * 8 for s in range(3)]
    base[2][1] = INF
    other = [list(losses) for losses in base]
    other[2][2] = NAN
    assert one(pairs(base, other)).verdict == "equivalent"
    other[2][7] = NAN  # ... but where FP32 recovers and mixed precision does not, it is
    assert one(pairs(base, other)).verdict == "worse"


def test_a_nan_only_in_mixed_precision_fails_also_beside_a_seed_in_which_fp32_broke():
    c = one(pairs([1.0, NAN, 1.2], [NAN, NAN, 1.2]))
    assert (c.verdict, c.reason) == ("worse", "not finite at step 1 of seed 0, while FP32 is")


def test_a_nan_with_a_seed_that_repeats_another_fails_too():
    c = one(pairs([1.0, 1.0, 1.2], [1.0, NAN, 1.2]))
    assert (c.verdict, c.seeds) == ("worse", 2)


def test_one_seed_is_enough_to_fail():
    assert one(pairs([1.0], [NAN])).verdict == "worse"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_metric_that_is_not_finite_says_with_which_seed(value):
    c = one(metrics([0.9, 0.91, 0.92], [0.9, 0.91, value]), "accuracy")
    assert (c.verdict, c.reason) == ("worse", "not finite with seed 2, while FP32 is")


def test_a_metric_that_is_not_finite_in_fp32_either_decides_nothing():
    c = one(metrics([0.9, NAN, 0.92], [0.9, NAN, 0.92]), "accuracy")
    assert (c.verdict, c.reason) == ("inconclusive", "the FP32 baseline is not finite")


VAST = 1.5e308


@pytest.mark.parametrize(
    ("base", "other"),
    [([VAST] * 3, [-VAST] * 3), ([VAST] * 3, [VAST] * 3), ([1.0, 1.1, 1.2], [VAST, 1.1, 1.2]), ([1, VAST], [1.0, 1.0])],
)  # fmt: skip
def test_values_whose_squares_are_beyond_every_float_are_not_judged(base, other):
    c = one(metrics(base, other), "accuracy")
    assert (c.verdict, c.reason) == ("inconclusive", "values beyond 1e+150 cannot be judged")
    assert (c.baseline_value, c.candidate_value, c.difference, c.interval) == (None, None, None, None)


@pytest.mark.parametrize("vast", [VAST, 1e200])
def test_losses_whose_squares_are_beyond_every_float_are_not_judged(vast):
    base = [[1.0, 1.0, vast, 1.0 + s] for s in range(3)]
    assert one(pairs(base, base)).verdict == "inconclusive"
    assert one(pairs(base, [[1.0] * 4] * 3)).verdict == "inconclusive"
    assert one(pairs([1.0, 1.1, 1.2], [vast] * 3)).verdict in ("worse", "inconclusive")


def test_a_vast_value_of_a_control_leaves_the_other_arms_steps_alone():
    c = one(coarse([0.98, 0.99, 0.98], [0.98, 0.99, 0.98], [VAST] * 3), "accuracy")
    assert c.test.resolution == pytest.approx(0.01)


def test_a_metric_that_only_fp32_gives_is_not_measured():
    trials = [trial("fp32", 0, 1.0, {"f1": 0.5, "bleu": 30.0}), trial("fp16", 0, 1.0, {"f1": 0.5})]
    c = one(trials, "bleu")
    assert (c.verdict, c.reason) == ("not-measured", "evaluate() gives no bleu here, while in FP32 it does")


@pytest.mark.parametrize("candidate", [1.0, NAN])
def test_one_baseline_that_is_not_finite_decides_nothing(candidate):
    c = one(pairs([NAN], [candidate]))
    assert (c.verdict, c.reason) == ("inconclusive", "the FP32 baseline is not finite")


@pytest.mark.parametrize("value", [NAN, INF])
def test_several_baselines_of_which_one_is_not_finite_decide_nothing(value):
    c = one(pairs([1.0, value, 1.2], [1.0, 1.1, 1.2]))
    assert (c.verdict, c.reason) == ("inconclusive", "the FP32 baseline is not finite")
