"""Ratios of step times: their interval against simulations of a known truth, the verdicts, the machine's noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.verify.block_ratio import block_ratios, geometric_mean, judge, noise_of, ratio_interval


def arm(name, *blocks):
    return ArmTime(name, name, blocks[0], (1.0, 1.0), 1.0, blocks, len(blocks))


def timing(baseline, again):
    return Timing((arm("fp32", *baseline),), arm("again", *again), 8, len(baseline), True, 1.0)


def test_ratios_pair_the_blocks_of_one_round_and_leave_lost_ones_out():
    assert block_ratios(arm("fp16", 5.0, None, 6.0), arm("fp32", 10.0, 10.0, 4.0)) == [0.5, 1.5]


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


@pytest.mark.parametrize("blocks", [4, 8, 20])
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
        ((0.9, 1.2), "inconclusive"),
        ((0.96, 1.01), "inconclusive"),
    ],
)
def test_the_verdict_on_an_interval(interval, verdict):
    assert judge(interval) == verdict


def test_a_baseline_that_repeats_itself_is_no_noise():
    assert noise_of(timing([10.0, 10.1, 9.9, 10.0], [10.0, 10.0, 10.0, 10.1])) is None


def test_a_baseline_that_differs_from_itself_by_five_percent_lets_nothing_be_compared():
    found = noise_of(timing([10.0, 10.0, 10.0, 10.0], [10.5, 10.4, 10.6, 10.5]))
    assert "x1.050" in found
    assert "too noisy" in found


def test_a_control_that_scatters_widely_lets_nothing_be_compared():
    found = noise_of(timing([10.0, 10.0, 10.0, 10.0], [8.0, 12.6, 9.0, 11.0]))
    assert "too noisy" in found


def test_a_control_of_two_blocks_tells_nothing():
    assert "too few blocks" in noise_of(timing([10.0, 10.0], [10.0, 10.0]))
