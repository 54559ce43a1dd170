"""The verdict on a metric that moves in steps, too coarse to tell a small difference."""

from __future__ import annotations

import pytest
from scipy import stats

from arm_samples import coarse, metrics, one, pairs


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
