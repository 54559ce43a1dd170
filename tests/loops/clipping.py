"""Gradients clipped by value and by norm, in place; zeroed, not dropped."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
    return SimpleNamespace(model=model, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)])


def step(loop, index):
    (optimizer,) = loop.optimizers
    optimizer.zero_grad(set_to_none=False)
    loss = (loop.model(torch.randn(5, 4).to(loop.model[0].weight.device)) * 100).pow(2).mean()
    loss.backward()
    nn.utils.clip_grad_value_(loop.model.parameters(), 2.0**-3)
    nn.utils.clip_grad_norm_(loop.model.parameters(), 2.0**-6)
    optimizer.step()
    return loss
