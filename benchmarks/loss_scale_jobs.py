"""The jobs of benchmarks/loss_scale.py: plain torch, synthetic data that can be learnt, no dropout.

Each function gives a Job, `small` one for a CPU. A job's batches are a data set of its seed, repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target import Job
from mpdiag.target.job import ONLY

BATCHES = 100  # in a data set
Batches = Iterator[Any]
Optimizer = Callable[[nn.Module], torch.optim.Optimizer]


def _job(
    build: Callable[[], nn.Module],
    batches: Callable[[], Batches],
    loss: Callable[[nn.Module, Any], torch.Tensor],
    optimizer: Optimizer,
) -> Job:
    def losses(model: nn.Module, batch: Any) -> Any:
        yield ONLY, loss(model, batch)

    return Job("", __name__, build, batches, losses, lambda model: {ONLY: optimizer(model)}, synthetic_data=True)


def _sgd(rate: float, momentum: float = 0.9) -> Optimizer:
    return lambda model: torch.optim.SGD(model.parameters(), rate, momentum)


def _adamw(rate: float) -> Optimizer:
    return lambda model: torch.optim.AdamW(model.parameters(), rate)


# vision


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

    return _job(build, lambda: _images(count, side), _classify, _sgd(0.05))


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

    return _job(build, lambda: _images(count, side), _classify, _sgd(0.005))


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

    return _job(lambda: _Unet(width), batches, loss, lambda model: torch.optim.Adam(model.parameters(), 1e-3))


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

    return _job(lambda: _Detector(width), batches, loss, _sgd(0.02))


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


# language


def _text(vocabulary: int, count: int, length: int) -> Batches:
    """A language in which each code is followed by one of four, the first of them half of the time."""
    follows = torch.randint(vocabulary, (vocabulary, 4))
    odds = torch.tensor([0.5, 0.25, 0.15, 0.1])
    while True:
        codes = torch.randint(vocabulary, (count, length))
        choices = torch.multinomial(odds, count * length, replacement=True).view(count, length)
        for i in range(1, length):
            codes[:, i] = follows[codes[:, i - 1], choices[:, i]]
        yield codes


class _Lstm(nn.Module):
    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, 2 * width, 2, batch_first=True)
        self.head = nn.Linear(2 * width, vocabulary)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(self.embed(codes))[0])


def _next_code(model: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(codes[:, :-1]).flatten(0, 1), codes[:, 1:].flatten())


def lstm(small: bool) -> Job:
    """A two-layer LSTM language model, SGD with a large learning rate."""
    vocabulary, width, count, length = (64, 32, 8, 17) if small else (512, 128, 32, 49)
    return _job(lambda: _Lstm(vocabulary, width), lambda: _text(vocabulary, count, length), _next_code, _sgd(2.0, 0.0))


class _Attention(nn.Module):
    """Heads 32 wide. bias: nn.Linear's own; positions: a learnt bias by distance in place of the usual scaling."""

    HEAD = 32

    def __init__(self, width: int, bias: bool = True, positions: int = 0) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=bias) for _ in range(4))
        self.near = nn.Embedding(2 * positions, width // self.HEAD) if positions else None
        self.positions = positions

    def forward(self, x: torch.Tensor, memory: torch.Tensor, causal: bool = False) -> torch.Tensor:
        split = lambda t: t.unflatten(-1, (-1, self.HEAD)).transpose(1, 2)
        q, k, v = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        if self.near is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        else:
            rows, columns = torch.arange(q.shape[2], device=x.device), torch.arange(k.shape[2], device=x.device)
            apart = (columns - rows[:, None]).clamp(-self.positions, self.positions - 1) + self.positions
            scores = q @ k.transpose(-1, -2) + self.near(apart).permute(2, 0, 1)
            if causal:
                scores = scores.masked_fill(columns > rows[:, None], -math.inf)
            y = scores.float().softmax(-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        self.attention = _Attention(width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feed = lambda t: self.narrow(F.gelu(self.wide(t)))
        if self.before:
            y = self.norm1(x)
            x = x + self.attention(y, y, causal=True)
            return x + feed(self.norm2(x))
        x = self.norm1(x + self.attention(x, x))
        return self.norm2(x + feed(x))


class _Transformer(nn.Module):
    """GPT's order (norms before, causal) or BERT's (norms after); the head is the embedding."""

    def __init__(self, vocabulary: int, width: int, layers: int, length: int, before: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, before) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=0.02)
        self.head.weight = self.embed.weight

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        x = self.embed(codes) + self.place(torch.arange(codes.shape[1], device=codes.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def gpt(small: bool) -> Job:
    """A GPT, norms before, AdamW."""
    vocabulary, width, layers, count, length = (64, 64, 2, 4, 17) if small else (4096, 256, 4, 16, 129)
    build = lambda: _Transformer(vocabulary, width, layers, length, before=True)
    return _job(build, lambda: _text(vocabulary, count, length), _next_code, _adamw(5e-4))


def bert(small: bool) -> Job:
    """A BERT, norms after, 15 % of the codes masked, AdamW."""
    vocabulary, width, layers, count, length = (64, 64, 2, 8, 16) if small else (4096, 256, 4, 16, 128)

    def batches() -> Batches:
        for codes in _text(vocabulary - 1, count, length):
            hidden = torch.rand(codes.shape) < 0.15
            yield torch.where(hidden, vocabulary - 1, codes), torch.where(hidden, codes, -100)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        codes, wanted = batch
        return F.cross_entropy(model(codes).flatten(0, 1), wanted.flatten())

    build = lambda: _Transformer(vocabulary, width, layers, length, before=False)
    return _job(build, batches, loss, _adamw(2e-4))


class _RmsNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6))


class _T5Block(nn.Module):
    def __init__(self, width: int, decodes: bool) -> None:
        super().__init__()
        self.own = _Attention(width, bias=False, positions=16)
        self.cross = _Attention(width, bias=False, positions=16) if decodes else None
        self.norms = nn.ModuleList(_RmsNorm(width) for _ in range(3 if decodes else 2))
        self.gate, self.wide = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.narrow = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.own(y, y, causal=self.cross is not None)
        if self.cross is not None:
            x = x + self.cross(self.norms[1](x), memory)
        y = self.norms[-1](x)
        return x + self.narrow(F.gelu(self.gate(y)) * self.wide(y))


class _T5(nn.Module):
    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.encoder = nn.ModuleList(_T5Block(width, False) for _ in range(layers))
        self.decoder = nn.ModuleList(_T5Block(width, True) for _ in range(layers))
        self.norm1, self.norm2 = _RmsNorm(width), _RmsNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for part in self.modules():
            if isinstance(part, _Attention):
                nn.init.normal_(part.query.weight, std=(width * _Attention.HEAD) ** -0.5)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        x = self.embed(source)
        for block in self.encoder:
            x = block(x)
        memory, y = self.norm1(x), self.embed(target)
        for block in self.decoder:
            y = block(y, memory)
        return self.head(self.norm2(y))


def t5(small: bool) -> Job:
    """A T5: RMS norms, gated feed-forward, unscaled attention with a learnt bias; it translates code by code, AdamW."""
    vocabulary, width, layers, count, length = (64, 64, 1, 4, 12) if small else (1024, 256, 2, 32, 48)

    def batches() -> Batches:
        meaning = torch.randperm(vocabulary)
        for codes in _text(vocabulary, count, length):
            yield codes, meaning[codes]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        source, target = batch
        given = F.pad(target[:, :-1], (1, 0))
        return F.cross_entropy(model(source, given).flatten(0, 1), target.flatten())

    return _job(lambda: _T5(vocabulary, width, layers), batches, loss, _adamw(5e-4))


# extremes


def _points(count: int, outputs: int) -> Batches:
    """A smooth field of noisy points in the unit cube."""
    waves, phases = torch.randn(8, 16) * 1.5, torch.rand(16) * 6
    mix = torch.randn(16, outputs) / 4
    while True:
        places = torch.rand(count, 8)
        field = torch.sin(places @ waves + phases) @ mix
        yield places, field + 0.1 * torch.randn_like(field)


def _mlp(width: int, outputs: int) -> nn.Module:
    parts: list[nn.Module] = [nn.Linear(8, width), nn.GELU()]
    for _ in range(3):
        parts += [nn.Linear(width, width), nn.GELU()]
    return nn.Sequential(*parts, nn.Linear(width, outputs))


def tiny_gradients(small: bool) -> Job:
    """A field regressed in SI units, a thousandth each, mean of squares over all points: gradients near 1e-9; Adam."""
    width, outputs, count = (32, 8, 64) if small else (256, 8, 1024)
    unit = 1e-3

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        places, field = batch
        return F.mse_loss(model(places).float() * unit, field * unit)

    optimizer = lambda model: torch.optim.Adam(model.parameters(), 1e-3, eps=1e-15)
    return _job(lambda: _mlp(width, outputs), lambda: _points(count, outputs), loss, optimizer)


def huge_gradients(small: bool) -> Job:
    """A regression of values in the tens, squares summed over the batch: gradients near 1e4; Adam."""
    width, count = (32, 64) if small else (256, 256)

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        places, field = batch
        return F.mse_loss(model(places) * 3, field * 30, reduction="sum")

    optimizer = lambda model: torch.optim.Adam(model.parameters(), 1e-3)
    return _job(lambda: _mlp(width, 1), lambda: _points(count, 1), loss, optimizer)


JOBS = {
    make.__name__: make
    for make in (cnn, deep_cnn, lstm, gan, detector, bert, gpt, t5, unet, tiny_gradients, huge_gradients)
}
