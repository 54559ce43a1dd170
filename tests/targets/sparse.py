"""Sparse gradients of an Embedding and an EmbeddingBag."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.bag = nn.Embedding(20, 4, sparse=True), nn.EmbeddingBag(20, 4, mode="sum", sparse=True)
        self.head = nn.Linear(4, 1)

    def forward(self, codes):
        return self.head(self.embed(codes).sum(1) + self.bag(codes))


def build_model():
    return Network()


def train_batches():
    while True:
        yield torch.tensor([[3, 3, 7], [3, 11, 7]])


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, codes):
    return (model(codes) - 1).pow(2).mean()
