"""Step times in turns: rotating blocks, the baseline against itself, skipped and failing arms, arms that do not fit."""

import os
import statistics
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_nvml import AT_REST, BUSY_AT_REST, CUDA, install
from mpdiag.device.stopwatch import time_block
from mpdiag.errors import UserCodeError
from mpdiag.measure import fleet as fleet_room
from mpdiag.measure import timing
from mpdiag.measure.fleet import ArmsTooLargeError, open_fleet
from mpdiag.measure.steady import skips_watched
from mpdiag.measure.timing import CONTROL, NOT_RESIDENT, time_arms
from mpdiag.measure.turns import turns_of as balanced
from mpdiag.settings import WARMUP_STEPS
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

    def noted(fleet, name, *rest):
        order.append(name)
        real(fleet, name, *rest)

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
        assert arm.iqr_ms[0] <= arm.iqr_ms[1]
        assert arm.step_time_ms == pytest.approx(statistics.geometric_mean(arm.block_medians_ms))


def test_the_blocks_are_taken_in_the_balanced_order_that_the_record_tells(job, monkeypatch):
    order = turns_of(monkeypatch)
    arms = {"fp32": FP32_IEEE, "bf16": Precision("BF16", torch.bfloat16)}
    with open_fleet(job, job.start(0, 2), arms, CPU) as fleet:
        found = time_arms(fleet, 0.2)
    assert order == [name.replace(CONTROL, "fp32") for turns in found.order for name in turns]
    assert found.order == balanced(("fp32", "bf16", CONTROL), found.rounds)
    assert len({turns[0] for turns in found.order[:6]}) == 3


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
    """A run whose scaler skips a step in each block."""

    def __init__(self, run):
        self._run = run

    def __getattr__(self, name):
        return getattr(self._run, name)

    def skips_watched(self):
        return nullcontext(lambda: True)


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
    assert all(seconds > 0 for seconds in fleet.ready_seconds.values())
    assert all(arm.step_time_ms is not None for arm in found.arms)
    assert held == []


def test_a_fresh_model_is_warmed_up_as_long_as_one_that_stays(job, monkeypatch):
    asked = []
    real = fleet_room.steady_run
    monkeypatch.setattr(fleet_room, "steady_run", lambda *given: (asked.append(given[-1]), real(*given))[1])
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE}, CPU) as fleet:
        fleet.resident = False
        with fleet.ready("fp32"):
            pass
    assert asked == [WARMUP_STEPS, WARMUP_STEPS]


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
    assert timing._rounds(lengths, dict.fromkeys(lengths, step_seconds), "fp32", seconds, {}) == rounds


def test_rounds_leave_time_for_arms_that_are_built_for_each_block():
    lengths, pace = {"fp32": 10, "fp16": 10}, {"fp32": 0.1, "fp16": 0.1}
    assert timing._rounds(dict(lengths), pace, "fp32", 40.0, {}) == 12  # 11 steps of 0.1 s, three times a round
    assert timing._rounds(dict(lengths), pace, "fp32", 80.0, {"fp32": 2.0, "fp16": 2.0}) == 8  # the control too
    assert timing._rounds(lengths, pace, "fp32", 80.0, {"fp32": 9.0, "fp16": 9.0}) == timing.MIN_ROUNDS
    assert lengths == {"fp32": 10, "fp16": 10}  # shorter blocks would save next to nothing


# skipped steps: every one of them, by what the scaler would be without


def scaler_after(scaler, *overflows):
    """Run a real GradScaler over steps whose gradients overflow or do not, watched from the start."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    with skips_watched(scaler) as skipped:
        for overflow in overflows:
            optimizer.zero_grad()
            scaler.scale((weight * (float("inf") if overflow else 1.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        return skipped()


def scaler(scale=2.0**10, interval=2):
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)


def test_a_scale_that_grows_and_falls_again_has_still_skipped_a_step():
    watched = scaler()
    assert scaler_after(watched, False, False, True)
    assert watched.get_scale() == 2.0**10  # which alone would tell nothing


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), max_size=12), st.lists(st.booleans(), max_size=4), st.integers(1, 5))
def test_a_skip_is_seen_wherever_it_comes_and_never_invented(overflows, earlier, interval):
    watched = scaler(interval=interval)
    scaler_after(watched, *earlier)
    assert scaler_after(watched, *overflows) == any(overflows)


def test_a_scale_at_the_end_of_float32_does_not_grow_and_none_was_skipped():
    assert not scaler_after(scaler(2.0**127, 1), False)


def test_a_run_without_a_scaler_skips_nothing():
    with skips_watched(None) as skipped:
        assert not skipped()


def test_the_scaler_is_as_before_when_nobody_watches():
    watched = scaler()
    scaler_after(watched, True)
    assert "update" not in vars(watched)


# what NVML says of the timed rounds


class FakeRun:
    """An arm whose step takes some seconds on the fake device."""

    def __init__(self, fake, seconds, on_step):
        self.fake, self.seconds, self.on_step = fake, seconds, on_step

    def skips_watched(self):
        return nullcontext(lambda: False)

    @contextmanager
    def in_force_again(self):
        yield self.step

    def step(self):
        self.on_step()
        self.fake.spend(self.seconds)


def watched(fake, on_fp16=lambda: None):
    """Time two arms on the fake device; on_fp16: what each step of the second does beside."""
    runs = {"fp32": FakeRun(fake, 0.1, lambda: None), "fp16": FakeRun(fake, 0.05, on_fp16)}
    fleet = SimpleNamespace(
        device=CUDA, usable=list(runs), arms={"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}, failures={},
        samples=8, batch_sizes=(8,),
        step_seconds={"fp32": 0.1, "fp16": 0.05}, ready_seconds={}, resident=True,
        ready=lambda name: nullcontext(runs[name]),
    )  # fmt: skip
    return time_arms(fleet, 5.0)


@pytest.fixture
def fake(monkeypatch):
    library = install(monkeypatch)
    library.values = AT_REST
    return library


def test_a_gpu_of_ones_own_is_said_to_be(fake):
    found = watched(fake)
    assert (found.sharing.busy, found.sharing.processes, found.others, found.shared) == (False, 0, 0, None)
    assert found.arms[1].step_time_ms == pytest.approx(50.0)


def test_a_gpu_that_is_busy_before_the_first_block_is_told(fake):
    fake.values = BUSY_AT_REST
    assert watched(fake).shared == "the GPU was busy with other work before this run: active 60% of the time"


def test_a_process_that_comes_while_steps_are_timed_is_told(fake):
    def join():
        fake.processes = [os.getpid(), 999_999_999]

    found = watched(fake, join)
    assert (found.sharing.processes, found.others) == (0, 1)
    assert found.shared == "1 other process came to this GPU while steps were timed"


def test_a_process_that_sits_there_idle_is_no_reason_and_one_that_begins_to_work_is(fake):
    fake.processes = [os.getpid(), 999_999_999]
    found = watched(fake)
    assert (found.sharing.processes, found.others, found.shared) == (1, 1, None)

    def work():
        fake.values = BUSY_AT_REST

    assert watched(fake, work).shared.startswith("the GPU was busy with other work while steps were timed")


def test_processes_that_nvml_does_not_list_are_unknown_and_the_gpu_is_looked_at_again(fake):
    fake.failing["nvmlDeviceGetComputeRunningProcesses"] = "Not Supported"
    assert watched(fake).others is None

    def work():
        fake.values = BUSY_AT_REST

    assert "while steps were timed" in watched(fake, work).shared


def test_each_arm_has_its_own_clock_heat_and_limits(fake):
    def hot():
        fake.clock_mhz, fake.temperature, fake.limits = 1400, 80, 0x4

    def cool(run_step=FakeRun.step):
        fake.clock_mhz, fake.temperature, fake.limits = 1980, 60, 0

    runs_hot = watched(fake, hot)
    assert runs_hot.arms[1].clocks_mhz == (1400, 1400)
    assert (runs_hot.arms[1].temperatures_c, runs_hot.arms[1].throttled) == ((80, 80), True)
    assert runs_hot.arms[1].limited_by == ("power cap",)
    cool()
    assert watched(fake).arms[0].throttled is False


def test_on_a_cpu_nobody_is_looked_for_and_the_reason_is_kept(job):
    with open_fleet(job, job.start(0, 2), {"fp32": FP32_IEEE}, CPU) as fleet:
        found = time_arms(fleet, 0.1)
    assert (found.sharing.reason, found.others, found.shared) == ("needs a CUDA GPU", None, None)
    assert (found.arms[0].clocks_mhz, found.arms[0].throttled) == (None, None)
