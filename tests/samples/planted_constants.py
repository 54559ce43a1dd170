"""Jobs with constants that FP16 does not hold, MP305 to MP308; tables and forms are planted_faults'."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, MASK, ROWS, WIDTH, Between, job, linear, plant, sequences

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
