"""The types that FP16 autocast gives to outputs and weights, and what overflows or is refused there."""

from __future__ import annotations

import torch
from torch import nn

from mpdiag.capture.autocast_types import observe
from tiny_job_samples import AG, CPU, WG, WU, Packed, constant, job, packed_batch, tables

# the types under FP16


def test_the_types_are_those_of_fp16_autocast():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.norm = nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.norm(self.fc(self.embed(value)))

    the_job = job(Net, torch.tensor([1, 2]), lambda m, b: m(b).pow(2).mean())
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert types.outputs == {"embed": "float32", "fc": "float16", "norm": "float32"}
    assert types.cast == {"fc.weight", "fc.bias"}
    assert (types.loss, types.error, types.nonfinite) == ("float32", None, ())
    record = tables(the_job)
    assert types.of(record[AG, "fc"]).amp_dtype == "float16"
    assert types.of(record[WG, "fc.weight"]).amp_dtype == "float16"
    assert types.of(record[WU, "fc.weight"]).amp_dtype == "float32"
    assert types.of(record[WG, "norm.weight"]).amp_dtype == "float32"


def test_a_module_that_overflows_fp16_is_named():
    the_job = job(lambda: constant(nn.Sequential(nn.Identity(), nn.Linear(1, 1))), torch.tensor([[3e5]]))
    assert observe(the_job, the_job.start(0, 1), CPU).nonfinite == ("1",)


def test_an_operator_that_autocast_refuses_is_the_error():
    loss = lambda m, b: nn.functional.binary_cross_entropy(m(b).float().sigmoid(), torch.ones(1, 1))
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(1, 1), loss)
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert "unsafe to autocast" in types.error
    assert types.outputs == {"Linear": "float16"}


def test_a_packed_lstms_weights_are_cast():
    the_job = job(Packed, packed_batch)
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert types.cast == {f"lstm.{part}_{gate}_l0" for part in ("weight", "bias") for gate in ("ih", "hh")}


def test_an_output_without_elements_has_not_vanished():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(0, 1))
    assert observe(the_job, the_job.start(0, 1), CPU).vanished == ()
