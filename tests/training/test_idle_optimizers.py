"""A step in which an optimizer has no gradient at all, and batches that ask for gradients themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.errors import UserCodeError
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import Session, open_session

CPU = torch.device("cpu")
SCALED = Precision("FP16", autocast=torch.float16, log2_scale=3, growth_interval=1)
PURE = Precision("FP16, pure", autocast=torch.float16, pure=True)


class Experts(nn.Module):
    """One weight an expert, and the batch says which is used."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b"):
            expert = nn.Linear(1, 1, bias=False)
            nn.init.constant_(expert.weight, 1.0)
            self.add_module(name, expert)


def routed(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield ONLY, getattr(model, batch)(torch.ones(1, 1)).float().mean()


def sgd_each(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
    return {name: torch.optim.SGD(getattr(model, name).parameters(), lr=0.25) for name in ("a", "b")}


def experts(build_optimizers: Any = sgd_each) -> Job:
    return Job(
        name="tiny",
        source="tiny.py",
        build_model=Experts,
        train_batches=lambda: ["a", "b", "b"],
        losses=routed,
        build_optimizers=build_optimizers,
    )


def weights_after_three(job: Job, precision: Precision) -> tuple[list[float], Session]:
    start = job.start(0, 3)
    with open_session(job, start, precision, CPU) as run:
        for step in range(3):
            run.step(run.place(start.batch(step)))
        return [run.model.a.weight.item(), run.model.b.weight.item()], run


def test_an_idle_optimizer_takes_an_empty_step_under_a_scaler_as_in_fp32():
    assert weights_after_three(experts(), FP32_IEEE)[0] == [0.75, 0.5]
    weights, run = weights_after_three(experts(), SCALED)
    assert weights == [0.75, 0.5]
    assert run.scaler is not None
    assert run.scaler.get_scale() == 64.0  # it doubled after each of the three steps


def test_the_job_says_that_the_users_own_loop_needs_a_guard():
    for precision, said in ((FP32_IEEE, False), (SCALED, True)):
        job = experts()
        weights_after_three(job, precision)
        assert any("scaler.step(optimizer) only where one has" in note for note in job.notes) is said
        assert len(job.notes) == said


def test_momentum_moves_an_idle_weight_no_more_than_in_fp32():
    def both(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        return {n: torch.optim.SGD(getattr(model, n).parameters(), lr=0.25, momentum=0.5) for n in ("a", "b")}

    assert weights_after_three(experts(both), SCALED)[0] == weights_after_three(experts(both), FP32_IEEE)[0]


def test_an_optimizer_of_copies_is_not_stepped_with_gradients_that_are_still_scaled():
    class OfCopies(torch.optim.SGD):
        """Keeps copies, and takes the gradients of the model's own weights when it steps."""

        def __init__(self, own: nn.Parameter) -> None:
            self.own = own
            super().__init__([own.detach().clone().requires_grad_()], lr=0.25)

        def step(self, closure: Any = None) -> None:
            (copy,) = self.param_groups[0]["params"]
            copy.grad = self.own.grad.clone()
            super().step()
            self.own.data.copy_(copy)

    def with_copies(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        return {"a": OfCopies(model.a.weight), "b": torch.optim.SGD(model.b.parameters(), lr=0.25)}

    with pytest.raises(UserCodeError, match="No inf checks were recorded for this optimizer"):
        weights_after_three(experts(with_copies), SCALED)


# batches that ask for gradients


def points(loss: Any) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=lambda: nn.Linear(1, 1),
        train_batches=lambda: [(torch.ones(2, 1, requires_grad=True), torch.zeros(2, 1), torch.arange(2))],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.25)},
    )


def slope(model: nn.Module, batch: Any) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(model(batch[0]).float().sum(), batch[0], create_graph=True)
    return gradient.square().mean() + model(batch[0]).float().mean()


@pytest.mark.parametrize("precision", [FP32_IEEE, SCALED, PURE])
def test_a_loss_is_differentiated_at_points_of_the_batch_and_they_stay_clean(precision):
    job = points(slope)
    start = job.start(0, 1)
    with open_session(job, start, precision, CPU) as run:
        for _ in range(2):
            placed = run.place(start.batch(0))
            run.step(placed)
    assert [tensor.requires_grad for tensor in placed] == [True, False, False]
    assert placed[0].is_leaf
    assert placed[0].grad is not None
    assert start.batch(0)[0].grad is None
