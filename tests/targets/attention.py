"""MultiheadAttention to itself and across, with and without its weights."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.MultiheadAttention(8, 2, batch_first=True)
        self.across = nn.MultiheadAttention(8, 2, kdim=4, vdim=4)
        self.norm = nn.LayerNorm(8)

    def forward(self, x, memory):
        y, _ = self.own(x, x, x, need_weights=False)
        y = self.norm(x + y)
        z, weights = self.across(y.transpose(0, 1), memory, memory)
        return z, weights


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.randn(2, 5, 8), torch.randn(3, 2, 4)


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def compute_loss(model, batch):
    z, weights = model(*batch)
    return z.pow(2).mean() + weights.pow(2).sum(-1).mean()
