"""The jobs of benchmarks/loss_scale.py that look at images: classifiers, a U-Net, a detector, a GAN."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loss_scale_making import Batches, job, sgd
from mpdiag.target import Job


def _images(count: int, side: int, classes: int = 10, mislabelled: float = 0.1) -> Batches:
    """Smooth patterns, one a class, shifted and noisy; a tenth of the labels are wrong."""
    patterns = F.interpolate(torch.randn(classes, 3, 6, 6), size=side, mode="bilinear")
    while True:
        labels = torch.randint(classes, (count,))
        images = torch.roll(patterns[labels], tuple(torch.randint(side, (2,)).tolist()), (2, 3))
        wrong = torch.rand(count) < mislabelled
        yield images + torch.randn_like(images), torch.where(wrong, torch.randint(classes, (count,)), labels)


def _classify(model: nn.Module, batch: Any) -> torch.Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(channels_out), nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.pass_on = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.pass_on(x))


def cnn(small: bool) -> Job:
    """A residual network with batch norm, SGD."""
    width, side, count = (8, 16, 16) if small else (32, 32, 128)

    def build() -> nn.Module:
        blocks = [_Residual(3, width, 1), _Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2)]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))

    return job(build, lambda: _images(count, side), _classify, sgd(0.05))


def deep_cnn(small: bool) -> Job:
    """Sixteen convolutions without any norm, He initialisation, SGD."""
    width, side, count = (8, 16, 16) if small else (32, 32, 64)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        channels = 3
        for index in range(16):
            out = width * (1 + index // 6)
            layers += [nn.Conv2d(channels, out, 3, 2 if index in (6, 12) else 1, 1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            channels = out
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    return job(build, lambda: _images(count, side), _classify, sgd(0.005))


class _Unet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()

        def block(channels_in: int, channels_out: int) -> nn.Module:
            parts = (nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(4, channels_out), nn.SiLU())
            return nn.Sequential(*parts)

        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.middle = block(2 * width, 4 * width)
        self.lift2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.lift1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up2, self.up1 = block(4 * width, 2 * width), block(2 * width, width)
        self.out = nn.Conv2d(width, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.middle(F.max_pool2d(b, 2))
        d = self.up2(torch.cat([self.lift2(c), b], 1))
        return self.out(self.up1(torch.cat([self.lift1(d), a], 1)))


def unet(small: bool) -> Job:
    """A U-Net that finds a small disc in noise, cross-entropy a pixel and Dice, Adam."""
    width, side, count = (8, 16, 8) if small else (32, 64, 16)

    def batches() -> Batches:
        line = torch.arange(side, dtype=torch.float32)
        while True:
            centre, radius = torch.rand(2, count, 1, 1) * side, 2 + torch.rand(count, 1, 1) * side / 8
            disc = ((line[None, :, None] - centre[0]) ** 2 + (line[None, None, :] - centre[1]) ** 2 < radius**2).float()
            yield (disc + 0.7 * torch.randn(count, side, side)).unsqueeze(1), disc.unsqueeze(1)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        images, masks = batch
        logits = model(images).float()
        chance = logits.sigmoid()
        dice = 1 - (2 * (chance * masks).sum() + 1) / (chance.sum() + masks.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, masks) + dice

    return job(lambda: _Unet(width), batches, loss, lambda model: torch.optim.Adam(model.parameters(), 1e-3))


class _Detector(nn.Module):
    ANCHORS, CLASSES = 3, 4  # three sizes a cell; background and three kinds

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out, stride in ((1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (4, 1)):
            layers += [nn.Conv2d(channels, out * width, 3, stride, 1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")
            channels = out * width
        self.trunk = nn.Sequential(*layers)
        self.kinds = nn.Conv2d(channels, self.ANCHORS * self.CLASSES, 3, padding=1)
        self.boxes = nn.Conv2d(channels, self.ANCHORS * 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.trunk(x)
        return tuple(
            head(seen).permute(0, 2, 3, 1).reshape(len(x), -1, last)
            for head, last in ((self.kinds, self.CLASSES), (self.boxes, 4))
        )


def detector(small: bool) -> Job:
    """Boxes of three kinds, one or two an image: of all anchors a few are positive, and the loss is their mean; SGD."""
    width, side, count = (8, 32, 8) if small else (24, 96, 16)
    cells, colours = side // 8, torch.tensor([[2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])

    def batches() -> Batches:
        while True:
            images = 0.5 * torch.randn(count, 3, side, side)
            kinds = torch.zeros(count, cells, cells, _Detector.ANCHORS, dtype=torch.long)
            boxes = torch.zeros(count, cells, cells, _Detector.ANCHORS, 4)
            for i in range(count):
                for _ in range(int(torch.randint(1, 3, ()))):
                    kind, size = int(torch.randint(3, ())), int(torch.randint(4, side // 3, ()))
                    y, x = (int(v) for v in torch.randint(side - size, (2,)))
                    images[i, :, y : y + size, x : x + size] += colours[kind][:, None, None]
                    row, column = (y + size // 2) // 8, (x + size // 2) // 8
                    anchor = min(size * 9 // side, 2)
                    kinds[i, row, column, anchor] = kind + 1
                    place = [(y + size / 2) / 8 - row, (x + size / 2) / 8 - column, math.log(size / 8), 1.0]
                    boxes[i, row, column, anchor] = torch.tensor(place)
            yield images, kinds.flatten(1), boxes.flatten(1, 3)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        images, kinds, boxes = batch
        said, where = model(images)
        classes = F.cross_entropy(said.flatten(0, 1), kinds.flatten())
        off = F.smooth_l1_loss(where, boxes, reduction="none").sum(-1)
        return classes + (off * (kinds > 0)).mean()

    return job(lambda: _Detector(width), batches, loss, sgd(0.02))


class _Gan(nn.Module):
    NOISE = 32

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(self.NOISE, 4 * width, 4, bias=False), nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 1, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Conv2d(1, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4), nn.Flatten(),
        )  # fmt: skip


def gan(small: bool) -> Job:
    """A DCGAN of 32 px: transposed convolutions, batch norm, two Adams."""
    width, count = (8, 8) if small else (48, 64)

    def batches() -> Batches:
        line = torch.linspace(-1, 1, 32)
        while True:
            centre, size = torch.rand(2, count, 1, 1) - 0.5, 0.2 + 0.3 * torch.rand(count, 1, 1)
            far = torch.maximum((line[None, :, None] - centre[0]).abs(), (line[None, None, :] - centre[1]).abs())
            real = torch.tanh((size - far) * 20).unsqueeze(1)
            yield real + 0.05 * torch.randn_like(real), torch.randn(count, _Gan.NOISE, 1, 1)

    def losses(model: nn.Module, batch: Any) -> Any:
        real, noise = batch
        made = model.generator(noise)
        of_real, of_made = model.discriminator(real), model.discriminator(made.detach())
        on_real = F.binary_cross_entropy_with_logits(of_real, torch.ones_like(of_real))
        yield "discriminator", on_real + F.binary_cross_entropy_with_logits(of_made, torch.zeros_like(of_made))
        judged = model.discriminator(made)
        yield "generator", F.binary_cross_entropy_with_logits(judged, torch.ones_like(judged))

    def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        parts = {"discriminator": model.discriminator, "generator": model.generator}
        return {k: torch.optim.Adam(part.parameters(), 2e-4, betas=(0.5, 0.999)) for k, part in parts.items()}

    return Job("", __name__, lambda: _Gan(width), batches, losses, optimizers, synthetic_data=True)
