"""torch.func inside the model or the loss: what runs there is not counted, and said not to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, jvp, vmap

from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.capture.selftest import run_selftest
from mpdiag.capture.transforms import not_counted
from mpdiag.diagnosis import SelfTest, TensorKind
from mpdiag.drift import observed_parts
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")
A, AG = TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT
W, WG, WU = TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def a_gradient_step_inside(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    parameters = dict(model.named_parameters())
    loss = lambda p: functional_call(model, p, (x,)).square().mean()
    moved = {name: parameters[name] - 0.125 * g for name, g in grad(loss)(parameters).items()}
    return loss(moved)


def along_a_direction(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return jvp(model, (x,), (torch.ones_like(x),))[1].square().mean()


def sample_by_sample(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return vmap(jacrev(model))(x).square().mean()


def many_at_once(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_(True)
    y = model(x)
    (g,) = torch.autograd.grad(y, x, torch.ones(2, *y.shape), is_grads_batched=True, create_graph=True)
    return g.square().mean() + y.square().mean()


def job(loss: Callable[[nn.Module, Any], torch.Tensor]) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=two_layers,
        train_batches=lambda: [torch.rand(4, 2)],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.25)},
    )


def observed(the_job: Job) -> tuple[Observation, dict[tuple[TensorKind, str], int]]:
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    observe_training(the_job, the_job.start(0, 1), observation, observed_parts(1))
    return observation, {(table.kind, table.name): table.histogram.total for table in observation.tables}


NOTHING = "inside torch.func (grad, jvp, vmap), and of gradients taken many at once, nothing is counted: "
SIZES = {"0.weight": 6, "0.bias": 3, "1.weight": 3, "1.bias": 1}
OUTPUTS = {(A, "0"): 12, (A, "1"): 4, (AG, "0"): 12, (AG, "1"): 4}


def moved(*names: str) -> dict[tuple[TensorKind, str], int]:
    return {(kind, name): SIZES[name] for name in names for kind in (W, WG, WU)}


@pytest.mark.parametrize(
    ("loss", "expected", "named"),
    [
        (a_gradient_step_inside, OUTPUTS | moved(*SIZES), "Sequential"),
        (along_a_direction, moved("0.weight", "0.bias", "1.weight"), "Sequential"),
        (sample_by_sample, moved("0.weight", "1.weight"), "Sequential"),  # no derivative of a linear map has a bias
        (many_at_once, OUTPUTS | moved(*SIZES), "0, 1"),
    ],
)
def test_what_runs_outside_is_counted_once_and_the_rest_is_named(loss, expected, named):
    the_job = job(loss)
    observation, found = observed(the_job)
    assert found == expected
    assert the_job.notes == (NOTHING + named,)
    assert observation.not_seen == ()


@pytest.mark.parametrize("loss", [a_gradient_step_inside, along_a_direction, sample_by_sample, many_at_once])
def test_looking_changes_no_bit_and_no_iteration_under_autocast_fails(loss):
    the_job = job(loss)
    assert run_selftest(the_job, the_job.start(0, 1), CPU, 2) == SelfTest(True, 2, 0.0, 0.0)
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert (types.error, types.finite_loss, types.finite_gradients) == (None, True, True)


def test_a_job_without_torch_func_has_no_such_note():
    the_job = job(lambda model, x: model(x).mean())
    _, found = observed(the_job)
    assert the_job.notes == ()
    assert found == OUTPUTS | moved(*SIZES)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["Net", "a", "a.b"], "Net"),
        (["a.b", "a", "ab", "c.d"], "a, ab, c.d"),
        ([f"layer{i}" for i in range(6)], "layer0, layer1, layer2, layer3 and 2 more"),
    ],
)
def test_of_nested_modules_the_outer_ones_are_named_and_of_many_the_first(names, told):
    assert not_counted(names, "Net") == NOTHING + told


def test_nothing_is_said_of_no_module():
    assert not_counted([], "Net") is None
