"""Hooks of the user's own: one replaces an output, one doubles a gradient, one looks at a module's backward."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    model[1].register_forward_hook(lambda module, inputs, output: output * 2)
    model[2].register_full_backward_hook(lambda module, given, got: None)
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    return SimpleNamespace(model=model, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)])


def step(loop, index):
    (optimizer,) = loop.optimizers
    optimizer.zero_grad()
    loss = loop.model(torch.randn(5, 4).to(loop.model[0].weight.device)).pow(2).mean()
    loss.backward()
    optimizer.step()
    return loss
