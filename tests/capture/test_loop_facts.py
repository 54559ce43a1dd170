"""The facts of a training loop: its settings, its layers, its events and the largest of its inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loop_samples import CPU
from mpdiag.capture.loop_facts import observe_loop
from mpdiag.loop import Layer, LoopFacts, OptimizerGroup
from mpdiag.target.job import Job
from planted_faults import CLASSES, WIDTH, classify, features, job

# the facts


def facts(the_job: Job) -> tuple[LoopFacts, float | None]:
    return observe_loop(the_job, the_job.start(0, 1), CPU)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def test_the_facts_of_a_plain_job():
    seen, largest = facts(job(net))
    assert seen.trainable == {"float32": WIDTH * 6 + 6 + 6 * CLASSES + CLASSES}
    assert seen.layers == (Layer("0", "Linear", WIDTH, 6, WIDTH), Layer("2", "Linear", 6, CLASSES, 6))
    (group,) = seen.groups
    assert group == OptimizerGroup(
        "loss", "AdamW", "float32", 82, "0.weight", 1e-3, 1e-8, (0.9, 0.999), None, 0.01, True, False,
        {"exp_avg": "float32", "exp_avg_sq": "float32"}, False,
    )  # fmt: skip
    assert (seen.half_norms, seen.events, seen.events_reason) == ((), (), None)
    assert 2.0 < largest < 6.0


def test_a_convolutions_dimensions_are_those_of_one_group():
    seen, _ = facts(
        job(
            lambda: nn.Sequential(nn.Conv2d(4, 8, (3, 5), groups=2), nn.Flatten(), nn.Linear(8 * 6 * 4, CLASSES)),
            lambda: features(1.0, 4, 8, 8),
        )
    )
    assert seen.layers[0] == Layer("0", "Conv2d", 2, 4, 2 * 15)


def in_bfloat16() -> tuple[torch.Tensor, ...]:
    return tuple(t.bfloat16() if t.is_floating_point() else t for t in features())


def test_stochastic_rounding_is_taken_for_whole_updates():
    class Stochastic(torch.optim.SGD):
        bf16_stochastic_round = True

    loss = lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1])
    seen = {
        kind: facts(job(lambda: net().bfloat16(), in_bfloat16, loss, kind))[0] for kind in (Stochastic, torch.optim.SGD)
    }
    assert seen[Stochastic].groups[0].whole_updates
    assert not seen[torch.optim.SGD].groups[0].whole_updates


@pytest.mark.parametrize(
    ("batch", "loss", "largest"),
    [
        (lambda: (torch.full((4, WIDTH), -300.0), torch.full((4,), 9e9)), lambda m, b: m(b[0]).pow(2).mean(), 300.0),
        (lambda: (torch.full((4, WIDTH), 300.0), 0), lambda m, b: m(b[0] / 100).pow(2).mean(), 3.0),
        (lambda: (torch.full((4, WIDTH), 7, dtype=torch.uint8), 0), lambda m, b: m(b[0].float()).pow(2).mean(), 7.0),
        (lambda: (torch.full((4, WIDTH), 7.0), 0), lambda m, b: m(b[0].fill_diagonal_(torch.inf)).mean(), 7.0),
        (lambda: (torch.full((4, WIDTH), 7.0), 0), lambda m, b: m(torch.ones(4, WIDTH)).mean() + b[0].mean(), None),
    ],
    ids=["a target", "divided on the way", "bytes", "an infinity", "never given to the model"],
)
def test_an_input_is_measured_where_weights_multiply_it(batch, loss, largest):
    assert facts(job(net, batch, loss))[1] == largest


@pytest.mark.parametrize("by", ["__matmul__", "einsum"])
def test_an_input_that_a_parameter_multiplies_is_measured(by):
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.basis = nn.Parameter(torch.ones(WIDTH, CLASSES)), torch.eye(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x @ self.basis / 10  # a fixed basis is no weight
            return x @ self.weight if by == "__matmul__" else torch.einsum("bi,io->bo", x, self.weight)

    assert facts(job(ByHand, lambda: (torch.full((4, WIDTH), 70.0), torch.zeros(4, dtype=torch.long))))[1] == 7.0


def test_what_follows_the_first_layer_is_no_input():
    def build() -> nn.Module:
        model = net()
        nn.init.constant_(model[0].weight, 1e5)
        return model.requires_grad_(False).append(nn.Linear(CLASSES, CLASSES))  # frozen: nothing requires a gradient

    assert facts(job(build, lambda: (torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.long))))[1] == 1.0


def test_an_attention_mask_is_no_input():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), mask).mean(1))

    batch = lambda: (torch.ones(4, 6, WIDTH), torch.full((6, 6), -1e9).triu(1), torch.zeros(4, dtype=torch.long))
    assert facts(job(Net, batch))[1] == 1.0


def test_a_job_that_fails_while_it_is_watched_still_has_its_settings():
    def hostile(model: nn.Module, batch: Any) -> torch.Tensor:
        assert not torch.overrides._get_current_function_mode_stack()
        return classify(model, batch)

    seen, largest = facts(job(net, loss=hostile))
    assert seen.events_reason.startswith("the watched iteration failed: ")
    assert (seen.groups[0].lr, seen.groups[0].state, largest) == (1e-3, None, None)


def test_nothing_stays_stood_in_for():
    before = [torch.autocast.__enter__, torch.amp.GradScaler.scale, torch.autograd.Function.__dict__["apply"]]
    facts(job(net))
    assert [torch.autocast.__enter__, torch.amp.GradScaler.scale, torch.autograd.Function.__dict__["apply"]] == before


def test_a_step_of_the_optimizer_is_nobodys_line():
    assert facts(job(lambda: net().bfloat16(), in_bfloat16))[0].events == ()
