"""Training jobs with one planted fault that no capture of a few steps sees: only their FP16 training shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.target.job import Job
from planted_faults import CLASSES, WIDTH, classify, features, job

LATE = 6  # batches before a fault begins: more than the capture's 3, fewer than the verification trains on
RUNS: dict[str, tuple[str, str, str, Callable[[], Job]]] = {}
"""name -> code, severity, subject, job."""


def trained(code: str, severity: str, subject: str) -> Callable[[Callable[[], Job]], Callable[[], Job]]:
    """Enter a job into the table."""

    def enter(build: Callable[[], Job]) -> Callable[[], Job]:
        RUNS[f"{code}-{build.__name__}"] = (code, severity, subject, build)
        return build

    return enter


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))


def batch_by_batch(made: Job, batch: Callable[[int], Any]) -> Job:
    """The job, with a batch that knows its number; each run counts from 0."""

    def batches() -> Any:
        number = 0
        while True:
            yield batch(number)
            number += 1

    return replace(made, train_batches=batches)


@trained("MP602", "error", "GradScaler")
def a_sensor_that_drifts_out_of_fp16s_range() -> Job:
    return batch_by_batch(job(net), lambda number: features(1.0 if number < LATE else 3e5))


@trained("MP606", "warning", "the loss")
def one_batch_of_outliers() -> Job:
    return batch_by_batch(job(net), lambda number: features(3e5 if number == LATE else 1.0))


@trained("MP606", "error", "the loss")
def outliers_from_one_batch_on() -> Job:
    return batch_by_batch(job(net), lambda number: features(1.0 if number < LATE else 3e5))


class Centred(torch.autograd.Function):
    """A hand-written backward pass whose constants cancel, in FP32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        small = gradient * 1e-10
        return (small - small.mean()) * 1e10


@trained("MP604", "error", "0")
def a_backward_pass_through_small_constants() -> Job:
    class Net(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](Centred.apply(self[0](x)).tanh())

    return job(lambda: Net(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)))


@trained("MP607", "error", "the training")
def a_second_loss_at_some_batches_that_autocast_refuses() -> Job:
    def two(model: nn.Module, batch: Any) -> torch.Tensor:
        x, labels, number = batch
        loss = classify(model, (x, labels))
        if number % LATE == LATE - 1:
            loss = loss + F.binary_cross_entropy(model(x).sigmoid()[:, 0], (labels > 1).to(x.dtype))
        return loss

    return batch_by_batch(job(net, loss=two), lambda number: (*features(), number))
