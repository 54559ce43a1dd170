"""torch.compile after the probe is attached."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    torch.compiler.reset()  # past its limit of recompilations torch runs a model uncompiled, and modules are seen
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    return SimpleNamespace(model=model, compiled=None, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)])


def step(loop, index):
    if loop.compiled is None:
        loop.compiled = torch.compile(loop.model, backend="aot_eager")
    (optimizer,) = loop.optimizers
    optimizer.zero_grad()
    loss = loop.compiled(torch.randn(5, 4).to(loop.model[0].weight.device)).pow(2).mean()
    loss.backward()
    optimizer.step()
    return loss
