"""The band around the smoothed difference of the loss curves: who is told apart, from which step, and how surely."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from arm_samples import trial
from mpdiag.accuracy import CurveBand
from mpdiag.diagnosis import Trial
from mpdiag.verify.curve_band import MOST_POINTS, curve_bands, simultaneous, smoothed


def runs(differences: np.ndarray, arm: str = "fp16") -> list[Trial]:
    """FP32 runs that differ by seed, and an arm that differs from them by [seeds, steps]."""
    base = [np.linspace(3, 1, differences.shape[1]) + 0.1 * seed for seed in range(len(differences))]
    made = [trial("fp32", seed, losses.tolist()) for seed, losses in enumerate(base)]
    return made + [trial(arm, s, (b + d).tolist()) for s, (b, d) in enumerate(zip(base, differences, strict=True))]


def band(trials: Sequence[Trial]) -> CurveBand:
    (found,) = curve_bands(trials)
    return found


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


# smoothing


def test_the_mean_is_pandas_exponential_mean():
    pandas = pytest.importorskip("pandas")
    curves = noise(1, 3, 40)
    expected = pandas.DataFrame(curves.T).ewm(span=7, adjust=True).mean().to_numpy().T
    assert smoothed(curves, 7) == pytest.approx(expected)


def test_a_span_of_one_smooths_nothing():
    curves = noise(2, 3, 9)
    assert smoothed(curves, 1) == pytest.approx(curves)


def test_a_constant_stays_what_it_is_from_the_first_step_on():
    assert smoothed(np.full((2, 30), 0.25), 10) == pytest.approx(np.full((2, 30), 0.25))


# the band


@pytest.mark.parametrize(("seeds", "expected"), [(3, 3 / 4), (4, 7 / 8), (5, 15 / 16), (6, 29 / 32), (8, 116 / 128)])
def test_so_many_seeds_make_so_sure_a_band(seeds, expected):
    assert simultaneous(noise(3, seeds, 20))[2] == expected


@pytest.mark.parametrize("seeds", [12, 20])
def test_many_seeds_make_a_band_of_ninety_percent_always_the_same(seeds):
    curves = noise(4, seeds, 20)
    first, again = simultaneous(curves), simultaneous(curves)
    assert first[2] == pytest.approx(0.9, abs=0.002)
    assert first[1].tolist() == again[1].tolist()


KINDS = {
    "noise of each step": lambda z: z,
    "a drift": lambda z: z.cumsum(-1),
    "a difference that grows a millionfold": lambda z: z * np.geomspace(1e-6, 1, z.shape[-1]),
    "a difference that stays": lambda z: z[..., :1] + 0.1 * z,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
def test_equal_arms_are_told_apart_anywhere_no_more_often_than_the_band_allows(seeds, kind):
    source, times, outside, sure = np.random.default_rng(5), 400, 0, 0.0
    for _ in range(times):
        curves = smoothed(KINDS[kind](source.normal(size=(seeds, 60))), 6)
        mean, half, sure = simultaneous(curves)
        outside += bool((np.abs(mean) > half).any())
    allowed = 1 - sure
    assert outside / times <= allowed + 3.3 * math.sqrt(allowed * (1 - allowed) / times)
    assert outside / times >= allowed / 2  # and it is not merely too wide to see anything


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [3, 5])
def test_a_difference_late_in_the_run_makes_no_earlier_step_stand_out(seeds, kind):
    source, times, early, late, sure = np.random.default_rng(8), 300, 0, 0, 0.0
    for _ in range(times):
        differences = KINDS[kind](source.normal(size=(seeds, 60)))
        differences[:, 30:] += 20 * differences.std()
        mean, half, sure = simultaneous(smoothed(differences, 6))
        early += bool((np.abs(mean) > half)[:30].any())
        late += bool((np.abs(mean) > half)[30:].any())
    assert early / times <= 1 - sure + 3.3 * math.sqrt(sure * (1 - sure) / times)
    assert late / times >= 0.99


def test_an_interval_at_each_step_alone_would_tell_equal_arms_apart_nearly_always():
    # what the band is for
    from scipy.stats import t

    source, times, outside = np.random.default_rng(6), 200, 0
    for _ in range(times):
        curves = smoothed(source.normal(size=(5, 60)), 6)
        half = t.ppf(0.95, 4) * curves.std(axis=0, ddof=1) / math.sqrt(5)
        outside += bool((np.abs(curves.mean(axis=0)) > half).any())
    assert outside / times > 0.5


@pytest.mark.parametrize("seeds", [4, 5, 8])
def test_an_arm_that_falls_behind_is_told_apart_after_it_does(seeds):
    differences = 0.01 * noise(7, seeds, 100)
    differences[:, 50:] += 0.5
    found = band(runs(differences))
    assert 51 <= found.first_step_outside <= 56
    assert found.low[-1] > 0.3
    assert found.high[-1] < 0.7


def test_the_first_step_outside_is_found_between_the_points_kept():
    differences = 1e-4 * noise(8, 5, 3000)
    differences[:, 1500:] += 1.0
    found = band(runs(differences))
    assert len(found.steps) == MOST_POINTS
    assert (found.steps[0], found.steps[-1]) == (1, 3000)
    assert found.first_step_outside not in found.steps
    assert 1501 <= found.first_step_outside <= 1510


def test_equal_runs_have_a_band_of_no_width_that_holds_zero():
    found = band(runs(np.zeros((3, 10))))
    assert found.mean_difference == found.low == found.high == (0.0,) * 10
    assert found.first_step_outside is None


def test_a_difference_that_every_seed_has_alike_is_told_apart():
    found = band(runs(np.full((3, 10), 0.5)))
    assert found.first_step_outside == 1
    assert found.mean_difference == pytest.approx((0.5,) * 10)


def test_a_short_run_is_not_smoothed_and_keeps_every_step():
    found = band(runs(noise(9, 3, 5)))
    assert (found.smoothed_over, found.steps) == (1, (1, 2, 3, 4, 5))
    assert band(runs(noise(9, 3, 50))).smoothed_over == 5


def test_the_mean_difference_is_candidate_less_baseline():
    differences = np.array([[0.1, 0.2], [0.3, 0.2], [0.2, 0.5]])
    assert band(runs(differences)).mean_difference == pytest.approx((0.2, 0.3))


# what there is no band for


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_band_and_say_so(seeds):
    found = band(runs(noise(10, seeds, 10)))
    assert (found.mean_difference, found.low, found.high, found.confidence) == (None, None, None, None)
    assert found.reason == "a band over the steps takes 3 distinct seeds"
    assert found.seeds == seeds


def test_seeds_that_repeat_one_run_are_not_several():
    made = [trial(arm, seed, [2.0, 1.0]) for arm in ("fp32", "fp16") for seed in range(3)]
    assert (band(made).seeds, band(made).mean_difference) == (1, None)


def test_a_band_ends_where_a_run_stops_being_finite():
    differences = noise(11, 3, 20)
    differences[1, 12] = math.nan
    found = band(runs(differences))
    assert found.steps[-1] == 12
    assert found.reason == "ends after step 12, the last that every run has finite"


def test_a_run_that_failed_ends_the_band_too():
    made = runs(noise(12, 3, 20))
    made[4] = trial("fp16", 1, made[4].losses[:7], error="boom")
    assert band(made).steps[-1] == 7


def test_a_run_that_is_not_finite_from_the_start_has_no_band():
    differences = noise(13, 3, 20)
    differences[1, 0] = math.inf
    found = band(runs(differences))
    assert (found.mean_difference, found.reason) == (None, "a run has no finite loss to begin with")


def test_every_arm_has_a_band_of_its_own_and_the_baseline_none():
    made = runs(noise(14, 3, 10)) + runs(noise(15, 3, 10), "bf16")[3:]
    assert [found.arm for found in curve_bands(made)] == ["fp16", "bf16"]
    assert curve_bands(()) == ()
