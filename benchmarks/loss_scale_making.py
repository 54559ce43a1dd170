"""How the jobs of benchmarks/loss_scale.py are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mpdiag.target import Job
from mpdiag.target.job import ONLY

Batches = Iterator[Any]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def job(
    build: Callable[[], nn.Module],
    batches: Callable[[], Batches],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    optimizer: Optimizer,
) -> Job:
    def losses(model: nn.Module, batch: Any) -> Any:
        yield ONLY, loss(model, batch)

    return Job("", __name__, build, batches, losses, lambda model: {ONLY: optimizer(model)}, synthetic_data=True)


def sgd(rate: float, momentum: float = 0.9) -> Optimizer:
    return lambda model: torch.optim.SGD(model.parameters(), rate, momentum)


def adamw(rate: float) -> Optimizer:
    return lambda model: torch.optim.AdamW(model.parameters(), rate)
