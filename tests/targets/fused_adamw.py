"""AdamW in one fused kernel, two groups."""

import torch
from torch import nn


def build_model():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))


def train_batches():
    while True:
        yield torch.randn(5, 4)


def build_optimizer(model):
    groups = [{"params": model[0].parameters(), "weight_decay": 0.0}, {"params": model[2].parameters(), "lr": 0.1}]
    return torch.optim.AdamW(groups, lr=0.01, fused=True)


def compute_loss(model, x):
    return model(x).pow(2).mean()
