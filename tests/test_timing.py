"""Step times in turns: rotating blocks, the baseline against itself, skipped and failing arms, arms that do not fit."""

from dataclasses import replace

import pytest
import torch

from mpdiag.device.stopwatch import time_block
from mpdiag.errors import UserCodeError
from mpdiag.measure import fleet as fleet_room
from mpdiag.measure import timing
from mpdiag.measure.fleet import ArmsTooLargeError, open_fleet
from mpdiag.measure.timing import CONTROL, NOT_RESIDENT, time_arms
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE, Precision

CPU = torch.device("cpu")
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return load_job(str(path))


def turns_of(monkeypatch):
    """The arms in the order in which their blocks were timed."""
    order = []
    real = timing._one_block

    def noted(fleet, name, steps, found):
        order.append(name)
        real(fleet, name, steps, found)

    monkeypatch.setattr(timing, "_one_block", noted)
    return order


def test_every_arm_has_one_block_a_round_and_the_baseline_two(job, monkeypatch):
    order = turns_of(monkeypatch)
    arms = {"fp32": FP32_IEEE, "bf16": Precision("BF16", torch.bfloat16)}
    with open_fleet(job, job.start(0, 2), arms, CPU) as fleet:
        found = time_arms(fleet, 0.2)
    assert found.rounds >= 3
    assert order.count("fp32") == 2 * found.rounds
    assert order.count("bf16") == found.rounds
    assert [len(arm.block_medians_ms) for arm in (*found.arms, found.control)] == [found.rounds] * 3
    assert found.control.arm == CONTROL
    assert found.samples == 8
    assert found.resident
    for arm in found.arms:
        assert arm.steps % found.rounds == 0
        assert arm.iqr_ms[0] <= arm.step_time_ms <= arm.iqr_ms[1]


def test_the_order_rotates_so_that_no_arm_is_always_first(job, monkeypatch):
    order = turns_of(monkeypatch)
    arms = {"fp32": FP32_IEEE, "bf16": Precision("BF16", torch.bfloat16)}
    with open_fleet(job, job.start(0, 2), arms, CPU) as fleet:
        time_arms(fleet, 0.2)
    assert order[:9] == ["fp32", "bf16", "fp32", "bf16", "fp32", "fp32", "fp32", "fp32", "bf16"]


def test_a_slow_arm_reads_slower_by_what_it_sleeps(job, monkeypatch):
    ticks = iter(range(10**6))
    monkeypatch.setattr("mpdiag.device.stopwatch.time.perf_counter", lambda: next(ticks) * 0.001)
    times, wall = time_block(lambda: next(ticks), 4, CPU)
    assert times == pytest.approx([2.0] * 4)  # each step takes one tick, reading the clock another
    assert wall == pytest.approx(2.0)


def test_an_arm_whose_code_raises_has_its_error_and_the_others_their_times(job, monkeypatch):
    real = job.losses

    def losses(model, batch):
        if torch.is_autocast_enabled("cpu"):
            raise ValueError("no half here")
        return real(model, batch)

    monkeypatch.setattr(job, "losses", losses)
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}, CPU) as fleet:
        found = time_arms(fleet, 0.1)
    assert found.arms[0].step_time_ms is not None
    assert found.arms[1].step_time_ms is None
    assert "no half here" in found.arms[1].reason


class _Skipping:
    """A run whose scaler halves its scale in each block."""

    def __init__(self, run):
        self._run, self._scale = run, 2.0**20

    def __getattr__(self, name):
        return getattr(self._run, name)

    @property
    def loss_scale(self):
        self._scale /= 2
        return self._scale


def test_blocks_with_skipped_steps_are_not_counted(job):
    scaled = replace(FP16_AUTOCAST, log2_scale=4)
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE, "fp16": scaled}, CPU) as fleet:
        fleet.runs["fp16"] = _Skipping(fleet.runs["fp16"])
        found = time_arms(fleet, 0.1)
    arm = found.arms[1]
    assert arm.step_time_ms is None
    assert arm.block_medians_ms == (None,) * found.rounds
    assert arm.skipped_blocks == found.rounds * (timing.RETRIES + 1)
    assert "skipped steps" in arm.reason


def crowded(monkeypatch, room):
    """A device that holds `room` arms at once."""
    held = []
    real = fleet_room.steady_run

    class Held:
        def __init__(self, *args):
            self.context = real(*args)

        def __enter__(self):
            if len(held) >= room:
                raise UserCodeError("out-of-memory", "OutOfMemoryError: CUDA out of memory", "smaller batches", "")
            held.append(self)
            return self.context.__enter__()

        def __exit__(self, *error):
            held.remove(self)
            return self.context.__exit__(*error)

    monkeypatch.setattr(fleet_room, "steady_run", Held)
    return held


def test_arms_that_do_not_fit_together_are_built_block_by_block(job, monkeypatch):
    held = crowded(monkeypatch, room=1)
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}, CPU) as fleet:
        found = time_arms(fleet, 0.1)
    assert not found.resident
    assert found.notes == (NOT_RESIDENT,)
    assert all(arm.step_time_ms is not None for arm in found.arms)
    assert held == []


def test_an_arm_that_does_not_fit_alone_is_named(job, monkeypatch):
    held = crowded(monkeypatch, room=0)
    with pytest.raises(ArmsTooLargeError) as raised, open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE}, CPU):
        pass
    assert raised.value.arm == "fp32"
    assert held == []


def test_the_users_settings_come_back_between_blocks(job):
    before = torch.backends.mkldnn.matmul.fp32_precision
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE}, CPU) as fleet:
        assert torch.backends.mkldnn.matmul.fp32_precision == before
        with fleet.ready("fp32") as run, run.in_force_again():
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(
    ("step_seconds", "seconds", "rounds"),
    [(0.001, 100.0, timing.MAX_ROUNDS), (0.2, 20.0, 8), (10.0, 1.0, timing.MIN_ROUNDS)],
)
def test_rounds_fill_the_seconds_between_their_bounds(step_seconds, seconds, rounds):
    lengths = {"fp32": timing._block_steps(step_seconds), "fp16": timing._block_steps(step_seconds)}
    assert timing._rounds(lengths, dict.fromkeys(lengths, step_seconds), "fp32", seconds) == rounds
