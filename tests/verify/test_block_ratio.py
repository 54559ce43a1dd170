"""Ratios of step times: their interval against simulations of a known truth, the verdicts, the machine's noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.verify.block_ratio import (
    block_ratios,
    geometric_mean,
    judge,
    noise_band,
    noise_of,
    paired_blocks,
    ratio_interval,
    undecided,
)


def arm(name, *blocks):
    return ArmTime(name, name, blocks[0], (1.0, 1.0), 1.0, blocks, len(blocks))


def timing(baseline, again):
    return Timing((arm("fp32", *baseline),), arm("again", *again), 8, len(baseline), True, 1.0)


def test_ratios_pair_the_blocks_of_one_round_and_leave_lost_ones_out():
    assert block_ratios(arm("fp16", 5.0, None, 6.0), arm("fp32", 10.0, 10.0, 4.0)) == [0.5, 1.5]
    assert paired_blocks(arm("fp16", 5.0, None, 6.0), arm("fp32", 10.0, 10.0, 4.0)) == [(5.0, 10.0), (6.0, 4.0)]


def test_the_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert geometric_mean([4.0, 0.25]) == pytest.approx(1.0)


def test_fewer_than_three_blocks_give_no_interval():
    assert ratio_interval([1.0, 1.1]) is None


def test_equal_ratios_give_an_interval_without_width():
    assert ratio_interval([0.5, 0.5, 0.5]) == pytest.approx((0.5, 0.5))


@settings(deadline=None)  # the first call imports scipy
@given(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=12))
def test_the_interval_holds_the_geometric_mean(ratios):
    low, high = ratio_interval(ratios)
    assert low <= geometric_mean(ratios) * (1 + 1e-9)
    assert high >= geometric_mean(ratios) * (1 - 1e-9)


@pytest.mark.parametrize("blocks", [3, 4, 5, 8, 20])  # three: as many windows of energy are the fewest
def test_the_interval_covers_a_known_ratio_at_least_as_often_as_it_claims(blocks):
    generator = np.random.default_rng(blocks)
    truth, hits, times = math.log(0.6), 0, 300
    for _ in range(times):
        low, high = ratio_interval(np.exp(truth + 0.02 * generator.standard_normal(blocks)).tolist())
        hits += low <= 0.6 <= high
    assert hits / times >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / times)


def test_ten_blocks_that_scatter_by_one_percent_give_one_percent_either_way():
    generator = np.random.default_rng(0)
    widths = []
    for _ in range(50):
        low, high = ratio_interval(np.exp(0.01 * math.sqrt(2) * generator.standard_normal(10)).tolist())
        widths.append((high - low) / 2)
    assert np.mean(widths) == pytest.approx(0.01, rel=0.15)  # both arms' blocks scatter, so the ratio's by sqrt 2


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.4, 0.6), "better"),
        ((1.1, 1.3), "worse"),
        ((0.98, 1.02), "equivalent"),
        ((0.975, 0.99), "equivalent"),
        ((0.95, 0.985), "inconclusive"),  # faster, but whether by more than makes no difference is open
        ((1.02, 1.08), "inconclusive"),
        ((0.9, 0.969), "better"),
        ((1.031, 1.2), "worse"),
        ((0.9, 1.2), "inconclusive"),
        ((0.96, 1.01), "inconclusive"),
    ],
)
def test_the_verdict_on_an_interval(interval, verdict):
    assert judge(interval) == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.90, 0.955), "better"),
        ((0.90, 0.965), "inconclusive"),  # clear of 3 %, not of the noise
        ((1.035, 1.2), "inconclusive"),
        ((1.045, 1.2), "worse"),
        ((0.99, 1.01), "inconclusive"),  # a machine that strays by more than 3 % cannot tell that nothing does
    ],
)
def test_the_verdict_where_fp32_strays_from_itself_by_four_percent(interval, verdict):
    assert judge(interval, noise=0.04) == verdict


@given(st.floats(0.5, 2.0), st.floats(1.0, 1.5), st.floats(0.0, 0.05))
def test_turned_round_the_verdict_is_the_opposite(low, width, noise):
    opposite = {"better": "worse", "worse": "better"}
    found = judge((low, low * width), noise)
    assert judge((1 / (low * width), 1 / low), noise) == opposite.get(found, found)


def test_the_reason_for_no_verdict_names_what_is_in_the_way():
    assert undecided(0.041) == "FP32 against itself strays by up to 4.1% here, and the interval is not clear of that"
    assert undecided(0.01) == "the interval is neither within 3% of 1 nor clear of it"


def test_the_noise_is_the_farther_end_of_what_fp32_against_itself_reads_either_way():
    high, low = timing([10.0] * 3, [10.2, 10.3, 10.25]), timing([10.2, 10.3, 10.25], [10.0] * 3)
    assert noise_band(high) == pytest.approx(ratio_interval([1.02, 1.03, 1.025])[1] - 1)
    assert noise_band(low) == pytest.approx(noise_band(high), rel=0.01)
    assert noise_band(timing([10.0] * 2, [10.0] * 2)) is None


def test_a_launch_bound_job_whose_control_strays_is_said_to_be_noisy():
    found = noise_of(timing([3.2] * 8, [3.2 * (1.018 + wobble) for wobble in (0.07, -0.06, 0.05, -0.04) * 2]))
    assert "too noisy" in found


def test_a_baseline_that_repeats_itself_is_no_noise():
    assert noise_of(timing([10.0, 10.1, 9.9, 10.0], [10.0, 10.0, 10.0, 10.1])) is None


def test_a_baseline_that_differs_from_itself_by_five_percent_is_said_to_be_noisy():
    found = noise_of(timing([10.0, 10.0, 10.0, 10.0], [10.5, 10.4, 10.6, 10.5]))
    assert found.startswith("FP32 against itself reads x1.050 (1.0")
    assert found.endswith(" here: too noisy to tell small differences")


def test_a_control_that_scatters_widely_is_said_to_be_noisy():
    found = noise_of(timing([10.0, 10.0, 10.0, 10.0], [8.0, 12.6, 9.0, 11.0]))
    assert "too noisy" in found


def test_a_control_of_two_blocks_tells_no_noise():
    few = timing([10.0, 10.0], [10.0, 10.0])
    assert (noise_of(few), noise_band(few)) == (None, None)


@pytest.mark.parametrize(("interval", "noise"), [((1.299, 1.503), 0.158), ((1.207, 1.422), 0.135)])
def test_a_slowdown_that_is_clear_of_a_wide_noise_is_one(interval, noise):
    assert judge(interval, noise) == "worse"
    assert judge((1 / interval[1], 1 / interval[0]), noise) == "better"
