"""The loss scale's snippet is executed as it is pasted, for one optimizer and for several."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loss_scale_samples import FEW, MANY, capture, table
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import LossScaleAdvice
from mpdiag.loop import LoopFacts, OptimizerGroup, for_all_optimizers
from mpdiag.other_formats import BF16_SNIPPET, TF32_SNIPPET

# the snippet


def run_snippet(advice: LossScaleAdvice) -> tuple[torch.nn.Module, torch.Tensor, dict[str, Any]]:
    """Run the snippet as it is pasted, with the GPU's name replaced by the CPU's."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    before = model.weight.detach().clone()
    names = {
        "torch": torch,
        "model": model,
        "batch": torch.ones(8, 4),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "compute_loss": lambda model, batch: model(batch).float().pow(2).mean(),
    }
    assert '"cuda"' in advice.snippet
    exec(advice.snippet.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.bfloat16"), names)
    return model, before, names


@pytest.mark.parametrize(
    ("tables", "steps", "log2_scale", "growth_interval"),
    [
        ([table("w", {-30: 1000})], FEW, 20, 2000),
        ([table("w", {-33: 1000, 3: 1}, 2.0**3)], FEW, 8, 8000),
        ([table("w", {-25: 1000}, 2.0**-15, steps=MANY)], MANY, 20, 10**9),
        ([table("w", {-10: 1000, 20: 1}, 2.0**20)], FEW, -11, 2000),
    ],
)
def test_the_snippet_trains_with_the_recommended_scaler(tables, steps, log2_scale, growth_interval):
    model, before, names = run_snippet(recommend(capture(*tables, steps=steps)))
    scaler = names["scaler"]
    assert scaler.get_scale() == 2.0**log2_scale
    assert scaler.get_growth_interval() == growth_interval
    assert not torch.equal(model.weight, before)
    assert model.weight.grad is None


def test_the_snippet_without_a_scale_trains_without_a_scaler():
    advice = recommend(capture(table("w", {-10: 1000})))
    model, before, names = run_snippet(advice)
    assert advice.mode == "none"
    assert "scaler" not in names
    assert not torch.equal(model.weight, before)


def group(optimizer: str) -> OptimizerGroup:
    return OptimizerGroup(optimizer, "SGD", "float32", 4, "weight")


TWO = (group("d"), group("g"))
IN_TURN = """\
losses = iter(compute_losses(model, batch))
for name in ("d", "g"):
    with torch.autocast("cuda", dtype=torch.float16):
        _, loss = next(losses)
    scaler.scale(loss).backward()
    scaler.step(optimizers[name])
    model.zero_grad()
scaler.update()  # once, after all of them
"""
TOGETHER = """\
with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
scaler.scale(loss).backward()
for optimizer in optimizers.values():
    scaler.step(optimizer)
scaler.update()  # once, after all of them
model.zero_grad()
"""


@pytest.mark.parametrize(
    ("losses", "expected"), [(("d", "g"), IN_TURN), ((), IN_TURN), (("loss",), TOGETHER)], ids=["own", "unseen", "one"]
)
@pytest.mark.parametrize("bins", [{-30: 1000}, {-10: 1000}], ids=["scaled", "unscaled"])
def test_the_snippet_steps_each_of_several_optimizers_and_updates_the_scale_once(losses, expected, bins):
    facts = LoopFacts({"float32": 4}, TWO, losses=losses)
    advice = recommend(capture(table("w", bins), loop=facts))
    if advice.mode == "none":
        expected = expected.replace("scaler.update()  # once, after all of them\n", "")
        expected = expected.replace("scaler.scale(loss)", "loss").replace("scaler.step(optimizer)", "optimizer.step()")
        expected = expected.replace("scaler.step(optimizers[name])", "optimizers[name].step()")
    assert advice.snippet.endswith(expected)
    models = {name: torch.nn.Linear(4, 1) for name in "dg"}
    model = torch.nn.ModuleDict(models)
    before = {name: each.weight.detach().clone() for name, each in models.items()}

    def compute_losses(model, batch):
        for name in "dg":
            yield name, model[name](batch).float().pow(2).mean()

    names = {
        "torch": torch,
        "model": model,
        "batch": torch.ones(8, 4),
        "optimizers": {name: torch.optim.SGD(each.parameters(), lr=0.1) for name, each in models.items()},
        "compute_losses": compute_losses,
        "compute_loss": lambda model, batch: sum(loss for _, loss in compute_losses(model, batch)),
    }
    exec(advice.snippet.replace('"cuda"', '"cpu"').replace("torch.float16", "torch.bfloat16"), names)
    assert all(not torch.equal(models[name].weight, before[name]) for name in "dg")
    assert all(p.grad is None for p in model.parameters())


def test_for_one_optimizer_and_for_unknown_code_the_snippet_stays():
    one = LoopFacts({"float32": 4}, (group("loss"), group("loss")))
    for code in (BF16_SNIPPET, TF32_SNIPPET, "train()\n"):
        assert for_all_optimizers(code, one) == for_all_optimizers(code, None) == code
    two = LoopFacts({"float32": 4}, TWO)
    assert for_all_optimizers("train()\n", two) == "train()\n"
    for code in (BF16_SNIPPET, TF32_SNIPPET):
        written = for_all_optimizers(code, two)
        compile(written, "", "exec")
        assert "optimizers[name].step()" in written
        assert for_all_optimizers(written, two) == written
