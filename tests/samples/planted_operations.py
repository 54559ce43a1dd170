"""Jobs with values that vanish and operations that overflow, MP105 to MP110; tables and forms are planted_faults'."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, MASK, WIDTH, Between, features, images, job, linear, plant, sequences

# --- MP105 activation-underflow


@plant("MP105", "warning", "lift", "MP203")
def inputs_in_metres_where_nanometres_are_meant() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.lift(x) * 1e8)

    return job(Net, lambda: features(2e-8))


@plant("MP105", "warning", "Net")
def a_product_between_modules_that_vanishes() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lift(x) * 1e-5
            z = y * 1e-4  # <-
            return self.head(z * 1e9)

    return job(Net)


# --- MP106 attention-logits-overflow


@plant("MP106", "error", "attention", "MP102")
def attention_scaled_after_its_product() -> Job:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (linear(WIDTH, WIDTH, size) for size in (400.0, 400.0, 1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = self.q(x) @ self.k(x).transpose(-2, -1)  # <-
            return F.softmax(scores / math.sqrt(WIDTH), -1) @ self.v(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = Attention(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x).mean(1))

    return job(Net, sequences)


@plant("MP106", "error", "Net", "MP102")
def attention_by_einsum_with_a_mask() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qk, self.head = linear(WIDTH, 2 * WIDTH, 400.0), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k = self.qk(x).chunk(2, -1)
            scores = torch.einsum("bqd,bkd->bqk", q, k)  # <-
            scores = scores.div(math.sqrt(WIDTH)).masked_fill(MASK, -torch.inf)
            return self.head((scores.softmax(-1) @ x).mean(1))

    return job(Net, sequences)


# --- MP107 and MP108: squares in a norm


@plant("MP107", "error", "norm", "MP102")
def a_root_mean_square_norm_by_hand() -> Job:
    class RmsNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(WIDTH))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = (x * x).mean(-1, keepdim=True)  # <-
            return self.weight * x * torch.rsqrt(mean + 1e-4)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = linear(WIDTH, WIDTH, 300.0), RmsNorm(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lift(x)))

    return job(Net)


@plant("MP107", "error", "Between", "MP102")
def a_length_by_hand() -> Job:
    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / ((x * x).sum(-1, keepdim=True).sqrt() + 1e-3)  # <-

    return job(lambda: Between(unit, 1000.0))


@plant("MP108", "warning", "norm", "MP102", "MP306")
def a_root_mean_square_norm_of_tiny_numbers() -> Job:
    class RmsNorm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = (x * x).mean(-1, keepdim=True)  # <-
            return x * torch.rsqrt(mean + 1e-10)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = linear(WIDTH, WIDTH, 5e-5), RmsNorm(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lift(x)))

    return job(Net)


# --- MP109 sum-overflow


@plant("MP109", "error", "Net", "MP102")
def seventy_thousand_ones_added_up() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(1, WIDTH), nn.Linear(WIDTH, CLASSES)
            nn.init.ones_(self.lift.bias)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lift(x)
            total = y.sum(1, dtype=y.dtype)  # <-
            return self.head(total / x.shape[1])

    return job(Net, lambda: (torch.rand(1, 70_000, 1), torch.randint(CLASSES, (1,))))


@plant("MP109", "error", "Graph", "MP102")
def nodes_of_a_graph_added_up_by_index() -> Job:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
            nn.init.constant_(self.lift.bias, 40.0)

        def forward(self, nodes: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
            y = self.lift(nodes)
            pooled = y.new_zeros(2, WIDTH).index_add(0, graph, y)  # <-
            return self.head(F.layer_norm(pooled, (WIDTH,)))

    nodes = lambda: (torch.randn(4000, WIDTH), torch.arange(4000) % 2, torch.randint(CLASSES, (2,)))
    return job(Graph, nodes)


# --- MP110 operation-overflow


@plant("MP110", "error", "gated", "MP102", "MP204")
def a_gate_times_its_value() -> Job:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = linear(WIDTH, 2 * WIDTH, 300.0), linear(WIDTH, WIDTH, 1e-5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, value = self.up(x).chunk(2, -1)
            return F.layer_norm(self.down(gate.relu() * value), (WIDTH,))  # <-

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gated, self.head = Gated(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.gated(x))

    return job(Net)


@plant("MP110", "error", "Between")
def a_soft_cap_with_too_steep_a_slope() -> Job:
    def capped(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 3e4) + x  # <-

    return job(lambda: Between(capped, 3.0))


@plant("MP110", "error", "code outside the model", "MP102")
def a_gram_matrix_in_the_loss() -> Job:
    net = lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))

    def style(model: nn.Module, batch: Any) -> torch.Tensor:
        features = 300 * model(batch[0]).flatten(2)
        gram = features @ features.transpose(1, 2) / 64  # <-
        return F.l1_loss(gram.abs().log1p(), torch.zeros_like(gram))

    return job(net, images, style)


@plant("MP110", "error", "Net", "MP102")
def pooling_that_adds_up() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, CLASSES)
            nn.init.constant_(self.conv.bias, 1500.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            pooled = F.avg_pool2d(self.conv(x), 8, divisor_override=1)  # <-
            return self.head(F.layer_norm(pooled.flatten(1), (8,)))

    return job(Net, images)


@plant("MP110", "error", "Between", "MP102")
def squared_lengths_by_einsum() -> Job:
    def unit(x: torch.Tensor) -> torch.Tensor:
        squares = torch.einsum("bd,bd->b", x, x)  # <-
        return x / (squares[:, None].sqrt() + 1e-3)

    return job(lambda: Between(unit, 1000.0))
