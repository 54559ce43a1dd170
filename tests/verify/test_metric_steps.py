"""In which steps a metric moves: from its values alone, whether they are neighbours, far apart, or all equal."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arm_samples import metrics, one
from mpdiag.diagnosis import Comparison
from mpdiag.verify.paired_test import resolution_of, whole_step


def in_fp32(hits: int, of: int) -> float:
    """A mean as a GPU adds it up."""
    return float(np.float32(hits) / np.float32(of))


def test_values_that_are_no_neighbours_do_not_pass_for_them():
    # read on an H100: a masked language model's first accuracies, 81 to 1155 hits of 4,895
    assert resolution_of([in_fp32(hits, 4895) for hits in (1052, 1155, 1118, 81)]) == pytest.approx(1 / 4895)


@given(of=st.integers(40, 20_000), hits=st.sets(st.floats(0.05, 1.0), min_size=3, max_size=6))
def test_a_step_is_never_told_finer_than_one_sample(of, hits):
    values = [in_fp32(round(share * of), of) for share in hits]
    step = whole_step(values)
    assert step is None or step >= 0.999 / of


def test_a_step_is_found_where_every_run_has_the_same_value():
    assert whole_step([0.578125]) == 1 / 64
    assert whole_step([97.5, 97.2222222]) == pytest.approx(100 / 360)


@pytest.mark.parametrize("values", [[1.0], [0.0], [0.5], [150.0, 151.0], []])
def test_of_all_none_or_half_the_samples_nobody_can_tell_how_many_there_are(values):
    assert whole_step(values) is None


def test_numbers_that_count_nothing_have_no_step():
    draw = random.Random(1)
    assert whole_step([draw.random() for _ in range(6)]) is None


def seen(values: list[float]) -> Comparison:
    """Equal accuracies of runs whose losses are not."""
    trials = metrics(values, values)
    return one([replace(t, losses=(*t.losses[:-1], 0.99)) if t.arm == "fp16" else t for t in trials], "accuracy")


@pytest.mark.parametrize("seeds", [2, 3])
def test_a_metric_of_64_samples_that_never_moves_is_as_coarse_as_one_that_moves(seeds):
    still, moving = seen([0.578125] * seeds), seen([0.578125, 0.59375, 0.578125])
    assert still.verdict == moving.verdict == "inconclusive"
    assert "moves in steps of 0.016" in still.reason
    assert "moves in steps of 0.016" in moving.reason
