"""Two optimizers that both step in one iteration, after two backward passes through one graph."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.ModuleDict({"body": nn.Linear(4, 8), "left": nn.Linear(8, 1), "right": nn.Linear(8, 1)}).to(device)
    heads = [*model["left"].parameters(), *model["right"].parameters()]
    optimizers = [torch.optim.SGD(model["body"].parameters(), lr=0.1), torch.optim.Adam(heads, lr=0.01)]
    return SimpleNamespace(model=model, optimizers=optimizers)


def step(loop, index):
    loop.model.zero_grad()
    y = loop.model["body"](torch.randn(5, 4).to(loop.model["body"].weight.device)).tanh()
    left, right = loop.model["left"](y).pow(2).mean(), (loop.model["right"](y) - 1).pow(2).mean()
    left.backward(retain_graph=True)
    right.backward()
    for optimizer in loop.optimizers:
        optimizer.step()
    return left + right
