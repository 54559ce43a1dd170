"""Sparse tensors between modules, in the FP16 iteration that tells types: read, and no fault of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.capture.autocast_types import AutocastTypes, observe
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP16_AUTOCAST

CPU = torch.device("cpu")
LAYOUTS = ("to_sparse", "to_sparse_csr", "to_sparse_csc")


class Gives(nn.Module):
    """A module that returns what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OfSparse(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to_dense())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows, self.out = Gives(), OfSparse(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rows(x))


def types_of(batch: torch.Tensor, keep: tuple[str, ...] = ()) -> AutocastTypes:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch).float().mean()

    job = Job(
        name="tiny",
        source="tiny.py",
        build_model=Net,
        train_batches=lambda: [batch],
        losses=losses,
        build_optimizers=lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.25)},
    )
    return observe(job, job.start(0, 1), CPU, replace(FP16_AUTOCAST, keep_fp32=keep))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_iteration_on_a_sparse_batch_goes_through(layout):
    types = types_of(getattr(torch.eye(4), layout)())
    assert (types.error, types.finite_loss) == (None, True)
    assert types.outputs == {"rows": "float32", "out": "float16"}
    assert (types.fed, types.nonfinite, types.vanished) == ((), (), ())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_infinity_among_the_stored_values_is_seen(layout):
    types = types_of(getattr(torch.eye(4) * torch.inf, layout)())
    assert types.fed == ("rows", "out", "Net")
    assert types.nonfinite == ("rows", "out")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stored_zeros_are_a_module_that_gives_nothing_but_zeros_in_fp32_too(layout):
    assert types_of(getattr(torch.eye(4), layout)() * 0).vanished == ()


def test_what_a_layer_loses_of_sparse_values_beside_an_island_is_measured():
    assert types_of((torch.eye(4) * 2.0**-30).to_sparse(), keep=("rows",)).starved == ("out",)
    assert types_of(torch.eye(4).to_sparse(), keep=("rows",)).starved == ()
