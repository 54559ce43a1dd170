"""Few seeds, seeds that are no evidence, and how many seeds an undecided comparison takes."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from arm_samples import metrics, one, pairs, trial
from mpdiag.verify.paired_test import power

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
