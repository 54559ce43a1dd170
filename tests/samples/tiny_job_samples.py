"""Tiny jobs whose tables are known on paper, models with traps, and what a capture of a job counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.drift import observed_parts
from mpdiag.target.batches import tensors_in
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")
A, AG = TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT
W, WG, WU = TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE


def constant(module: nn.Module, value: float = 0.5) -> nn.Module:
    """The module with every parameter set to one value."""
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def mean_of_all(model: nn.Module, batch: Any) -> torch.Tensor:
    """The sum of every floating tensor of the output."""
    return sum(t.sum() for t in tensors_in(model(batch)) if t.is_floating_point())


def job(
    build_model: Callable[[], nn.Module],
    batch: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor] = mean_of_all,
    lr: float = 0.25,
) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=build_model,
        train_batches=lambda: [batch() if callable(batch) else batch],
        losses=losses,
        build_optimizers=lambda m: {ONLY: torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=lr)},
    )


def capture(the_job: Job, steps: int = 1, **patterns: tuple[str, ...]) -> Capture:
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    observe_training(the_job, the_job.start(0, 1), observation, observed_parts(steps), **patterns)
    return observation.record()


def tables(the_job: Job, steps: int = 1, **patterns: tuple[str, ...]) -> dict[tuple[TensorKind, str], TensorTable]:
    found = capture(the_job, steps, **patterns).tables
    by_key = {(table.kind, table.name): table for table in found}
    assert len(by_key) == len(found)
    return by_key


def bins(table: TensorTable) -> dict[int, int]:
    return table.histogram.bins


# one Linear(2, 1) of weights 0.5, no bias, inputs (1, 4) and (2, 8): outputs 2.5 and 5, gradients 1 and 1, weight
# gradients 3 and 12, updates -0.75 and -3


def linear_job() -> Job:
    return job(lambda: constant(nn.Sequential(nn.Linear(2, 1, bias=False))), torch.tensor([[1.0, 4.0], [2.0, 8.0]]))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.b.weight = self.a.weight
        constant(self)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(value))


@dataclasses.dataclass
class Output:
    y: torch.Tensor
    more: Any = None


class Branching(nn.Module):
    def __init__(self, form: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.form = form

    def forward(self, value: torch.Tensor) -> Any:
        return self.form(value * self.weight, value / self.weight)


FORMS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "dataclass": lambda a, b: Output(a, b),
    "nested": lambda a, b: {"x": (a, Output(b)), "n": torch.arange(3)},
}


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)

    def forward(self, value: Any) -> Any:
        output, (h, c) = self.lstm(value)
        return output, h, c


def packed_batch() -> PackedSequence:
    return pack_sequence([torch.ones(5, 3), torch.ones(2, 3)])


def half_frozen() -> nn.Module:
    model = constant(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)))
    model[0].requires_grad_(False)
    return model


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.body = constant(nn.Linear(1, 1, bias=False)), constant(nn.Linear(1, 1, bias=False))
        self.reentrant = reentrant

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.body, self.first(value), use_reentrant=self.reentrant)


def image_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )
