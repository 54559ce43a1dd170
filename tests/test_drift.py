"""Observing at several points of training, and how the loss-scale window moves between them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpdiag.advice import advise, window_at
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import Capture, EnergyLost, SelfTest, TensorKind, TensorTable
from mpdiag.drift import MOST_PARTS, observed_parts
from mpdiag.histogram import ExponentHistogram
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("steps", "at", "skip", "parts"),
    [
        (3, (0,), 0, [[0, 1, 2]]),
        (2, (0, 10), 0, [[0, 1], [10, 11]]),
        (2, (10, 0, 10), 0, [[0, 1], [10, 11]]),
        (3, (0, 2), 0, [[0, 1, 2], [3, 4]]),
        (3, (0, 1), 1, [[0, 2, 4], [1, 3, 5]]),
        (4, (5,), 9, [[5], [15], [25], [35]]),
    ],
)
def test_the_steps_observed_are(steps, at, skip, parts):
    assert [list(part) for part in observed_parts(steps, at, skip)] == parts


@given(st.integers(1, 60), st.lists(st.integers(0, 200), min_size=1, max_size=5), st.integers(0, 20))
def test_no_step_is_observed_twice_and_all_are_asked_for(steps, at, skip):
    parts = observed_parts(steps, at, skip)
    observed = [step for part in parts for step in part]
    assert len(observed) == len(set(observed))
    assert set(observed) == {first + i * (skip + 1) for first in at for i in range(steps)}
    assert all(parts)
    assert len(parts) <= max(MOST_PARTS, len(set(at)))


def shrinking_job():
    """One weight whose gradient halves each step: the loss of step t is w * 2^-t * x."""
    calls = []

    def losses(model, batch):
        calls.append(0)
        yield ONLY, model(batch).float().sum() * 2.0 ** -(len(calls) - 1)

    def build():
        calls.clear()
        model = nn.Sequential(nn.Linear(1, 1, bias=False))
        with torch.no_grad():
            model[0].weight.fill_(1.0)
        return model

    return Job(
        name="shrinking", source="shrinking", build_model=build, train_batches=lambda: [torch.ones(1, 1)],
        losses=losses, build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.0)},
    )  # fmt: skip


def observed(parts):
    job = shrinking_job()
    start = job.start(0, 1)
    observation = Observation(CPU, 0, SelfTest(None, 0), observe(job, start, CPU))
    observe_training(job, start, observation, parts)
    return observation


def bins(capture):
    found = {(table.kind, table.name): table for table in capture.tables}
    return found[TensorKind.WEIGHT_GRADIENT, "0.weight"].histogram.bins


def test_the_whole_is_the_sum_of_its_parts_and_nothing_between_them_is_counted():
    observation = observed([[0, 1], [10, 12]])
    first, second = (capture for _, capture in observation.records_of_parts())
    assert bins(first) == {0: 1, -1: 1}
    assert bins(second) == {-10: 1, -12: 1}
    assert bins(observation.record()) == {0: 1, -1: 1, -10: 1, -12: 1}
    assert (first.steps, second.steps, observation.record().steps) == (2, 2, 4)


def test_the_window_moves_with_the_gradients():
    windows = [window_at(steps, capture) for steps, capture in observed([[0], [10], [20]]).records_of_parts()]
    assert [window.first_step for window in windows] == [0, 10, 20]
    assert [window.lower_log2 for window in windows] == [-25, -15, -5]
    # 65504 is below 2^16 and two octaves are kept: 2^13 of gradient 1, capped at 2^24
    assert [window.upper_log2 for window in windows] == [13, 23, 24]


def test_the_advice_over_all_points_serves_each_of_them():
    observation = observed([[0], [10], [20]])
    parts = observation.records_of_parts()
    whole = advise(observation.record(), parts).loss_scale
    windows = [window_at(steps, capture) for steps, capture in parts]
    assert [(w.lower_log2, w.upper_log2) for w in windows] == [(-25, 13), (-15, 23), (-5, 24)]
    assert (whole.lower_log2, whole.upper_log2) == (-5, 13)


def stretch(low: int, high: int, first: int, steps: int = 20):
    """(steps, capture) of a gradient whose elements are at 2^low, one at 2^high."""
    histogram = ExponentHistogram.from_bins({low: 1000, high: 1})
    seen = TensorTable(
        "w", "Linear", TensorKind.WEIGHT_GRADIENT, "float32", 1001, steps, histogram, 2.0**high, 2.0**low,
        (2.0**high,) * steps, "float16",
    )  # fmt: skip
    return list(range(first, first + steps)), Capture(
        "FP32", "cpu", steps, 0, True, SelfTest(True, 2, 0.0, 0.0), (seen,), (1.0,) * steps, "float32"
    )


def together(parts):
    """The capture of all of them."""
    tables = [capture.tables[0] for _, capture in parts]
    whole = replace(
        tables[0],
        histogram=sum((t.histogram for t in tables), ExponentHistogram()),
        abs_max=max(t.abs_max for t in tables),
        abs_max_by_step=tuple(m for t in tables for m in t.abs_max_by_step),
        steps=sum(t.steps for t in tables),
    )
    losses = (1.0,) * whole.steps
    return replace(parts[0][1], tables=(whole,), steps=whole.steps, losses=losses)


@given(st.lists(st.tuples(st.integers(-40, -5), st.integers(0, 20)), min_size=2, max_size=5))
def test_the_scale_lies_in_every_window_if_any_scale_does(places):
    parts = [stretch(low, min(low + wide, 8), 1000 * i) for i, (low, wide) in enumerate(places)]
    windows = [window_at(steps, capture) for steps, capture in parts]
    scale = advise(together(parts), parts).loss_scale
    low, high = max(w.lower_log2 for w in windows), min(w.upper_log2 for w in windows)
    if low <= high:
        assert (scale.lower_log2, scale.upper_log2) == (low, high)
        assert all(w.lower_log2 <= scale.log2_scale <= w.upper_log2 for w in windows)
    else:
        assert scale.log2_scale == windows[0].log2_scale
        assert scale.mode == "dynamic"


def test_a_window_that_moves_away_is_followed_by_doubling_in_time():
    # 2^-20 needs 2^-5 and 2^5 bears 2^8; 2,000 steps later 2^-40 needs 2^15, eleven doublings above 2^4
    parts = [stretch(-20, 5, 0), stretch(-40, -5, 2000)]
    scale = advise(together(parts), parts).loss_scale
    assert [(w.lower_log2, w.upper_log2) for w in advise(together(parts), parts).drift] == [(-5, 8), (15, 18)]
    assert (scale.log2_scale, scale.mode, scale.growth_interval) == (4, "dynamic", 2000 // 11)


def test_a_capture_that_ended_within_the_first_stretch_with_a_gradient_is_advised_on_as_a_whole():
    silent, later = stretch(-10, 0, 0), stretch(-10, 0, 500)
    nothing = replace(silent[1], tables=(replace(silent[1].tables[0], abs_max=None, abs_max_by_step=()),))
    alone = advise(later[1]).loss_scale
    assert advise(later[1], [(silent[0], nothing)]).loss_scale == alone
    assert alone.log2_scale is not None


def test_what_a_later_stretch_loses_is_not_hidden_by_the_first():
    parts = [stretch(-10, 0, 0), stretch(-30, -29, 500)]
    lost = advise(together(parts), parts).loss_scale
    assert lost.energy_lost_before < 1e-15
    assert lost.most_lost_before == EnergyLost("w (weight_gradient)", 1.0, 500)
    assert lost.most_lost_after.share == 0.0
