"""Custom autograd Functions: a straight-through rounding, and one whose backward makes its own gradient."""

import torch
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Round(Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 4) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Swish(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x), torch.sigmoid(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient, _):
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return gradient * gate * (1 + x * (1 - gate))


class Activation(nn.Module):
    def forward(self, x):
        return Swish.apply(x)[0]


class Quantizer(nn.Module):
    def forward(self, x):
        return Round.apply(x)


def build_model():
    return nn.Sequential(nn.Linear(4, 6), Activation(), Quantizer(), nn.Linear(6, 2))


def train_batches():
    while True:
        yield torch.randn(5, 4)


def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def compute_loss(model, x):
    return model(x).pow(2).mean()
