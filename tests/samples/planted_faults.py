"""Training jobs as users write them, each with one planted fault; `# <-` marks the line at fault.

Every job is a small model, real batches, a loss and an optimizer; what a scan has to find in it stands above it.
The tables and forms are here; the jobs are in the other planted modules, and planted_tables has the tables full.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import ONLY, Job

Loss = Callable[[nn.Module, Any], torch.Tensor]
ROWS, WIDTH, CLASSES = 16, 8, 4
MASK = torch.ones(6, 6, dtype=torch.bool).triu(1)
T5_LIKE = str(Path(__file__).parents[1] / "islands" / "t5_like.py")


@dataclass(frozen=True)
class Plant:
    """A job and what a scan must say of it. consequences: other codes that the same fault may bring."""

    build: Callable[[], Job]
    code: str
    severity: str
    subject: str
    consequences: tuple[str, ...]
    steps: int

    @property
    def line(self) -> str | None:
        """file.py:line of the mark, None where the fault is no line of code."""
        lines, first = inspect.getsourcelines(self.build)
        marked = [first + i for i, line in enumerate(lines) if line.rstrip().endswith("# <-")]
        assert len(marked) <= 1
        return f"{Path(inspect.getfile(self.build)).name}:{marked[0]}" if marked else None


PLANTS: dict[str, Plant] = {}


def plant(
    code: str, severity: str, subject: str, *consequences: str, steps: int = 3
) -> Callable[[Callable[[], Job]], Callable[[], Job]]:
    """Enter a job into the table."""

    def enter(build: Callable[[], Job]) -> Callable[[], Job]:
        PLANTS[f"{code}-{build.__name__}"] = Plant(build, code, severity, subject, consequences, steps)
        return build

    return enter


@dataclass(frozen=True)
class Healthy:
    """A job without a fault. expected: warnings that are true all the same."""

    build: Callable[[], Job]
    expected: tuple[str, ...]


HEALTHY: dict[str, Healthy] = {}


def healthy(*expected: str) -> Callable[[Callable[[], Job]], Callable[[], Job]]:
    """Enter a job that looks like a fault and is none."""

    def enter(build: Callable[[], Job]) -> Callable[[], Job]:
        HEALTHY[build.__name__] = Healthy(build, expected)
        return build

    return enter


def classify(model: nn.Module, batch: Any) -> torch.Tensor:
    *inputs, labels = batch
    return F.cross_entropy(model(*inputs), labels)


def job(
    model: Callable[[], nn.Module],
    batch: Callable[[], Any] | None = None,
    loss: Loss = classify,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
) -> Job:
    """A job in the shape that a target file becomes."""

    def losses(the_model: nn.Module, the_batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(the_model, the_batch)

    def batches() -> Iterator[Any]:
        while True:
            yield (batch or features)()

    return Job(
        name="planted",
        source=Path(__file__).name,
        build_model=model,
        train_batches=batches,
        losses=losses,
        build_optimizers=lambda m: {ONLY: optimizer([p for p in m.parameters() if p.requires_grad], lr=lr)},
    )


def features(size: float = 1.0, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, *(shape or (WIDTH,))) * size, torch.randint(CLASSES, (ROWS,))


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    return features(1.0, 6, WIDTH)


def images(size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(ROWS, 3, 8, 8) * size, torch.randint(CLASSES, (ROWS,))


def linear(size_in: int, size_out: int, size: float) -> nn.Linear:
    """A layer whose outputs are about `size` times its inputs."""
    layer = nn.Linear(size_in, size_out, bias=False)
    nn.init.normal_(layer.weight, std=size / math.sqrt(size_in))
    return layer


class Between(nn.Module):
    """Two layers and a norm, and between the layers what a user wrote."""

    def __init__(self, fn: Callable[[torch.Tensor], torch.Tensor], size: float = 1.0) -> None:
        super().__init__()
        self.lift = linear(WIDTH, WIDTH, size)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.norm(self.fn(self.lift(x))))
        return y.mean(1) if y.dim() == 3 else y
