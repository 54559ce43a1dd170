"""The jobs of benchmarks/loss_scale.py whose gradients are far from 1."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loss_scale_making import Batches, job
from mpdiag.target import Job


def _points(count: int, outputs: int) -> Batches:
    """A smooth field of noisy points in the unit cube."""
    waves, phases = torch.randn(8, 16) * 1.5, torch.rand(16) * 6
    mix = torch.randn(16, outputs) / 4
    while True:
        places = torch.rand(count, 8)
        field = torch.sin(places @ waves + phases) @ mix
        yield places, field + 0.1 * torch.randn_like(field)


def _mlp(width: int, outputs: int) -> nn.Module:
    parts: list[nn.Module] = [nn.Linear(8, width), nn.GELU()]
    for _ in range(3):
        parts += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def tiny_gradients(small: bool) -> Job:
    """A field regressed in SI units, a thousandth each, mean of squares over all points: gradients near 1e-9; Adam."""
    width, outputs, count = (32, 8, 64) if small else (256, 8, 1024)
    unit = 1e-3

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        places, field = batch
        return F.mse_loss(model(places).float() * unit, field * unit)

    optimizer = lambda model: torch.optim.Adam(model.parameters(), 1e-3, eps=1e-15)
    return job(lambda: _mlp(width, outputs), lambda: _points(count, outputs), loss, optimizer)


def huge_gradients(small: bool) -> Job:
    """A regression of values in the tens, squares summed over the batch: gradients near 1e4; Adam."""
    width, count = (32, 64) if small else (256, 256)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        places, field = batch
        return F.mse_loss(model(places) * 3, field * 30, reduction="sum")

    optimizer = lambda model: torch.optim.Adam(model.parameters(), 1e-3)
    return job(lambda: _mlp(width, 1), lambda: _points(count, 1), loss, optimizer)
