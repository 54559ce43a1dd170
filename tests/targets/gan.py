"""A DCGAN on digits: two optimizers, transposed convolutions, tanh, logits loss."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 2), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2, True),
            nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2, True), nn.Flatten(), nn.Linear(128, 1),
        )  # fmt: skip


def build_model():
    return Gan()


def build_optimizers(model):
    return {
        "discriminator": torch.optim.Adam(model.discriminator.parameters(), 2e-4, betas=(0.5, 0.999)),
        "generator": torch.optim.Adam(model.generator.parameters(), 2e-4, betas=(0.5, 0.999)),
    }


def train_batches():
    images = torch.tensor(load_digits().images / 8.0 - 1, dtype=torch.float32).unsqueeze(1)
    while True:
        yield images[torch.randint(len(images), (32,))], torch.randn(32, 16, 1, 1)


def compute_losses(model, batch):
    real, noise = batch
    fake = model.generator(noise)
    on_real, on_fake = model.discriminator(real), model.discriminator(fake.detach())
    loss = F.binary_cross_entropy_with_logits(on_real, torch.ones_like(on_real))
    yield "discriminator", loss + F.binary_cross_entropy_with_logits(on_fake, torch.zeros_like(on_fake))
    judged = model.discriminator(fake)
    yield "generator", F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))
