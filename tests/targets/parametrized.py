"""Weights that are computed: weight norm, spectral norm, and a parametrization of the user's own."""

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).T


def build_model():
    own = nn.Linear(4, 4, bias=False)
    parametrize.register_parametrization(own, "weight", Symmetric())
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 4)),
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        own,
    )


def train_batches():
    while True:
        yield torch.randn(5, 3)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return model(x).pow(2).mean()
