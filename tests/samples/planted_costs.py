"""Jobs that would be slow, coarse or unfit for FP8, one each; tables and forms are planted_faults'."""

from __future__ import annotations

import torch
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, ROWS, WIDTH, classify, features, job, plant


@plant("MP206", "info", "wide")
def two_heads_whose_gradients_are_2_to_25_apart() -> Job:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.tall = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.wide(x), self.tall(x)

    def both(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        wide, tall = model(batch[0])
        return 2.0**-12 * nn.functional.cross_entropy(wide, batch[1]) + 2.0**13 * tall.float().mean()

    return job(Two, loss=both)


@plant("MP402", "info", "2")
def a_vocabulary_of_no_multiple_of_8() -> Job:
    return job(lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 250)))


@plant("MP701", "info", "FP8 forward")
def a_projection_whose_channels_are_2_to_20_apart() -> Job:
    class Spread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)
            with torch.no_grad():
                self.mix.weight *= 2.0 ** torch.linspace(-10, 10, WIDTH)[:, None]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.mix(x)))

    return job(Spread)


@plant("MP702", "info", "0", steps=6)
def a_batch_in_which_everything_doubles() -> Job:
    sizes = iter([1.0, 1.0, 1.0, 1.0, 1.0, 40.0])
    net = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, CLASSES))
    return job(net, lambda: features(next(sizes, 1.0)))


@plant("MP704", "info", "0")
def channels_that_fp16_takes_and_fp8_does_not() -> Job:
    net = lambda: nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 8))
    return job(net, lambda: (torch.randn(ROWS, 24), torch.randint(8, (ROWS,))), classify)
