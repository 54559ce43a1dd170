"""Jobs with operators that FP16 does not suit, MP301 to MP304 and others; tables and forms are planted_faults'."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, ROWS, WIDTH, Between, job, linear, plant, sequences

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
