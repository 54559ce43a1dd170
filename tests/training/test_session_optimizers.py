"""A training loop with several optimizers steps each at its own time, with one scale for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from session_samples import job, mean_output, one_weight, running, scale, step

# several optimizers


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = one_weight(1.0), one_weight(1.0)


def gan_job(seen: list[Any], order: tuple[str, ...] = ("discriminator", "generator"), factor: float = 1.0) -> Job:
    def losses(model: Gan, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        for name in order:
            seen.append((name, model.g.weight.item(), model.d.weight.item()))
            fake = model.g(batch)
            if name == "discriminator":
                yield name, model.d(fake.detach()).float().mean() * factor
            else:
                yield name, model.d(fake).float().mean()

    def optimizers(model: Gan) -> dict[str, torch.optim.Optimizer]:
        return {
            "generator": torch.optim.SGD(model.g.parameters(), lr=0.5),
            "discriminator": torch.optim.SGD(model.d.parameters(), lr=0.25),
        }

    return job(build_model=Gan, build_optimizers=optimizers, losses=losses)


@pytest.mark.parametrize("precision", [FP32_IEEE, Precision("FP16", torch.float16, log2_scale=8)], ids=["FP32", "FP16"])
def test_each_optimizer_of_a_gan_steps_at_its_own_time(precision):
    seen: list[Any] = []
    with running(precision, gan_job(seen)) as run:
        losses = step(run)
        # d: 1 - 0.25 * 1; then g sees the new d: 1 - 0.5 * 0.75
        assert (run.model.g.weight.item(), run.model.d.weight.item()) == (0.625, 0.75)
    assert seen == [("discriminator", 1.0, 1.0), ("generator", 1.0, 0.75)]
    assert {name: loss.item() for name, loss in losses.items()} == {"discriminator": 1.0, "generator": 0.75}


def test_a_gan_runs_its_generator_to_the_end_of_the_iteration():
    seen: list[Any] = []

    def losses(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, mean_output(model, batch)
        seen.append("after the last step")

    with running(FP32_IEEE, job(losses=losses)) as run:
        step(run)
    assert seen == ["after the last step"]


def test_one_optimizers_overflow_skips_that_step_only_and_halves_the_one_scale():
    with running(Precision("FP16", torch.float16, log2_scale=8), gan_job([], factor=2.0**9)) as run:
        step(run)
        assert run.model.d.weight.item() == 1.0
        assert run.model.g.weight.item() == 1.0 - 0.5
        assert scale(run) == 128.0


def test_the_scale_is_updated_once_a_step_however_many_optimizers():
    precision = Precision("FP16", torch.float16, log2_scale=8, growth_interval=2)
    with running(precision, gan_job([])) as run:
        step(run)
        assert scale(run) == 256.0
        step(run)
        assert scale(run) == 512.0


def test_an_optimizer_that_steps_twice_in_an_iteration_steps_twice():
    order = ("discriminator", "discriminator", "generator")
    with running(FP32_IEEE, gan_job([], order)) as run:
        step(run)
        assert run.model.d.weight.item() == 0.5


def test_an_optimizer_that_steps_twice_in_an_iteration_does_so_with_a_scaler_too():
    # a WGAN's critic; torch's scaler lets each optimizer step once between two updates
    order = ("discriminator", "discriminator", "generator")
    with running(Precision("FP16", torch.float16, log2_scale=8), gan_job([], order)) as run:
        step(run)
        assert run.model.d.weight.item() == 0.5


def test_a_single_loss_steps_all_optimizers():
    optimizers = lambda m: {n: torch.optim.SGD(p.parameters(), lr=1.0) for n, p in (("a", m[0]), ("b", m[1]))}
    model = lambda: nn.Sequential(one_weight(2.0), one_weight(3.0))
    with running(FP32_IEEE, job(build_model=model, build_optimizers=optimizers)) as run:
        step(run)
        assert [p.item() for p in run.model.parameters()] == [2.0 - 3.0, 3.0 - 2.0]
