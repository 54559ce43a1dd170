"""Jobs whose values, inputs or weights are beyond FP16, MP101 to MP104; tables and forms are planted_faults'."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target import load_job
from mpdiag.target.job import Job
from planted_faults import CLASSES, ROWS, T5_LIKE, WIDTH, features, images, job, linear, plant, sequences

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
