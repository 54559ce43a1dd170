"""Where FP16 broke in a training run: the module is named by a second look, and the run goes on as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.foretold import FirstOverflow
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import Precision
from mpdiag.verify import trials
from mpdiag.verify.arms import Arm
from mpdiag.verify.trials import train_arm
from mpdiag.verify.what_overflowed import FINITE_AGAIN, OUTSIDE, WEIGHTS_GONE

CPU = torch.device("cpu")
SCALED = Arm("fp16", Precision("FP16 autocast", torch.float16, log2_scale=4))
ROWS = torch.ones(2, 4)
MEAN = lambda model, batch: model(batch).float().mean()


def job(build: Callable[[], nn.Module], batches: list[torch.Tensor], loss: Any = MEAN, rate: float = 0.0) -> Job:
    def losses(model: nn.Module, given: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, given)

    return Job(
        "tiny", "tiny.py", build, lambda: batches, losses,
        lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=rate)},
    )  # fmt: skip


def filled(value: float) -> nn.Linear:
    layer = nn.Linear(4, 4, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def trained(the_job: Job, arm: Arm = SCALED, steps: int = 3) -> Any:
    return train_arm(the_job, arm, the_job.start(0, steps), steps, CPU)


class Net(nn.Module):
    """Four times the input times 100, then a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.cool, self.hot, self.norm = filled(0.25), filled(100.0), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.hot(self.cool(x)))


def test_the_first_module_that_is_not_finite_is_named_with_what_fp32_has_there():
    found = trained(job(Net, [ROWS, 200 * ROWS, 300 * ROWS]))
    assert [math.isfinite(loss) for loss in found.losses] == [True, False, False]
    assert found.overflow == FirstOverflow(2, "hot", 80000.0, None)


def test_a_run_that_stays_finite_has_none():
    assert trained(job(Net, [ROWS])).overflow is None


def test_the_second_look_leaves_no_trace_in_the_run(monkeypatch):
    class Noisy(Net):
        """Numbers drawn at random, and a buffer that counts the calls."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return (super().forward(x * (1 + torch.rand_like(x) / 100)) + self.calls) ** 2

    the_job = job(Noisy, [ROWS, 200 * ROWS, ROWS, 2 * ROWS, 3 * ROWS], rate=1e-3)
    looked = trained(the_job, steps=5)
    assert looked.overflow.module == "hot"
    monkeypatch.setattr(trials, "first_overflow", lambda *_: None)
    bare = trained(the_job, steps=5)
    assert [str(x) for x in looked.losses] == [str(x) for x in bare.losses]
    assert looked.loss_scales_log2 == bare.loss_scales_log2


def test_without_a_scaler_the_weights_are_gone_and_it_says_so():
    unscaled = Arm("fp16", Precision("FP16 autocast", torch.float16))
    found = trained(job(Net, [ROWS, 200 * ROWS], rate=0.1), unscaled)
    assert found.overflow == FirstOverflow(2, None, None, WEIGHTS_GONE)


def test_a_loss_that_overflows_outside_every_module_is_told_as_that():
    loss = lambda model, batch: (model(batch) * 4e4).mean()
    found = trained(job(lambda: filled(1.0), [ROWS], loss), steps=1)
    assert found.overflow == FirstOverflow(1, None, None, OUTSIDE)


def test_what_is_infinite_in_fp32_too_is_meant():
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.masked_fill(torch.tensor([True, False, False, False]), -math.inf)

    class Attends(Net):
        def __init__(self) -> None:
            super().__init__()
            self.mask = Masked()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mask(x).softmax(-1) @ torch.ones(4, 4) + super().forward(x)

    assert trained(job(Attends, [300 * ROWS]), steps=1).overflow.module == "hot"


def test_what_is_finite_the_second_time_is_not_known():
    calls = []

    def once(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return MEAN(model, batch) * (math.inf if len(calls) == 2 else 1.0)

    found = trained(job(lambda: filled(1.0), [ROWS], once))
    assert found.overflow == FirstOverflow(2, None, None, FINITE_AGAIN)


def test_code_that_raises_the_second_time_ends_no_run():
    calls = []

    def once(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("only once a batch")
        return MEAN(model, batch) * math.inf

    found = trained(job(lambda: filled(1.0), [ROWS], once))
    assert found.error is None
    assert len(found.losses) == 3
    assert found.overflow.module is None
    assert "could not be run again: ValueError" in found.overflow.reason


@pytest.mark.parametrize(
    "arm",
    [
        Arm("fp32", Precision("FP32", ieee=True)),
        Arm("fp16-unscaled", Precision("FP16 autocast, no loss scale", torch.float16), control=True),
    ],
    ids=["FP32", "a control"],
)
def test_only_the_candidates_are_looked_at(arm):
    loss = lambda model, batch: MEAN(model, batch) * math.inf
    assert trained(job(lambda: filled(1.0), [ROWS], loss), arm).overflow is None
