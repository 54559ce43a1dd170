"""Gradient accumulation over four micro-batches."""

from types import SimpleNamespace

import torch
from torch import nn

MICRO_BATCHES = 4


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    return SimpleNamespace(model=model, optimizers=[torch.optim.AdamW(model.parameters(), lr=0.01)])


def step(loop, index):
    total = 0
    for _ in range(MICRO_BATCHES):
        loss = loop.model(torch.randn(3, 4).to(loop.model[0].weight.device)).pow(2).mean() / MICRO_BATCHES
        loss.backward()
        total = total + loss.detach()
    loop.optimizers[0].step()
    loop.optimizers[0].zero_grad()
    return total
