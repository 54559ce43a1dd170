"""Times in real traces: kernels that overlap, what waits of the host cost, and a trace beside the timed step."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.costs.kernels import ArmKernels
from mpdiag.device.stopwatch import time_block
from mpdiag.measure.steady import steady_run
from mpdiag.measure.trace import trace_arm
from mpdiag.target.job import Job
from mpdiag.training.precision import Precision

pytestmark = pytest.mark.gpu

FP16 = Precision("FP16", autocast=torch.float16, log2_scale=10)
BF16 = Precision("BF16", autocast=torch.bfloat16)


def traced(model: Any, shape: tuple[int, ...], precision: Precision, gpu: torch.device) -> ArmKernels:
    def losses(model, batch):
        out = model(batch)
        yield "loss", (out[0] if isinstance(out, tuple) else out).float().square().mean()

    each = Job("tiny", "tiny.py", model, lambda: [torch.randn(shape) for _ in range(2)], losses,
               lambda model: {"loss": torch.optim.AdamW(model.parameters())})  # fmt: skip
    with steady_run(each, each.start(0, 2), precision, gpu, 3) as run:
        with run.in_force_again() as step:
            times, _ = time_block(step, 20, gpu)
        found = trace_arm(run, step_ms=sorted(times)[10])
    assert found.time is not None, found.reason
    return found


def test_a_recurrent_layer_takes_no_longer_than_the_gpu_works_however_many_streams_it_has(gpu):
    found = traced(lambda: nn.LSTM(1024, 1024, num_layers=4, batch_first=True), (128, 128, 1024), FP16, gpu)
    (layer,) = [each for each in found.layers if each.module_type == "LSTM"]
    print(found.time.total_ms, found.time.busy_ms, found.time.step_ms, layer)
    assert layer.forward_ms + layer.backward_ms <= 1.001 * found.time.busy_ms
    assert sum(each.time_share for each in found.layers) <= 1.02
    assert 0.5 < found.time.busy_share < 1.2


class Reading(nn.Module):
    """Two Linears, a number read between them; with `sleep`, the host then does something else for 10 ms."""

    def __init__(self, sleep: float) -> None:
        super().__init__()
        self.first, self.second, self.sleep = nn.Linear(4096, 4096), nn.Linear(4096, 4096), sleep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h.sum().item()
        time.sleep(self.sleep)
        return self.second(h)


@pytest.mark.parametrize("sleep", [0.0, 0.01])
def test_what_a_wait_costs_is_what_the_gpu_then_idles(gpu, sleep):
    found = traced(lambda: Reading(sleep), (16384, 4096), BF16, gpu)
    waited, lost = (sum(getattr(w, each) for w in found.time.waits) for each in ("time_ms", "lost_ms"))
    print(sleep, waited, lost, found.time.step_ms, found.time.busy_share, [f.gain_from for f in found.findings])
    assert "host-waits" in {f.code for f in found.findings}
    if sleep:
        assert 10 <= lost < 13
    else:
        assert waited > 1  # of products that take milliseconds
        assert lost < 0.5 * waited
