"""What a loss is, a mean or a sum, and how large the targets are: from the watched iteration of a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.capture.loop_facts import observe_loop
from mpdiag.loop import LoopFacts
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")
X, Y = torch.tensor([[1.0, -3.0], [2.0, 5.0]]), torch.tensor([[4.0], [-7e5]])
CLASSES = torch.tensor([0, 1])


def facts(loss: Any, batch: Any = (X, Y), out: int = 1) -> LoopFacts:
    def losses(model: nn.Module, given: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, given)

    the_job = Job(
        "tiny", "tiny.py", lambda: nn.Linear(2, out), lambda: [batch], losses,
        lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.0)},
    )  # fmt: skip
    return observe_loop(the_job, the_job.start(0, 1), CPU)[0]


@pytest.mark.parametrize(
    ("loss", "reduction"),
    [
        (lambda y, t: F.mse_loss(y, t), "mean"),
        (lambda y, t: F.mse_loss(y, t, reduction="sum"), "sum"),
        (lambda y, t: F.l1_loss(y, t), "mean"),
        (lambda y, t: F.smooth_l1_loss(y, t, reduction="sum"), "sum"),
        (lambda y, t: F.binary_cross_entropy_with_logits(y, t.sigmoid()), "mean"),
        (lambda y, t: ((y - t) ** 2).mean(), "mean"),
        (lambda y, t: ((y - t) ** 2).sum(), "sum"),
        (lambda y, t: F.mse_loss(y, t, reduction="none").mean(), "mean"),
        (lambda y, t: F.mse_loss(y, t) + F.l1_loss(y, t), "mean"),
        (lambda y, t: F.mse_loss(y, t).float().reshape(()), "mean"),
        (lambda y, t: F.mse_loss(y, t) + F.l1_loss(y, t, reduction="sum"), None),
        (lambda y, t: ((y - t) ** 2).sum() / 2, None),
        (lambda y, t: F.mse_loss(y, t) * 1e6, None),
        (lambda y, t: ((y - t) ** 2).sum(1).mean(), None),
        (lambda y, t: (y - t)[0, 0], None),
    ],
)
def test_a_mean_a_sum_or_neither(loss, reduction):
    assert facts(lambda model, batch: loss(model(batch[0]), batch[1])).loss_reduction == reduction


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_cross_entropy_is_read_too_and_has_no_targets_to_standardise(reduction):
    found = facts(lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction), (X, CLASSES), 2)
    assert (found.loss_reduction, found.target_abs_max) == (reduction, None)


@pytest.mark.parametrize(
    "loss",
    [
        lambda y, t: nn.MSELoss()(y, t),
        lambda y, t: F.huber_loss(input=y, target=t),
        lambda y, t: ((y - t) ** 2).mean(),
        lambda y, t: ((t - y) ** 2).mean(),
        lambda y, t: torch.sub(t, y).abs().mean(),
    ],
)
def test_the_largest_target_is_seen_in_a_loss_of_torchs_or_in_a_difference(loss):
    assert facts(lambda model, batch: loss(model(batch[0]), batch[1])).target_abs_max == 7e5


def test_targets_are_seen_as_they_reach_the_loss():
    assert facts(lambda m, b: F.mse_loss(m(b[0]), b[1] / 1e5)).target_abs_max == 7.0


def test_what_the_output_is_not_compared_with_is_no_target():
    assert facts(lambda m, b: m(b[0] - b[1]).mean()).target_abs_max is None, "a difference of inputs"
    assert facts(lambda m, b: (m(b[0]) * b[1]).mean()).target_abs_max is None, "a weight"
    assert facts(lambda m, b: (m(b[0]) - 1e6).mean()).target_abs_max is None, "a number of the code"


def test_infinite_targets_are_passed_over():
    odd = torch.tensor([[torch.inf], [3.0]])
    assert facts(lambda m, b: F.l1_loss(m(b[0]), b[1]).clamp(max=1.0), (X, odd)).target_abs_max == 3.0
