"""Training jobs as users write them, each with one planted fault; `# <-` marks the line at fault.

Every job is a small model, real batches, a loss and an optimizer; what a scan has to find in it stands above it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target import load_job
from mpdiag.target.job import ONLY, Job

Loss = Callable[[nn.Module, Any], torch.Tensor]
ROWS, WIDTH, CLASSES = 16, 8, 4
MASK = torch.ones(6, 6, dtype=torch.bool).triu(1)
T5_LIKE = str(Path(__file__).parents[1] / "islands" / "t5_like.py")


@dataclass(frozen=True)
class Plant:
    """A job and what a scan must say of it. consequences: other codes that the same fault may bring."""

    build: Callable[[], Job]
    code: str
    severity: str
    subject: str
    consequences: tuple[str, ...]
    steps: int

    @property
    def line(self) -> str | None:
        """file.py:line of the mark, None where the fault is no line of code."""
        lines, first = inspect.getsourcelines(self.build)
        marked = [first + i for i, line in enumerate(lines) if line.rstrip().endswith("# <-")]
        assert len(marked) <= 1
        return f"{Path(inspect.getfile(self.build)).name}:{marked[0]}" if marked else None


PLANTS: dict[str, Plant] = {}


def plant(
    code: str, severity: str, subject: str, *consequences: str, steps: int = 3
) -> Callable[[Callable[[], Job]], Callable[[], Job]]:
    """Enter a job into the table."""

    def enter(build: Callable[[], Job]) -> Callable[[], Job]:
        PLANTS[f"{code}-{build.__name__}"] = Plant(build, code, severity, subject, consequences, steps)
        return build

    return enter


@dataclass(frozen=True)
class Healthy:
    """A job without a fault. expected: warnings that are true all the same."""

    build: Callable[[], Job]
    expected: tuple[str, ...]


HEALTHY: dict[str, Healthy] = {}


def healthy(*expected: str) -> Callable[[Callable[[], Job]], Callable[[], Job]]:
    """Enter a job that looks like a fault and is none."""

    def enter(build: Callable[[], Job]) -> Callable[[], Job]:
        HEALTHY[build.__name__] = Healthy(build, expected)
        return build

    return enter


def classify(model: nn.Module, batch: Any) -> torch.Tensor:
    *inputs, labels = batch
    return F.cross_entropy(model(*inputs), labels)


def job(
    model: Callable[[], nn.Module],
    batch: Callable[[], Any] | None = None,
    loss: Loss = classify,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
) -> Job:
    """A job in the shape that a target file becomes."""

    def losses(the_model: nn.Module, the_batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(the_model, the_batch)

    def batches() -> Iterator[Any]:
        while True:
            yield (batch or features)()

    return Job(
        name="planted",
        source=Path(__file__).name,
        build_model=model,
        train_batches=batches,
        losses=losses,
        build_optimizers=lambda m: {ONLY: optimizer([p for p in m.parameters() if p.requires_grad], lr=lr)},
    )


def features(size: float = 1.0, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, *(shape or (WIDTH,))) * size, torch.randint(CLASSES, (ROWS,))


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    return features(1.0, 6, WIDTH)


def images(size: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(ROWS, 3, 8, 8) * size, torch.randint(CLASSES, (ROWS,))


def linear(size_in: int, size_out: int, size: float) -> nn.Linear:
    """A layer whose outputs are about `size` times its inputs."""
    layer = nn.Linear(size_in, size_out, bias=False)
    nn.init.normal_(layer.weight, std=size / math.sqrt(size_in))
    return layer


class Between(nn.Module):
    """Two layers and a norm, and between the layers what a user wrote."""

    def __init__(self, fn: Callable[[torch.Tensor], torch.Tensor], size: float = 1.0) -> None:
        super().__init__()
        self.lift = linear(WIDTH, WIDTH, size)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(self.norm(self.fn(self.lift(x))))
        return y.mean(1) if y.dim() == 3 else y


# --- MP101 activation-overflow


@plant("MP101", "error", "wide", "MP201")
def a_linear_with_an_outlier_channel() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
            with torch.no_grad():
                self.wide.weight[3] = 40000.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.wide(x)  # <-
            return self.head(self.norm(y))

    return job(Net)


@plant("MP101", "error", "conv", "MP201")
def a_convolution_before_its_batch_norm() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
            with torch.no_grad():
                self.conv.weight *= 2e5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)  # <-
            return self.head(self.norm(y).relu().mean((2, 3)))

    return job(Net, images)


@plant("MP101", "error", "attention.out", "MP104", "MP201")
def an_attention_whose_output_projection_is_large() -> Job:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), linear(WIDTH, WIDTH, 2e5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mixed = F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
            return F.layer_norm(self.out(mixed), (WIDTH,))  # <-

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = Attention(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.attention(x).mean(1))

    return job(Net, sequences)


@plant("MP101", "error", "encoder.1.1.wo")
def the_wo_of_t5() -> Job:
    return load_job(T5_LIKE)


@plant("MP101", "warning", "wide", "MP201")
def a_linear_within_an_octave_of_the_limit() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
            with torch.no_grad():
                self.wide.weight[0], self.wide.bias[0] = 0.0, 50000.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.wide(x)))  # <-

    return job(Net)


@plant("MP101", "error", "blocks.1", "MP201")
def a_residual_stream_that_grows() -> Job:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
            with torch.no_grad():
                self.mix.bias[0] = 40000.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.mix(self.norm(x))).to(x.dtype)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.blocks = nn.Linear(WIDTH, WIDTH), nn.ModuleList(Block() for _ in range(2))
            self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.lift(x)
            for block in self.blocks:
                x = block(x)  # <-
            return self.head(x)

    return job(Net)


@plant("MP101", "error", "lift", "MP201")
def an_outlier_in_the_third_batch() -> Job:
    drawn = iter([1.0, 1.0, 3e5])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lift(x)))  # <-

    return job(Net, lambda: features(next(drawn, 1.0)))


@plant("MP101", "error", "layer.linear2", "MP201")
def the_feed_forward_of_a_torch_encoder_layer() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
            self.head = nn.Linear(WIDTH, CLASSES)
            with torch.no_grad():
                self.layer.linear2.weight[1] = 4e4  # of features that are 0 or more

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x).mean(1))  # <-

    return job(Net, sequences)


@plant("MP101", "error", "up", "MP201")
def a_transposed_convolution() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.norm, self.head = nn.ConvTranspose2d(3, 8, 2, 2), nn.GroupNorm(2, 8), nn.Linear(8, CLASSES)
            with torch.no_grad():
                self.up.weight *= 3e5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(self.up(x))  # <-
            return self.head(y.mean((2, 3)))

    return job(Net, images)


@plant("MP101", "error", "project")
def a_module_that_calls_the_functional_linear() -> Job:
    class Project(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((WIDTH, WIDTH), 6e4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, self.weight)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.head = Project(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.project(x).tanh())  # <-

    return job(Net)


# --- MP102 nonfinite-in-fp16


@plant("MP102", "error", "head", "MP110")
def an_operation_between_modules_overflows() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = linear(WIDTH, WIDTH, 100.0), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lift(x) * 1000 / 1e5
            return self.head(y)  # <-

    return job(Net)


@plant("MP102", "error", "norm", "MP107")
def a_hand_written_norm_gives_nothing_but_zeros() -> Job:
    class RootMeanSquare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-4).to(x.dtype)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = linear(WIDTH, WIDTH, 1500.0), RootMeanSquare(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lift(x)))  # <-

    return job(Net)


# --- MP103 input-range


@plant("MP103", "warning", "the input batch")
def pixels_left_in_0_to_255() -> Job:
    net = lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, CLASSES))
    return job(net, lambda: images(255.0))


@plant("MP103", "warning", "the input batch", "MP101", "MP201", "MP204")
def time_stamps_as_they_come() -> Job:
    def visits() -> tuple[torch.Tensor, torch.Tensor]:
        return 1.7e9 + torch.rand(ROWS, 3) * 1e6, torch.randint(CLASSES, (ROWS,))

    return job(lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES)), visits)


# --- MP104 weight-overflow


@plant("MP104", "error", "wide.weight", "MP102", "MP201")
def a_weight_of_a_checkpoint_trained_in_bf16() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
            with torch.no_grad():
                self.wide.weight[0, 0] = 1e5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.wide(x * 1e-3).tanh())

    return job(Net)


@plant("MP104", "error", "conv.weight", "MP102", "MP201")
def a_filter_beyond_fp16() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
            with torch.no_grad():
                self.conv.weight[2, 1, 0, 0] = -7e4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    return job(Net, lambda: images(0.1))


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


# --- MP2xx: gradients, scale and update


@plant("MP201", "info", "refine")
def a_loss_averaged_over_many_pixels() -> Job:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.refine = nn.Conv2d(1, 1, 3, padding=1)
            with torch.no_grad():
                self.refine.weight *= 1e-3
                self.refine.bias *= 1e-3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.refine(x)  # <-

    def pictures() -> tuple[torch.Tensor, torch.Tensor]:
        clean = torch.randn(16, 1, 128, 128)
        return clean + 0.01 * torch.randn_like(clean), clean

    return job(Denoiser, pictures, lambda model, batch: F.mse_loss(model(batch[0]), batch[1]))


@plant("MP201", "info", "0")
def a_loss_with_a_tiny_weight() -> Job:
    net = lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES))
    return job(net, loss=lambda model, batch: 1e-7 * classify(model, batch))


@plant("MP202", "info", "GradScaler")
def a_loss_added_up_over_a_deep_net_of_sigmoids() -> Job:
    hidden = lambda: [layer for _ in range(5) for layer in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
    net = lambda: nn.Sequential(*hidden(), nn.Linear(WIDTH, CLASSES))
    added = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="sum")
    return job(net, loss=added)


@plant("MP203", "error", "2.bias")
def a_summed_loss_of_large_targets() -> Job:
    net = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))
    added = lambda model, batch: F.mse_loss(model(batch[0])[:, 0].float(), 2e4 * batch[1], reduction="sum")
    return job(net, loss=added)


@plant("MP204", "error", "loss scale", "MP201")
def two_heads_whose_gradients_are_2_to_34_apart() -> Job:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.near, self.far = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.near(x), self.far(x)

    def both(model: nn.Module, batch: Any) -> torch.Tensor:
        near, far = model(batch[0])
        return 2.0**12 * F.cross_entropy(near, batch[1]) + 2.0**-22 * F.cross_entropy(far, batch[1])

    return job(Two, loss=both)


@plant("MP205", "info", "0.weight")
def a_learning_rate_of_a_millionth() -> Job:
    return job(lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES, bias=False)), lr=1e-6)


@plant("MP205", "error", "0.weight", "MP501", "MP502")
def a_model_called_half_of() -> Job:
    half = lambda: tuple(t.half() if t.is_floating_point() else t for t in features())
    return job(
        lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES, bias=False)).half(), half, optimizer=torch.optim.SGD, lr=1e-5
    )


@plant("MP205", "error", "0.weight", "MP501")
def a_model_in_bfloat16() -> Job:
    halved = lambda: tuple(t.bfloat16() if t.is_floating_point() else t for t in features())
    return job(
        lambda: nn.Sequential(nn.Linear(WIDTH, CLASSES, bias=False)).bfloat16(),
        halved,
        optimizer=torch.optim.SGD,
        lr=1e-4,
    )


# --- MP301 to MP304: operators


@plant("MP301", "warning", "norm")
def a_layer_norm_by_hand() -> Job:
    class LayerNormByHand(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            centred = x - x.mean(-1, keepdim=True)
            return centred / ((centred * centred).mean(-1, keepdim=True) + 1e-4).sqrt()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.norm, self.head = nn.Linear(WIDTH, WIDTH), LayerNormByHand(), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.lift(x)))  # <-

    return job(Net)


def critic() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LeakyReLU(0.2), nn.Linear(WIDTH, 1))


@plant("MP302", "warning", "the loss")
def a_wasserstein_loss_left_in_fp16() -> Job:
    wasserstein = lambda model, pair: model(pair[1]).mean() - model(pair[0]).mean()
    return job(critic, lambda: (torch.randn(ROWS, WIDTH), torch.randn(ROWS, WIDTH)), wasserstein)


@plant("MP302", "warning", "the loss")
def a_hinge_loss_left_in_fp16() -> Job:
    return job(critic, lambda: torch.randn(ROWS, WIDTH), lambda model, x: (1 - model(x)).relu().mean())


@plant("MP302", "error", "the loss", "MP201", "MP204")
def prices_cast_to_the_type_of_the_output() -> Job:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), linear(WIDTH, 1, 1e-3))

    def absolute(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0])[:, 0]
        return (output - 2e4 * batch[1].to(output.dtype)).abs().mean()

    return job(net, lambda: (torch.randn(4096, WIDTH), torch.rand(4096)), absolute)


@plant("MP303", "error", "the loss")
def binary_cross_entropy_of_probabilities() -> Job:
    net = lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.Sigmoid())
    loss = lambda model, batch: nn.BCELoss()(model(batch[0])[:, 0], (batch[1] > 1).float())
    return job(net, loss=loss)


@plant("MP304", "error", "the forward pass")
def rows_put_into_an_fp32_buffer() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            memory = torch.zeros(len(x), WIDTH)
            memory[torch.arange(len(x))] = self.lift(x)
            return self.head(memory)

    return job(Net)


@plant("MP304", "error", "the forward pass", "MP510")
def a_product_of_two_types_in_a_custom_backward() -> Job:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x, weight)
            return x @ weight

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, weight = ctx.saved_tensors
            return gradient @ weight.T, x.T @ gradient

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(WIDTH, CLASSES) / WIDTH)
            self.lift = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Product.apply(self.lift(x), self.weight)

    return job(Net)


@plant("MP304", "info", "the emulation")
def a_solver_that_has_no_fp16() -> Job:
    def solved(x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(x.mT @ x + torch.eye(WIDTH, dtype=x.dtype), x.mT).mT

    return job(lambda: Between(solved))


# --- MP305 to MP308: constants


def masked_attention(mask: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], nn.Module]:
    def attend(x: torch.Tensor) -> torch.Tensor:
        return mask(x @ x.transpose(-2, -1) / WIDTH).softmax(-1) @ x

    return lambda: Between(attend)


@plant("MP305", "error", "Between", "MP304")
def a_mask_filled_with_minus_a_billion() -> Job:
    def masked(scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(MASK, -1e9)  # <-

    return job(masked_attention(masked), sequences)


@plant("MP305", "warning", "Between")
def a_mask_of_minus_a_billion_added() -> Job:
    def masked(scores: torch.Tensor) -> torch.Tensor:
        return scores + MASK.to(scores.dtype) * -1e9  # <-

    return job(masked_attention(masked), sequences)


@plant("MP306", "error", "Between", "MP102")
def an_eps_that_guards_a_pruned_channel() -> Job:
    def scaled(x: torch.Tensor) -> torch.Tensor:
        y = x * torch.arange(WIDTH).bool()
        largest = y.abs().amax(0)
        return y / (largest + 1e-8)  # <-

    return job(lambda: Between(scaled))


@plant("MP306", "warning", "Between")
def an_eps_of_a_hundred_millionth() -> Job:
    def unit(x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + 1e-8)  # <-

    return job(lambda: Between(unit))


@plant("MP307", "info", "Net")
def the_logarithm_of_a_softmax() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(self.head(x).softmax(-1))  # <-

    return job(Net, loss=lambda model, batch: F.nll_loss(model(batch[0]), batch[1]))


@plant("MP307", "error", "Net", "MP102", "MP201")
def the_logarithm_of_a_softmax_cast_back_to_fp16() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = linear(WIDTH, CLASSES, 8.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.head(x)
            return torch.log(y.softmax(-1).to(y.dtype))  # <-

    return job(Net, loss=lambda model, batch: F.nll_loss(model(batch[0]), batch[1]))


@plant("MP308", "warning", "Between")
def positions_in_the_type_of_the_activations() -> Job:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(3000).to(x.dtype)[-len(x) :, None] / 1000  # <-
        return x * angles.cos()

    return job(lambda: Between(rotated))


@plant("MP308", "warning", "Net")
def ids_of_items_cast_to_half() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lift, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            place = ids.half() / 30_000  # <-
            return self.head(self.lift(x) + place[:, None])

    def baskets() -> tuple[torch.Tensor, ...]:
        return torch.randn(ROWS, WIDTH), torch.randint(10_000, 30_000, (ROWS,)), torch.randint(CLASSES, (ROWS,))

    return job(Net, baskets)


# --- MP309: recurrent layers


@plant("MP309", "info", "memory")
def a_recurrent_layer_that_bf16_leaves_in_fp16() -> Job:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.memory, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, _ = self.memory(x)  # <-
            return self.head(states[:, -1])

    return job(Net, sequences)


# --- a fault that no rule is made for


@plant("MP102", "error", "the loss", "MP201", "MP306", "MP307")
def binary_cross_entropy_by_hand() -> Job:
    def by_hand(model: nn.Module, batch: Any) -> torch.Tensor:
        p, wanted = torch.sigmoid(model(batch[0])[:, 0]), (batch[1] > 1).float()
        return -(wanted * torch.log(p) + (1 - wanted) * torch.log(1 - p)).mean()  # p is 1 in FP16 from 8.4 on

    def certain() -> nn.Linear:
        layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(layer.weight, 12.0)
        return layer

    return job(certain, lambda: (torch.tensor([[1.0], [-1.0]]), torch.tensor([2, 0])), by_hand)


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
