"""A language model whose head has the embedding's weight."""

import torch
import torch.nn.functional as F
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(16, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, codes):
        return self.head(F.gelu(self.mix(self.embed(codes))))


def build_model():
    return Model()


def train_batches():
    while True:
        yield torch.randint(16, (4, 7))


def build_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


def compute_loss(model, codes):
    return F.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())
