"""Values that are not finite, missing or vast, and runs that failed: what fails an arm whatever the means."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from arm_samples import coarse, metrics, one, pairs, trial

NAN, INF = math.nan, math.inf


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
