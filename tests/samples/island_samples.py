"""Tiny jobs, a small model and a plan for the tests of FP32 islands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mpdiag.advice import advise
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import Advice, Capture, SelfTest
from mpdiag.plan import IslandPlan
from mpdiag.target.job import ONLY, Job
from mpdiag.verify.island_search import search_islands

CPU = torch.device("cpu")
PLAN = IslandPlan(("a", "b"), True, True, 12, "dynamic", 8000, 3, 0.1, True, snippet="train()")


def filled(size_in: int, size_out: int, value: float) -> nn.Linear:
    layer = nn.Linear(size_in, size_out, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def job(
    build: Callable[[], nn.Module],
    batches: Callable[[], Any] = lambda: [torch.ones(1, 1)],
    losses: Any = None,
    rate: float = 0.0,
) -> Job:
    def mean(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch).float().mean()

    return Job(
        "tiny", "tiny.py", build, batches, losses or mean,
        lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=rate)},
    )  # fmt: skip


def captured(the_job: Job, steps: int = 3) -> tuple[Capture, Advice]:
    start = the_job.start(0, steps)
    seen = Observation(CPU, 0, SelfTest(None, 0, reason="not tested"))
    seen.types = observe(the_job, start, CPU)
    observe_training(the_job, start, seen, [range(steps)])
    capture = seen.record()
    return capture, advise(capture)


def searched(the_job: Job, budget: float = 1e6) -> IslandPlan:
    capture, advice = captured(the_job)
    return search_islands(the_job, the_job.start(0, 3), CPU, capture, advice, budget)
