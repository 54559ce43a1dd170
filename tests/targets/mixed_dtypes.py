"""A bfloat16 body and a float64 head in one float32 model."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.body = nn.Linear(8, 8).bfloat16()
        self.head = nn.Linear(8, 2).double()

    def forward(self, x):
        return self.head(self.body(self.stem(x).bfloat16()).double())


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(5, 4)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def compute_loss(model, x):
    return model(x).pow(2).mean()
