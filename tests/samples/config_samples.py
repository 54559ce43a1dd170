"""Diagnoses to make configurations of, the texts of a dynamic scale, and the small job that the texts train."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import report_samples as samples
from mpdiag.advice.configs import Config, configs_for
from mpdiag.advice.loss_scale import _snippet
from mpdiag.diagnosis import Diagnosis
from mpdiag.plan import IslandPlan, plan_snippet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF, FULL = torch.float16, torch.float32
MODES = {
    "dynamic": ("dynamic", 14, 2000),
    "rare growth": ("dynamic", 11, 8000),
    "below one": ("dynamic", -3, 2000),
    "static": ("static", 12, None),
    "none": ("none", 0, None),
}


def diagnosis(
    mode: str = "dynamic",
    log2_scale: int | None = 14,
    interval: int | None = 2000,
    islands: tuple[str, ...] = (),
    train_with: str | None = "fp16",
) -> Diagnosis:
    whole = samples.full()
    assert whole.advice is not None
    assert whole.verification is not None
    scale = replace(
        whole.advice.loss_scale,
        mode=mode,
        log2_scale=log2_scale,
        growth_interval=interval,
        snippet=_snippet(log2_scale, mode, interval or 2000),
    )
    code = plan_snippet(islands, scale.snippet)
    plan = IslandPlan(islands, True, True, log2_scale, mode, interval, 1, 0.1, True, snippet=code) if islands else None
    return replace(
        whole,
        advice=replace(whole.advice, loss_scale=scale, keep_fp32=islands, plan=plan),
        verification=replace(whole.verification, train_with=train_with),
    )


def texts(found: Diagnosis) -> dict[str, str]:
    return {config.title: config.text for config in configs_for(found)}


def config(title: str, found: Diagnosis) -> Config:
    return next(each for each in configs_for(found) if each.title == title)


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, list[str]]:
    """The lines of each text that were not in it before."""
    return {
        title: [line for line in text.splitlines() if line not in before[title].splitlines()]
        for title, text in after.items()
    }


DYNAMIC = {
    "PyTorch": """\
import torch

scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)

with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()
optimizer.zero_grad()
""",
    "Lightning": """\
import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision

scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, growth_interval=2000)
trainer = L.Trainer(plugins=[MixedPrecision("16-mixed", device="cuda", scaler=scaler)])
trainer.fit(model, batches)
""",
    "transformers": """\
from transformers import Trainer, TrainingArguments

args = TrainingArguments(output_dir="checkpoints", fp16=True)
trainer = Trainer(model=model, args=args, train_dataset=dataset)
scaler = trainer.accelerator.scaler  # TrainingArguments has no field for the scale
scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**14, "growth_interval": 2000})
trainer.train()
""",
    "Accelerate": """\
from accelerate import Accelerator
from accelerate.utils import GradScalerKwargs

scaling = GradScalerKwargs(init_scale=2.0**14, growth_interval=2000)
accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[scaling])
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

for batch in batches:
    with accelerator.autocast():
        loss = compute_loss(model, batch)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
""",
    "DeepSpeed": """\
{
  "fp16": {
    "enabled": true,
    "loss_scale": 0,
    "initial_scale_power": 14,
    "loss_scale_window": 2000,
    "hysteresis": 1,
    "min_loss_scale": 1
  },
  "zero_optimization": {
    "stage": 1
  }
}
""",
}


STEPS = 4
RATE = 0.05


class Small(torch.nn.Module):
    """Two layers that remember the types they computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        self.seen: tuple[torch.dtype, ...] = ()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        hidden = self.body(x)
        out = self.head(hidden)
        self.seen = (hidden.dtype, out.dtype)
        return out if labels is None else {"loss": (out.float() - labels).square().mean()}


def small() -> Small:
    torch.manual_seed(1)
    return Small()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(2, 4, device=DEVICE), torch.randn(2, 1, device=DEVICE)) for _ in range(STEPS)]


def compute_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x).float() - y).square().mean()


def learns(model: torch.nn.Module) -> bool:
    """Whether the first layer has moved as it does in FP32, but for a tenth: a lost or doubled scale is no tenth."""
    start, reference = small().body.weight, small().to(DEVICE)
    optimizer = torch.optim.SGD(reference.parameters(), lr=RATE)
    for batch in batches():
        compute_loss(reference, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = reference.body.weight.cpu() - start
    return bool((model.body.weight.float().cpu() - start - moved).abs().max() < 0.1 * moved.abs().max())
