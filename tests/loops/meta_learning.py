"""MAML: the loss after an inner step, differentiated twice, through torch.func.functional_call."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.func import functional_call


def build(device):
    model = nn.Sequential(nn.Linear(2, 6), nn.Softplus(), nn.Linear(6, 1)).to(device)
    return SimpleNamespace(model=model, optimizers=[torch.optim.Adam(model.parameters(), lr=0.01)])


def step(loop, index):
    inputs = torch.randn(5, 2).to(loop.model[0].weight.device)
    wanted = inputs.sum(1, keepdim=True).sin()
    names, weights = zip(*loop.model.named_parameters(), strict=True)
    inner = (loop.model(inputs) - wanted).pow(2).mean()
    slopes = torch.autograd.grad(inner, weights, create_graph=True)
    moved = {name: w - 0.1 * slope for name, w, slope in zip(names, weights, slopes, strict=True)}
    loop.optimizers[0].zero_grad()
    outer = (functional_call(loop.model, moved, (inputs,)) - wanted).pow(2).mean()
    outer.backward()
    loop.optimizers[0].step()
    return outer
