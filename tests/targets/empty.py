"""Every second batch is empty, as the last one of a sharded epoch may be."""

import torch
from torch import nn


def build_model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def train_batches():
    while True:
        yield torch.randn(5, 3)
        yield torch.empty(0, 3)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return model(x).pow(2).sum()
