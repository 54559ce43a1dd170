"""A capture leaves no hook and no activation behind, and keeps what was counted when it fails or stops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks

from mpdiag.capture.modules import ModuleWatch
from mpdiag.capture.probe import Probe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest
from mpdiag.drift import observed_parts
from mpdiag.errors import MpdiagError
from tiny_job_samples import AG, CPU, WG, bins, constant, image_net, job, tables

# nothing left behind


def hooks_on(model: nn.Module) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return modules + sum(
        len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()
    )


def test_removing_the_probe_takes_every_hook_off():
    model = image_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, [optimizer], CPU)
    # two on each of 6 parameters; modules are watched by one hook of torch's own
    assert hooks_on(model) == 2 * 6
    assert len(_global_forward_hooks) == 1
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (1, 1)
    probe.remove()
    assert hooks_on(model) == 0
    assert not _global_forward_hooks
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 0)


class Prompt(nn.Module):
    """Returns its own parameter, as learnt prompts, queries and position tables do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.tensor([2.0]))

    def forward(self) -> torch.Tensor:
        return self.tokens


class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = Prompt()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.prompt()


def test_a_module_that_returns_its_own_parameter_has_its_gradient_counted_once_a_step():
    found = tables(job(Prompted, torch.tensor([4.0])), steps=3)
    assert bins(found[AG, "prompt"]) == {2: 3}
    assert bins(found[WG, "prompt.tokens"]) == {2: 3}


def test_a_module_that_returns_its_own_parameter_has_no_hook_left_on_it():
    model = Prompted()
    probe = Probe(model, [], CPU)
    model(torch.tensor([4.0])).sum().backward()
    probe.remove()
    assert hooks_on(model) == 0


def test_a_capture_that_fails_leaves_no_hook_on_the_model_and_keeps_what_was_counted():
    built = []

    def model() -> nn.Module:
        built.append(constant(nn.Linear(1, 1)))
        return built[-1]

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if model.weight.item() != 0.5:
            raise ValueError("second step")
        return model(batch).sum()

    the_job = job(model, torch.ones(1, 1), loss)
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    with pytest.raises(MpdiagError):
        observe_training(the_job, the_job.start(0, 1), observation, observed_parts(5))
    assert [hooks_on(each) for each in built] == [0] * len(built)
    assert len(observation.losses) == 1
    assert {table.steps for table in observation.tables} == {1}


def test_an_infinite_fp32_loss_stops_the_capture_at_its_step():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.tensor([[3e38]]), lambda m, b: m(b).sum() * 8)
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    with pytest.raises(MpdiagError) as caught:
        observe_training(the_job, the_job.start(0, 1), observation, observed_parts(5))
    assert caught.value.slug == "loss-not-finite"
    assert observation.losses == [float("inf")]
    assert observation.tables


def test_no_activation_is_kept_alive_by_the_watch():
    model = nn.Linear(2, 2)
    import weakref

    seen = []
    watch = ModuleWatch(model, lambda name, module, tensor: seen.append(weakref.ref(tensor)))
    model(torch.ones(1, 2))
    assert [ref() for ref in seen] == [None]
    watch.remove()
