"""A job that asks for BF16 autocast itself, with an FP32 island."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.norm(self.body(x))
            with torch.autocast(x.device.type, enabled=False):
                return self.head(y.float())


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(5, 4)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return model(x).pow(2).mean()
