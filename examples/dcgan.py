"""A DCGAN on patches of photos: two networks, two optimizers, transposed convolutions with batch norm.

    mpdiag scan examples/dcgan.py

Shows a job of several losses: `compute_losses` yields one after the other, `build_optimizers` gives both optimizers.
The paper's DCGAN on CelebA made faces of the same quality without a loss scale.
Data: scikit-learn's two photos, cut into patches; their right quarter is held out. The metric is the distance between
generated and held-out patches over random projections (sliced Wasserstein), lower is better.
On a GPU the paper's widths at 64 x 64 pixels, 256 images a step, elsewhere small; EXAMPLE_SIZE=small or large chooses.
"""

import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import nn

HIGHER_IS_BETTER = False
DATA_SOURCE = "patches of scikit-learn's two photos"
LARGE = os.environ.get("EXAMPLE_SIZE", "large" if torch.cuda.is_available() else "small") == "large"
WIDTH, DOUBLINGS, BATCH, NOISE, TESTED = (64, 4, 256, 100, 1024) if LARGE else (8, 2, 16, 16, 64)
SIDE = 4 << DOUBLINGS  # pixels
HELD_OUT_FROM = 480  # of the photos' 640 columns

PHOTOS = torch.stack([torch.tensor(image) for image in load_sample_images().images]).permute(0, 3, 1, 2)


def _patches(photos, count, random=None):
    """Patches of random places, half of them mirrored, as floats in -1..1."""
    _, _, height, width = photos.shape
    ends = torch.tensor([len(photos), height - SIDE, width - SIDE, 2])
    places = (torch.rand(count, 4, generator=random) * ends).int().tolist()
    cut = [photos[p, :, y : y + SIDE, x : x + SIDE].flip(-1 if mirrored else ()) for p, y, x, mirrored in places]
    return torch.stack(cut).float() / 127.5 - 1.0


HELD_OUT = _patches(PHOTOS[..., HELD_OUT_FROM:], TESTED, torch.Generator().manual_seed(1))


def _generator():
    width = WIDTH << (DOUBLINGS - 1)
    layers = [nn.ConvTranspose2d(NOISE, width, 4, 1, 0, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(DOUBLINGS - 1):
        layers += [nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()]
        width //= 2
    return nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())


def _discriminator():
    width = WIDTH
    layers = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
    for _ in range(DOUBLINGS - 1):
        layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 4, 1, 0), nn.Flatten())


class Gan(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = _generator(), _discriminator()
        for module in self.modules():  # the DCGAN's own initialisation
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)


def build_model():
    return Gan()


def train_batches():
    while True:
        yield _patches(PHOTOS[..., :HELD_OUT_FROM], BATCH), torch.randn(BATCH, NOISE, 1, 1)


def _judged(scores, real):
    return F.binary_cross_entropy_with_logits(scores, torch.full_like(scores, float(real)))


def compute_losses(model, batch):
    real, noise = batch
    made = model.generator(noise)
    yield "discriminator", _judged(model.discriminator(real), True) + _judged(model.discriminator(made.detach()), False)
    yield "generator", _judged(model.discriminator(made), True)


def build_optimizers(model):
    parts = {"discriminator": model.discriminator, "generator": model.generator}
    return {name: torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999)) for name, part in parts.items()}


def evaluate(model):
    """Mean distance, over 128 fixed random projections, between sorted generated and sorted held-out patches."""
    random = torch.Generator().manual_seed(2)
    noise = torch.randn(TESTED, NOISE, 1, 1, generator=random)
    directions = F.normalize(torch.randn(3 * SIDE * SIDE, 128, generator=random), dim=0)
    weight = next(model.parameters())
    model.eval()
    made = torch.cat([model.generator(part.to(weight.device, weight.dtype)).float().cpu() for part in noise.split(256)])
    model.train()
    sides = [(patches.flatten(1) @ directions).sort(dim=0).values for patches in (made, HELD_OUT)]
    return {"distance": (sides[0] - sides[1]).abs().mean().item()}
