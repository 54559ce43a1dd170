"""Memory that runs out while a batch is placed is told like any other lack: batches halved, arms built apart, named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mpdiag.errors import UserCodeError
from mpdiag.measure import fleet as fleet_room
from mpdiag.measure.fleet import ArmsTooLargeError, open_fleet
from mpdiag.target import load_job
from mpdiag.target.batches import map_tensors
from mpdiag.training import session as session_room
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE, Precision
from mpdiag.training.session import open_session, total
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_run import CostRun
from mpdiag.verify.gradient_check import check_gradients
from mpdiag.verify.rehearsal import rehearse
from mpdiag.verify.run import VerificationRun
from mpdiag.verify.trials import train_arm

CPU = torch.device("cpu")
FP32, FP16 = Arm("fp32", FP32_IEEE), Arm("fp16", FP16_AUTOCAST)
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(16, 4), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return load_job(str(tmp_path / "model.py"))


@pytest.fixture
def room(monkeypatch):
    """room(n): the device holds batches of n samples; at(n) further batches of any size before that."""
    placed: list[int] = []

    def limited(samples: int, at: int = 0) -> list[int]:
        def crowded(move: Any, batch: Any) -> Any:
            if len(batch[0]) > samples and len(placed) >= at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            placed.append(len(batch[0]))
            return map_tensors(move, batch)

        monkeypatch.setattr(session_room, "map_tensors", crowded)
        return placed

    return limited


def test_placing_a_batch_that_does_not_fit_is_out_of_memory(job, room):
    room(8)
    start = job.start(0, 2)
    with pytest.raises(UserCodeError) as raised, open_session(job, start, FP32_IEEE, CPU) as run:
        run.place(start.batch(0))
    assert raised.value.slug == "out-of-memory"
    assert raised.value.message.startswith("OutOfMemoryError while placing a batch on the device: CUDA out of memory")


@pytest.mark.parametrize("arm", [FP32, FP16], ids=["fp32", "fp16"])
def test_an_arm_that_runs_out_of_memory_while_it_places_a_batch_says_so(arm, job, room):
    room(8, at=2)  # the first two steps fit: another process came
    with pytest.raises(UserCodeError) as raised:
        train_arm(job, arm, job.start(0, 4), 4, CPU)
    assert raised.value.slug == "out-of-memory"


@pytest.mark.parametrize("at", [0, 4], ids=["fp32", "fp16"])
def test_a_rehearsal_that_runs_out_of_memory_while_it_places_a_batch_says_so(at, job, room):
    room(8, at=at)
    with pytest.raises(UserCodeError) as raised:
        rehearse(job, job.start(0, 1), [FP32, FP16], CPU)
    assert raised.value.slug == "out-of-memory"


def test_a_check_of_gradients_has_it_as_the_arms_reason(job, room):
    room(8, at=4)  # three of FP32's own passes and the first to compare with
    found = check_gradients(job, job.start(0, 1), [FP16], CPU, 1)
    assert "while placing a batch on the device" in found.arms[0].reason


@pytest.mark.parametrize(("samples", "share"), [(8, 2), (2, 8)])
def test_a_verification_halves_the_batch_until_it_can_be_placed(samples, share, job, room):
    from mpdiag.advice import advise
    from mpdiag.api import ScanOptions, scan

    advice = advise(scan(job.source, ScanOptions(steps=2, verify=False, device="cpu")).capture)
    placed = room(samples)
    run = VerificationRun(job, advice, CPU)
    run.run(0, 5, 1, 60.0, lambda line: None)
    found = run.record()
    assert any(line.startswith(f"every arm trains on 1/{share} of the batch: OutOfMemoryError") for line in found.cut)
    assert found.trials
    assert set(placed) == {samples}


def test_arms_whose_batches_do_not_fit_together_are_built_one_by_one(job, room, monkeypatch):
    placed = room(8, at=6)  # of the four batches of each arm, those of the first and half of the second's
    monkeypatch.setattr(fleet_room, "release_memory", placed.clear)  # an arm alone has room
    with open_fleet(job, job.start(0, 4), {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}, CPU) as fleet:
        assert not fleet.resident
        assert fleet.usable == ["fp32", "fp16"]
        assert all(fleet.ready_seconds[name] > 0 for name in fleet.usable)


def test_an_arm_whose_batches_do_not_fit_alone_is_named(job, room):
    room(8)
    arms = {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}
    with pytest.raises(ArmsTooLargeError) as raised, open_fleet(job, job.start(0, 4), arms, CPU):
        pass
    assert raised.value.arm == "fp32"


def test_costs_are_measured_on_the_part_of_the_batch_that_can_be_placed(job, room, monkeypatch):
    monkeypatch.setattr("mpdiag.measure.timing.BLOCK_SECONDS", 0.005)
    monkeypatch.setattr("mpdiag.measure.timing.MAX_ROUNDS", 3)
    room(4)
    run = CostRun(job, (FP32, FP16), CPU, 0, lambda: None)
    run.run(job.start(0, 2), 15.0, lambda line: None)
    assert run.record().timing.samples == 4
    assert "costs: measured on 1/4 of the batch for all arms, because arm fp32 did not fit" in run.cut


def test_flops_of_batches_that_do_not_fit_are_not_counted_and_say_why(job, room):
    run = CostRun(job, (FP32, FP16), CPU, 0, lambda: None)
    room(8)
    run._flops(job.start(0, 2))
    assert run.record().flops is None
    assert "while placing a batch on the device" in run.record().flops_reason


class Lost:
    """A loss on a device whose earlier step failed: it is told when the loss is read."""

    def double(self) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_step_that_fails_late_is_the_arms_error_when_its_loss_is_read(job, monkeypatch):
    with pytest.raises(UserCodeError, match="while reading the loss: CUDA error"):
        total({"loss": Lost()})
    monkeypatch.setattr("mpdiag.verify.trials.total", lambda losses: total({"loss": Lost()}))
    found = train_arm(job, FP16, job.start(0, 2), 2, CPU)
    assert "illegal memory access" in found.error


def test_a_model_that_does_not_fit_in_another_type_is_out_of_memory_too(job, monkeypatch):
    def crowded(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args == (torch.float16,):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, **kwargs)

    real = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", crowded)
    pure = Precision("pure", torch.float16, pure=True)
    with pytest.raises(UserCodeError) as raised, open_session(job, job.start(0, 1), pure, CPU):
        pass
    assert raised.value.slug == "out-of-memory"
