"""MP519 and MP520: gradients clipped while scaled, or of mixed scales, in loops of the job's own."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loop_samples import CPU
from mpdiag.capture.loop_watch import LoopWatch
from mpdiag.loop import LoopEvent
from planted_faults import CLASSES, WIDTH

# MP519 clipped-while-scaled, MP520 mixed-scales: on loops of the job's own


def own_loop(
    step: Any, model: nn.Module, optimizer: torch.optim.Optimizer | None, iterations: int = 2
) -> set[LoopEvent]:
    with LoopWatch(model, [optimizer] if optimizer else []) as watch:
        for _ in range(iterations):
            step()
    return {what for what, _, _ in watch.events} & {LoopEvent.CLIPPED_SCALED, LoopEvent.MIXED_SCALES}


@pytest.mark.parametrize("name", ["accumulation", "clipping", "scaler", "scaler_clipped", "scaler_fused"])
def test_mp519_and_mp520_a_loop_in_order_is_silent(name):
    path = Path(__file__).parents[1] / "loops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop, numbers = module.build(CPU), iter(range(9))
    assert own_loop(lambda: module.step(loop, next(numbers)), loop.model, loop.optimizers[0], 4) == set()


@pytest.mark.parametrize(
    ("order", "seen"),
    [
        ("scale scale unscale clip step zero", set()),
        ("scale scale clip step zero", {LoopEvent.CLIPPED_SCALED}),
        ("scale scale clip unscale step zero", {LoopEvent.CLIPPED_SCALED}),
        ("scale unscale scale step zero", {LoopEvent.MIXED_SCALES}),
        ("scale unscale update scale unscale clip step zero", {LoopEvent.MIXED_SCALES}),
        ("scale unscale zero scale step zero", set()),  # a step that the job itself leaves out
        ("scale step zero scale divide unscale clip step zero", set()),
        ("plain clip", set()),
        ("scale step zero plain clip", set()),  # as a critic that takes turns with what the scaler trains
        ("scale step zero plain clip scale clip step zero", {LoopEvent.CLIPPED_SCALED}),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_mp519_and_mp520_what_is_called_in_which_order(order, seen, enabled):
    model = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=enabled)

    def stepped() -> None:
        scaler.step(optimizer)
        scaler.update()

    loss = lambda: model(torch.ones(3, WIDTH)).pow(2).mean()
    calls = {
        "scale": lambda: scaler.scale(loss()).backward(),
        "plain": lambda: loss().backward(),
        "unscale": lambda: scaler.unscale_(optimizer),
        "update": scaler.update,
        "clip": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False),
        "divide": lambda: [p.grad.div_(2) for p in model.parameters()],
        "step": stepped,
        "zero": lambda: optimizer.zero_grad(set_to_none=False),
    }
    assert own_loop(lambda: [calls[call]() for call in order.split()], model, optimizer) == (seen if enabled else set())


def test_mp519_a_clamp_by_keywords_alone_is_let_through():
    x = torch.tensor([-1.0, 1.0])
    assert own_loop(lambda: torch.clamp_(input=x, min=0.0), nn.Linear(1, 1), None) == set()
    assert x.tolist() == [0.0, 1.0]


def test_mp519_a_watched_step_trains_as_an_unwatched_one():
    losses = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(WIDTH, CLASSES)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
        with LoopWatch(model, [optimizer]) if watched else contextlib.nullcontext():
            scaler.scale(model(torch.ones(3, WIDTH)).pow(2).mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        losses.append(model.weight.detach().clone())
    assert torch.equal(*losses)
