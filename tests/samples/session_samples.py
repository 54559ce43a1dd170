"""Jobs of one known weight, and sessions that train them step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import Precision
from mpdiag.training.session import Session, open_session

CPU = torch.device("cpu")
FP16_SCALED = Precision("FP16", autocast=torch.float16, log2_scale=15)  # 2^16 alone overflows where a loss enters FP16
FP16_UNSCALED = Precision("FP16, scale 1", autocast=torch.float16)
FP16_PURE = Precision("FP16, pure", autocast=torch.float16, pure=True)


def one_weight(value: float = 0.5) -> nn.Module:
    """y = w * x with one known weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def mean_output(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).float().mean()


def sgd(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {ONLY: torch.optim.SGD(model.parameters(), lr=1.0)}


def job(
    compute_loss: Callable[[nn.Module, Any], Any] = mean_output,
    build_model: Callable[[], nn.Module] = one_weight,
    build_optimizers: Callable[[nn.Module], Any] = sgd,
    batches: Any = None,
    losses: Callable[..., Any] | None = None,
    evaluate: Any = None,
) -> Job:
    def only(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, compute_loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=build_model,
        train_batches=lambda: [torch.ones(1, 1)] if batches is None else batches,
        losses=losses or only,
        build_optimizers=build_optimizers,
        evaluate=evaluate,
    )


@contextmanager
def running(precision: Precision, the_job: Job | None = None) -> Iterator[Session]:
    the_job = the_job or job()
    with open_session(the_job, the_job.start(0, 8), precision, CPU) as run:
        yield run


def step(run: Session, value: float = 1.0) -> dict[str, torch.Tensor]:
    return run.step(run.place(torch.full((1, 1), value)))


def scale(run: Session) -> float:
    return run.scaler.get_scale()


def weight(run: Session) -> float:
    return run.model.weight.item()
