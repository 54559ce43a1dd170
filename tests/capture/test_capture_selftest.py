"""The self-test: observing a job changes not a bit of it, and a probe that meddles is caught."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.capture.ledger import Ledger
from mpdiag.capture.probe import Probe
from mpdiag.capture.selftest import run_selftest
from mpdiag.diagnosis import SelfTest
from mpdiag.target.job import Job
from tiny_job_samples import (
    CPU,
    FORMS,
    Branching,
    Checkpointed,
    Packed,
    Tied,
    constant,
    half_frozen,
    image_net,
    job,
    linear_job,
    packed_batch,
)

# not a bit changed


def accumulate(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return sum(model(part).pow(2).sum() for part in batch)


class PlusEquals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        y = self.layer(value)
        y += value
        return y


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


JOBS: dict[str, Callable[[], Job]] = {
    "linear": linear_job,
    "convolution, batch norm, in-place relu, dropout": lambda: job(image_net, lambda: torch.randn(3, 2, 6, 6)),
    "transformer encoder": lambda: job(encoder, lambda: torch.randn(2, 5, 8)),
    "tied weights": lambda: job(Tied, torch.tensor([[4.0]])),
    "plus equals": lambda: job(PlusEquals, lambda: torch.randn(4, 3)),
    "packed lstm": lambda: job(Packed, packed_batch),
    "half frozen": lambda: job(half_frozen, torch.ones(2, 1)),
    "sparse embedding": lambda: job(lambda: nn.Embedding(10, 2, sparse=True), torch.tensor([3, 3, 7])),
    "checkpoint, reentrant": lambda: job(lambda: Checkpointed(True), torch.ones(2, 1)),
    "checkpoint": lambda: job(lambda: Checkpointed(False), torch.ones(2, 1)),
    "several calls": lambda: job(lambda: nn.Linear(3, 3), lambda: torch.randn(4, 2, 3), accumulate),
    **{
        f"{form} output": (lambda form=form: job(lambda: Branching(FORMS[form]), torch.tensor([8.0]))) for form in FORMS
    },
}


@pytest.mark.parametrize("name", JOBS)
def test_the_probe_changes_no_bit_of(name):
    the_job = JOBS[name]()
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=3)
    assert result == SelfTest(True, 3, 0.0, 0.0)


def test_a_job_that_differs_from_itself_gives_none_and_says_by_how_much():
    def noisy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).sum() * (1 + int.from_bytes(os.urandom(4), "big") / 2**32)

    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(1, 1), noisy)
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=2)
    assert result.unchanged is None
    assert result.control > 0
    assert "not deterministic" in result.reason


def test_a_probe_that_meddles_is_caught(monkeypatch):
    # the self-test can fail: a probe whose counting adds to each weight
    def meddle(self: Ledger, site: Any, tensor: torch.Tensor, later: bool = False) -> None:
        if isinstance(tensor, nn.Parameter):
            tensor.data += 2.0**-10

    monkeypatch.setattr(Ledger, "count", meddle)
    the_job = linear_job()
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=2)
    assert result.unchanged is False
    assert result.difference > 0
    assert result.control == 0.0


def test_a_probe_that_draws_random_numbers_is_caught(monkeypatch):
    monkeypatch.setattr(Probe, "step_done", lambda self: torch.rand(1))
    the_job = linear_job()
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=1).unchanged is False


def test_the_selftest_runs_a_job_whose_loss_is_nan_without_calling_it_changed():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.tensor([[float("nan")]]))
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=2).unchanged is True


class OverGraph(nn.Module):
    """Messages along a sparse adjacency, kept as a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("adjacency", torch.eye(3).to_sparse(), persistent=False)

    def forward(self, nodes):
        return torch.sparse.mm(self.adjacency, self.layer(nodes).float())


def test_a_model_with_a_sparse_buffer_passes_the_selftest():
    the_job = job(OverGraph, torch.ones(3, 4))
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=2).unchanged is True
