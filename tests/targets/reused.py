"""One block called three times a forward pass, and known by two names."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.alias = self.block

    def forward(self, x):
        return self.alias(self.block(self.block(x)))


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(3, 4)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return (model(x) - x).pow(2).mean()
