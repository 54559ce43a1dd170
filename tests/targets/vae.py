"""A variational autoencoder: exp, pow, sum in the loss, sampling in the forward pass, tuple outputs."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(8, 64), nn.Softplus(), nn.Linear(64, 64))

    def forward(self, x):
        mean, log_variance = self.encode(x).chunk(2, dim=-1)
        # a fixed pseudo-noise, so that a CPU and a GPU can be compared
        noise = torch.sin(1000 * x[:, :8])
        return self.decode(mean + (log_variance / 2).exp() * noise), mean, log_variance


def build_model():
    return Vae()


def train_batches():
    images = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    while True:
        yield images[torch.randint(len(images), (64,))]


def compute_loss(model, x):
    shown, mean, log_variance = model(x)
    divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(dim=-1).mean()
    return F.binary_cross_entropy_with_logits(shown, x, reduction="none").sum(dim=-1).mean() + divergence
