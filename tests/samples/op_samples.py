"""Jobs of one operator, and what the second pass sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.capture.op_scan import Operations, observe_operations
from mpdiag.operations import OpRole, OpTable
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")


class Body(nn.Module):
    """fn of an activation that equals the input and is FP16 under autocast: it comes out of an identity Linear."""

    def __init__(self, fn: Callable[[torch.Tensor], torch.Tensor], width: int) -> None:
        super().__init__()
        self.same = nn.Linear(width, width, bias=False)
        nn.init.eye_(self.same.weight)
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(self.same(x))


def total(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).float().sum()


def job(build_model: Callable[[], nn.Module], batch: Any, loss: Callable[..., torch.Tensor] = total) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=build_model,
        train_batches=lambda: [batch],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.Adam(model.parameters(), lr=0.25)},
    )


def operations(the_job: Job, **patterns: tuple[str, ...]) -> Operations:
    return observe_operations(the_job, the_job.start(0, 1), CPU, **patterns)


def seen(the_job: Job, **patterns: tuple[str, ...]) -> tuple[OpTable, ...]:
    found = operations(the_job, **patterns)
    assert found.reason is None
    assert found.tables is not None
    return found.tables


def of(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> tuple[OpTable, ...]:
    """What the pass sees of fn, given x as an activation."""
    return seen(job(lambda: Body(fn, x.shape[-1]), x))


def select(tables: tuple[OpTable, ...], **wanted: Any) -> list[OpTable]:
    wanted = {"direction": "forward", "role": OpRole.OUTPUT} | wanted
    return [t for t in tables if all(getattr(t, name) == value for name, value in wanted.items())]


def one(tables: tuple[OpTable, ...], **wanted: Any) -> OpTable:
    found = select(tables, **wanted)
    assert len(found) == 1, found
    return found[0]


def bins(table: OpTable) -> dict[int, int]:
    return table.histogram.bins


ROWS = torch.tensor([[[8.0, 0.0], [0.0, 16.0]]])


def attention(h: torch.Tensor) -> torch.Tensor:
    scores = h @ h.transpose(-2, -1)
    scores = scores / 4
    return F.softmax(scores, -1) @ h


def line_of(fn: Callable[..., Any], offset: int) -> str:
    path = Path(fn.__code__.co_filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{fn.__code__.co_firstlineno + offset}"


def rms(h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-8)


def rms_by_pow(h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-8)
