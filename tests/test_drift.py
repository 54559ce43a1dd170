"""Observing at several points of training, and how the loss-scale window moves between them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mpdiag.advice import advise, window_at
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest, TensorKind
from mpdiag.drift import MOST_PARTS, observed_parts
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
    whole = advise(observation.record()).loss_scale
    windows = [window_at(steps, capture) for steps, capture in observation.records_of_parts()]
    assert whole.upper_log2 <= min(window.upper_log2 for window in windows)
    assert whole.lower_log2 >= max(window.lower_log2 for window in windows)
