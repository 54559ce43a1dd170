"""A step that fails after it was launched, which the device tells only when it is waited for, is its arm's reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from fake_nvml import AT_REST, CUDA, install
from mpdiag.costs.energy import EnergyUse
from mpdiag.errors import MpdiagError, reason_of
from mpdiag.measure import fleet as fleet_room
from mpdiag.measure import timing
from mpdiag.measure.energy import energy_from, windows_of_arms
from mpdiag.measure.fleet import open_fleet
from mpdiag.measure.timing import time_arms
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE
from mpdiag.verify import cost_run
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_run import CostRun

CPU = torch.device("cpu")
LATE = "CUDA error: an illegal memory access was encountered"
ARMS = {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture
def job(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return load_job(str(tmp_path / "model.py"))


@pytest.fixture
def run(job, monkeypatch):
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.005)
    monkeypatch.setattr(timing, "MAX_ROUNDS", 3)
    return CostRun(job, [Arm(name, precision) for name, precision in ARMS.items()], CPU, 0, lambda: None)


def late_after(calls: int, room: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is lost in the FP16 arm's blocks from that many on, and is waited for at their end."""
    real: Callable[..., Any] = room.time_block
    seen: list[int] = []

    def waited(step: Any, steps: int, device: torch.device) -> Any:
        found = real(step, steps, device)
        if step.__self__.session.precision.name == "FP16":
            seen.append(steps)
            if len(seen) > calls:
                raise RuntimeError(f"{LATE}\nCompile with TORCH_USE_CUDA_DSA")
        return found

    monkeypatch.setattr(room, "time_block", waited)


def test_a_reason_is_the_message_of_an_expected_failure_and_the_kind_and_words_of_another():
    assert reason_of(MpdiagError("slug", "it does not fit", "a hint")) == "it does not fit"
    assert reason_of(RuntimeError(f"{LATE}\nand more")) == f"RuntimeError: {LATE}"


def test_an_arm_that_fails_late_while_it_is_timed_keeps_its_blocks_and_the_others_their_times(job, monkeypatch):
    late_after(1, timing, monkeypatch)
    with open_fleet(job, job.start(0, 2), ARMS, CPU) as fleet:
        fp32, fp16 = time_arms(fleet, 0.1).arms
    assert (fp32.reason, fp16.reason) == (None, f"RuntimeError: {LATE}")
    assert fp32.step_time_ms is not None
    assert [ms is not None for ms in fp16.block_medians_ms].count(True) == 1


def test_an_arm_that_fails_late_while_it_warms_up_is_no_reason_for_the_others(job, monkeypatch):
    late_after(0, fleet_room, monkeypatch)
    with open_fleet(job, job.start(0, 2), ARMS, CPU) as fleet:
        assert fleet.usable == ["fp32"]
        assert fleet.failures == {"fp16": f"RuntimeError: {LATE}"}


def test_a_device_that_cannot_be_looked_at_after_the_blocks_leaves_what_was_timed(monkeypatch):
    def lost(*given: Any) -> Any:
        raise RuntimeError(LATE)

    library = install(monkeypatch)
    library.values = AT_REST
    before, _ = timing.look_for_others(CUDA, 0.5)
    monkeypatch.setattr(timing, "look_for_others", lost)
    there = replace(before, processes=1)
    assert timing._sharing_after(CUDA, there) == there


class LateRun:
    """An arm on the fake device; its first step in a window fails late, if it is to fail."""

    samples, batch_sizes = 32, (32,)

    def __init__(self, fake: Any, fails: bool) -> None:
        self.fake, self.fails = fake, fails

    def skips_watched(self) -> Any:
        return nullcontext(lambda: False)

    @contextmanager
    def in_force_again(self) -> Any:
        yield self.step

    def step(self) -> None:
        self.fake.spend(0.125)
        if self.fails:
            raise RuntimeError(LATE)


def test_an_arm_that_fails_late_in_a_window_of_energy_has_that_reason_alone(monkeypatch):
    fake = install(monkeypatch)
    fake.watts, fake.values = 70.0, AT_REST
    runs = {"fp32": LateRun(fake, False), "fp16": LateRun(fake, True)}
    windows = windows_of_arms(tuple(runs), lambda name: nullcontext(runs[name]), CUDA, 2.0, 3)
    fp32, fp16 = energy_from(windows)
    assert isinstance(fp16, EnergyUse)
    assert (fp32.reason, fp16.reason) == (None, f"RuntimeError: {LATE}")
    assert fp32.joules_per_sample is not None


def test_flops_that_fail_have_their_reason_and_end_nothing(run, monkeypatch):
    def lost(*given: Any) -> Any:
        raise RuntimeError(LATE)

    monkeypatch.setattr(cost_run, "flops_of", lost)
    run.run(run.job.start(0, 2), 30.0, lambda line: None)
    costs = run.record()
    assert (costs.flops, costs.flops_reason) == (None, f"RuntimeError: {LATE}")
    assert costs.timing is not None
    assert f"FLOPs: not counted: RuntimeError: {LATE}" in run.cut


def test_flops_that_are_counted_have_no_reason(run):
    run._flops(run.job.start(0, 2))
    assert run.record().flops is not None
    assert run.record().flops_reason is None


def test_what_no_arm_can_be_built_on_any_more_leaves_reasons_and_raises_nothing(run, monkeypatch):
    def lost(*given: Any) -> Any:
        raise RuntimeError(LATE)

    monkeypatch.setattr(fleet_room, "release_memory", lost)
    run.run(run.job.start(0, 2), 15.0, lambda line: None)
    costs = run.record()
    told = {costs.timing_reason, costs.energy_reason, costs.kernels_reason, costs.flops_reason, costs.ceilings_reason}
    assert told == {f"RuntimeError: {LATE}"}


@pytest.mark.parametrize("seconds", [0.0, 15.0], ids=["no time", "no fleet"])
def test_flops_that_are_not_reached_say_why(seconds, run, monkeypatch):
    def fails(*given: Any) -> Any:
        raise MpdiagError("baseline-failed", "the baseline failed", "mend it")

    monkeypatch.setattr(cost_run, "open_fleet", fails)
    run.run(run.job.start(0, 2), seconds, lambda line: None)
    costs = run.record()
    assert costs.flops is None
    assert costs.flops_reason == costs.timing_reason


# memory that a block held


def test_a_block_gives_its_memory_back_whether_it_raises_or_not(job, monkeypatch):
    freed: list[str] = []
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE}, CPU) as fleet:
        fleet.resident = False
        monkeypatch.setattr(fleet_room, "release_memory", lambda: freed.append("freed"))
        with fleet.ready("fp32"):
            freed.append("ran")
        with suppress(ZeroDivisionError), fleet.ready("fp32"):
            freed.append("raises")
            raise ZeroDivisionError
    assert freed[:6] == ["freed", "ran", "freed", "freed", "raises", "freed"]
