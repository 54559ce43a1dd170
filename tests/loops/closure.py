"""LBFGS: the optimizer calls the model as often as it likes; here four times."""

from types import SimpleNamespace

import torch
from torch import nn


def build(device):
    model = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 1)).to(device)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4, tolerance_grad=0, tolerance_change=0)
    return SimpleNamespace(model=model, optimizers=[optimizer])


def step(loop, index):
    (optimizer,) = loop.optimizers
    x = torch.randn(8, 4).to(loop.model[0].weight.device)

    def closure():
        optimizer.zero_grad()
        loss = (loop.model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        return loss

    return optimizer.step(closure)
