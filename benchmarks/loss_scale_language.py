"""The jobs of benchmarks/loss_scale.py that read text: an LSTM, a GPT, a BERT, a T5."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loss_scale_making import Batches, adamw, job, sgd
from mpdiag.target import Job


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
    return job(lambda: _Lstm(vocabulary, width), lambda: _text(vocabulary, count, length), _next_code, sgd(2.0, 0.0))


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
    return job(build, lambda: _text(vocabulary, count, length), _next_code, adamw(5e-4))


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
    return job(build, batches, loss, adamw(2e-4))


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

    return job(lambda: _T5(vocabulary, width, layers), batches, loss, adamw(5e-4))
