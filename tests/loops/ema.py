"""Averaged copies of the model, made while it is being trained, and used as a teacher."""

import copy
from types import SimpleNamespace

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def build(device):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)).to(device)
    return SimpleNamespace(
        model=model, optimizers=[torch.optim.SGD(model.parameters(), lr=0.1)], averaged=None, teacher=None
    )


def step(loop, index):
    if loop.averaged is None:
        loop.averaged = AveragedModel(loop.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        loop.teacher = copy.deepcopy(loop.model).requires_grad_(False)
    (optimizer,) = loop.optimizers
    x = torch.randn(5, 4).to(loop.model[0].weight.device)
    loss = (loop.model(x) - loop.teacher(x)).pow(2).mean() + loop.model(x).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loop.averaged.update_parameters(loop.model)
    return loss + loop.averaged(x).detach().sum()
