"""Jobs with a fault in gradients, loss scale or update, MP2xx; tables and forms are planted_faults'."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, WIDTH, classify, features, job, plant

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
