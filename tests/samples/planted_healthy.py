"""Jobs that look like a fault and are none; tables and forms are planted_faults'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, ROWS, WIDTH, healthy, images, job, sequences

# --- what looks like a fault and is none


@healthy()
def an_adapter_that_starts_at_zero() -> Job:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
            self.down, self.up = nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)
            self.head = nn.Linear(WIDTH, CLASSES)
            nn.init.zeros_(self.up.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.base(x) + self.up(self.down(x)))

    return job(Adapted)


@healthy()
def a_residual_block_whose_last_norm_starts_at_zero() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            self.head = nn.Linear(192, CLASSES)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(x + self.norm(self.conv(x))).flatten(1))

    return job(Net, images)


def policy(mask: Callable[[torch.Tensor], torch.Tensor]) -> Job:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return mask(self.head(self.body(x).relu()))

    return job(Policy, lambda: (torch.randn(ROWS, WIDTH), torch.randint(CLASSES - 1, (ROWS,))))


@healthy()
def actions_masked_with_the_types_own_minimum() -> Job:
    return policy(lambda y: y.masked_fill(torch.arange(CLASSES) == 3, torch.finfo(y.dtype).min))


@healthy()
def actions_masked_with_minus_infinity() -> Job:
    return policy(lambda y: y.masked_fill(torch.arange(CLASSES) == 3, -torch.inf))


@healthy()
def a_regression_on_prices_with_a_huber_loss() -> Job:
    net = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    prices = lambda: (torch.randn(ROWS, WIDTH), 1500 + 100 * torch.randn(ROWS, 1))
    return job(net, prices, lambda model, batch: F.huber_loss(model(batch[0]).float(), batch[1]))


@healthy()
def a_time_stamp_that_only_orders_the_batch() -> Job:
    logged = lambda: (torch.randn(ROWS, WIDTH), torch.randint(CLASSES, (ROWS,)), torch.full((ROWS,), 1.7e9))
    net = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    return job(net, logged, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))


@healthy()
def a_block_with_norm_in_its_name() -> Job:
    class ConvNormRelu(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.norm(self.conv(x)))

    return job(lambda: nn.Sequential(ConvNormRelu(), nn.Flatten(), nn.Linear(288, CLASSES)), images)


@healthy()
def a_pre_norm_block() -> Job:
    class PreNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.mix(self.norm(x))

    return job(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), PreNorm(), nn.Linear(WIDTH, CLASSES)))


@healthy()
def rotary_positions_in_fp32_up_to_2500() -> Job:
    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            angles = torch.arange(x.shape[1]).float()[:, None] / 10_000 ** (torch.arange(0, WIDTH, 2) / WIDTH)
            cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
            q, k = ((t * cos + t.roll(WIDTH // 2, -1) * sin).to(v.dtype) for t in (q, k))
            return self.head(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))

    return job(Rotary, lambda: (torch.randn(1, 2500, WIDTH), torch.randint(CLASSES, (1,))))


@healthy()
def contrast_of_unit_vectors_with_a_temperature() -> Job:
    def contrast(model: nn.Module, batch: Any) -> torch.Tensor:
        z = F.normalize(model(batch[0]), dim=-1)
        likeness = (z @ z.T / 0.07).masked_fill(torch.eye(ROWS).bool(), -torch.inf)
        return F.cross_entropy(likeness, torch.arange(ROWS).roll(ROWS // 2))

    return job(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)), loss=contrast)


@healthy()
def nearest_codes_of_a_code_book() -> Job:
    class Quantised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.codes, self.head = (
                nn.Linear(WIDTH, WIDTH),
                nn.Embedding(32, WIDTH),
                nn.Linear(WIDTH, CLASSES),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.lift(x)
            nearest = self.codes(torch.cdist(z, self.codes.weight).argmin(-1))
            return self.head(z + (nearest - z).detach())

    return job(Quantised)


@healthy()
def padded_attention_with_its_weights() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x, x, x, key_padding_mask=padding)[0].mean(1))

    def padded() -> tuple[torch.Tensor, ...]:
        x, labels = sequences()
        return x, torch.arange(6) >= torch.randint(1, 7, (ROWS, 1)), labels

    return job(Net, padded)


@healthy()
def alignment_by_ctc() -> Job:
    def ctc(model: nn.Module, batch: Any) -> torch.Tensor:
        lengths = torch.full((3,), 12), torch.full((3,), 4)
        return F.ctc_loss(model(batch[0]).log_softmax(-1), batch[1], *lengths)

    return job(lambda: nn.Linear(WIDTH, CLASSES), lambda: (torch.randn(12, 3, WIDTH), torch.randint(1, 4, (3, 4))), ctc)
