"""Activation checkpointing, reentrant and not, with dropout and batch norm inside."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.old = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(inplace=True))
        self.new = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        y = checkpoint(self.old, self.stem(x), use_reentrant=True)
        return self.head(checkpoint(self.new, y, use_reentrant=False))


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(6, 4)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return model(x).pow(2).mean()
