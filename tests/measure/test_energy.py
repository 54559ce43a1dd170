"""Energy of several arms in turns: joules a sample, idle share, intervals; every refusal is a reason and no number."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from fake_nvml import AT_REST, CUDA, FakeNvml, install
from mpdiag import saved
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.tensor_cores import BodyReading, Calibration
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.errors import UserCodeError
from mpdiag.measure.energy import ROUNDS, SECONDS, energy_from, gpm_from, interval_of_mean, windows_of_arms
from mpdiag.measure.turns import turns_of

CPU = torch.device("cpu")
IDLE_WATTS = 70.0
CALIBRATED = Calibration((BodyReading("FP16 matmul", 0.5),), True, 0.04, 0.02, 0.86, "rule")


def energy_of_arms(runs, device, seconds=SECONDS, rounds=ROUNDS):
    return energy_from(windows_of_arms(tuple(runs), lambda name: nullcontext(runs[name]), device, seconds, rounds))


class FakeRun:
    """An arm whose step takes `seconds` at `watts`, with `tensor` percent of tensor pipe."""

    def __init__(self, fake: FakeNvml, name: str, seconds: float, watts: float, tensor: float = 50.0) -> None:
        self.fake, self.name, self.seconds, self.watts, self.tensor = fake, name, seconds, watts, tensor
        self.samples: int | float | None = 32
        self.batch_sizes: tuple[int, ...] = (32,)
        self.skips = False
        self.order: list[str] = []
        self.on_step = lambda: None

    def skips_watched(self):
        return nullcontext(lambda: self.skips)

    @contextmanager
    def in_force_again(self):
        self.order.append(self.name)
        self.fake.watts = self.watts
        self.fake.values = AT_REST | {"any_tensor": self.tensor, "sm": 100.0}
        yield self.step
        self.fake.watts, self.fake.values = IDLE_WATTS, AT_REST

    def step(self) -> None:
        self.on_step()
        self.fake.spend(self.seconds)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = install(monkeypatch)
    library.watts, library.values = IDLE_WATTS, AT_REST
    return library


@pytest.fixture
def runs(fake: FakeNvml) -> dict[str, FakeRun]:
    made = {"fp32": FakeRun(fake, "fp32", 0.125, 700.0, 0.0), "fp16": FakeRun(fake, "fp16", 0.0625, 600.0, 50.0)}
    order: list[str] = []
    for run in made.values():
        run.order = order
    return made


def windows(runs, rounds=3, seconds=5.0):
    @contextmanager
    def ready(name):
        yield runs[name]

    return windows_of_arms(tuple(runs), ready, CUDA, seconds, rounds)


def test_joules_a_sample_are_power_times_step_time_by_batch_size(runs):
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 3)
    assert fp32.joules_per_sample == pytest.approx(700 * 0.125 / 32, rel=0.03)
    assert fp16.joules_per_sample == pytest.approx(600 * 0.0625 / 32, rel=0.03)
    assert (fp32.arm, fp32.windows, fp32.reason) == ("fp32", 3, None)
    assert 40 * 3 <= fp32.samples / 32 <= 43 * 3  # a window ends with the step in which its time does
    assert fp32.seconds == pytest.approx(15.0, abs=0.4)
    assert fp32.watts == pytest.approx(700, rel=0.03)


def test_what_the_idle_gpu_draws_is_told_apart(runs):
    fp32, _ = energy_of_arms(runs, CUDA, 5.0, 3)
    assert fp32.idle_watts == pytest.approx(IDLE_WATTS, rel=0.06)
    assert fp32.idle_share == pytest.approx(fp32.idle_watts / fp32.watts)
    assert fp32.joules_per_sample_above_idle == pytest.approx(630 * 0.125 / 32, rel=0.03)


def test_arms_take_turns_in_balanced_order(runs):
    energy_of_arms(runs, CUDA, 5.0, 3)
    assert runs["fp32"].order == [name for turns in turns_of(("fp32", "fp16"), 3) for name in turns]
    assert set(turns_of(("fp32", "fp16"), 3)) == {("fp32", "fp16"), ("fp16", "fp32")}


def test_three_windows_give_an_interval_and_two_give_none(runs):
    three, _ = energy_of_arms(runs, CUDA, 5.0, 3)
    assert three.interval[0] <= three.joules_per_sample <= three.interval[1]
    two, _ = energy_of_arms(runs, CUDA, 5.0, 2)
    assert two.interval is None
    assert len(two.by_window) == 2


def test_the_interval_is_students(fake):
    values = (1.0, 1.2, 1.1, 1.4)
    low, high = stats.t.interval(0.95, 3, loc=1.175, scale=stats.sem(values))
    assert interval_of_mean(values) == pytest.approx((low, high))
    assert interval_of_mean(values[:2]) is None


def test_few_windows_do_not_tell_the_energy_above_idle(runs):
    for windows_each, said in ((1, "1 window an arm"), (2, "2 windows an arm")):
        use, _ = energy_of_arms(runs, CUDA, 5.0, windows_each)
        assert use.joules_per_sample_above_idle is None
        assert use.above_idle_reason == f"{said}: its error is not known, it takes 3"
        assert use.idle_share is not None


def test_energy_that_is_nearly_all_idle_is_not_told_above_it(runs):
    runs["fp16"].watts = IDLE_WATTS * 1.08
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 3)
    assert fp16.joules_per_sample is not None
    assert fp16.joules_per_sample_above_idle is None
    assert fp16.above_idle_reason.startswith("only ")
    assert "of the energy is above the 7" in fp16.above_idle_reason
    assert (fp32.joules_per_sample_above_idle is None, fp32.above_idle_reason) == (False, None)


def test_without_idle_power_there_is_still_energy(runs):
    found = windows(runs)
    found = dataclasses.replace(found, sharing=dataclasses.replace(found.sharing, idle_watts=None))
    fp32, _ = energy_from(found)
    assert fp32.joules_per_sample > 0
    assert (fp32.joules_per_sample_above_idle, fp32.idle_share, fp32.idle_watts) == (None, None, None)
    assert fp32.above_idle_reason == "what the GPU draws at rest was not measured"


# refusals


def refused(runs, seconds=5.0) -> str:
    found = energy_of_arms(runs, CUDA, seconds, 3)
    for use in found:
        assert (use.joules_per_sample, use.interval, use.joules_per_sample_above_idle) == (None, None, None)
    return found[0].reason


def test_on_a_cpu_energy_needs_a_gpu(runs):
    found = energy_of_arms(runs, CPU)
    assert [use.reason for use in found] == ["needs a CUDA GPU"] * 2
    assert [use.windows for use in found] == [0, 0]
    assert runs["fp32"].order == []


def test_a_short_window_is_refused(runs):
    assert refused(runs, 1.0) == "the window of 1.0 s is too short for the energy counter"


def test_a_counter_that_does_not_move_is_refused(runs, fake):
    fake.moving = False
    assert refused(runs) == "the energy counter does not move"


def test_a_counter_that_is_not_there_is_refused(runs, fake):
    fake.failing["nvmlDeviceGetTotalEnergyConsumption"] = "Not Supported"
    assert refused(runs) == "the energy counter: Not Supported"


def test_a_missing_nvml_is_the_reason(runs, fake, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert refused(runs).startswith("NVML is not available: ")


def test_a_busy_gpu_is_refused(runs, fake):
    fake.values = AT_REST | {"sm": 60.0}
    assert refused(runs).startswith("the GPU was busy with other work before this run")


def test_another_process_meanwhile_is_refused(runs, fake):
    runs["fp32"].on_step = lambda: fake.processes.append(999_999_999)
    found = energy_of_arms(runs, CUDA, 5.0, 3)
    assert found[0].joules_per_sample is None
    assert "1 other process used this GPU meanwhile" in found[0].reason


def test_an_unknown_batch_size_is_refused(runs):
    for run in runs.values():
        run.samples, run.batch_sizes = None, ()
    assert refused(runs) == "the batch size is not known"


def test_an_arm_whose_code_raises_has_its_error_and_the_other_its_energy(runs):
    def fail():
        raise UserCodeError("user-code", "RuntimeError: boom", "mend it", "")

    runs["fp16"].on_step = fail
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 3)
    assert fp32.joules_per_sample > 0
    assert (fp16.joules_per_sample, fp16.reason) == (None, "RuntimeError: boom")
    assert runs["fp16"].order.count("fp16") == 1


# beside the figure


def test_clocks_heat_and_limits_are_noted(runs, fake):
    def hot():
        fake.clock_mhz, fake.temperature, fake.limits = 1500, 80, 0x4 | 0x20

    runs["fp16"].on_step = hot
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 1)
    assert (fp32.clocks_mhz, fp32.temperatures_c, fp32.throttled, fp32.limited_by) == (
        (1980, 1980),
        (60, 60),
        False,
        (),
    )
    assert (fp16.clocks_mhz, fp16.temperatures_c) == ((1500, 1500), (80, 80))
    assert (fp16.throttled, fp16.limited_by) == (True, ("heat", "power cap"))


def test_where_limits_are_not_told_throttling_is_not_known(runs, fake):
    fake.failing["nvmlDeviceGetCurrentClocksEventReasons"] = "Not Supported"
    fp32, _ = energy_of_arms(runs, CUDA, 5.0, 1)
    assert fp32.throttled is None


def test_a_skipped_step_is_noted(runs):
    runs["fp16"].skips = True
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 2)
    assert fp32.note is None
    assert fp16.note == "steps were skipped in 2 of the windows; a skipped step takes less"


# beside the timing


def timing_of(**milliseconds):
    arms = tuple(ArmTime(arm, arm, ms, None, None) for arm, ms in milliseconds.items())
    return Timing(arms, ArmTime("again", "fp32", None, None, None), 32, 3, True, 1.0)


def test_a_record_has_the_step_time_of_its_windows(runs):
    fp32, fp16 = energy_of_arms(runs, CUDA, 5.0, 3)
    assert (fp32.step_time_ms, fp16.step_time_ms) == (pytest.approx(125.0, rel=1e-3), pytest.approx(62.5, rel=1e-3))


def test_windows_whose_steps_took_as_long_as_the_timed_ones_have_no_note(runs):
    found = energy_from(windows(runs), timing_of(fp32=125.0 / 1.09, fp16=62.5 / 0.91))
    assert [use.note for use in found] == [None, None]
    assert [use.note for use in energy_from(windows(runs))] == [None, None]


def test_windows_of_a_slower_or_faster_loop_than_the_timed_one_say_so(runs):
    runs["fp16"].skips = True
    fp32, fp16 = energy_from(windows(runs, 2), timing_of(fp32=100.0, fp16=75.0))
    assert fp32.note == "a step took 125 ms in these windows, x1.25 the 100 ms it was timed at"
    skipped = "steps were skipped in 2 of the windows; a skipped step takes less"
    assert fp16.note == f"{skipped}; a step took 62.5 ms in these windows, x0.83 the 75 ms it was timed at"


def test_an_arm_that_was_not_timed_has_no_note(runs):
    fp32, fp16 = energy_from(windows(runs), timing_of(fp32=None))
    assert (fp32.note, fp16.note) == (None, None)


def test_a_lost_window_keeps_its_place_among_the_rounds(runs):
    found = windows(runs)
    found.arms["fp16"][1].block.reading.energy_joules = None
    fp32, fp16 = energy_from(found)
    assert len(fp32.by_window) == len(fp16.by_window) == 3
    assert fp16.by_window[1] is None
    assert (fp16.windows, fp16.interval) == (2, None)
    assert fp16.joules_per_sample == pytest.approx((fp16.by_window[0] + fp16.by_window[2]) / 2)


# the same windows for tensor cores


def test_the_windows_serve_tensor_evidence_too(runs):
    fp32, fp16 = gpm_from(windows(runs), CALIBRATED)
    assert (fp16.used, fp16.share, fp16.reason) == (True, pytest.approx(0.5), None)
    assert fp16.above_floor == pytest.approx(0.48)
    assert fp16.seconds == pytest.approx(15.0, abs=0.2)
    assert (fp32.used, fp32.share) == (None, 0.0)
    assert "not above the threshold" in fp32.reason


def test_a_gpu_without_gpm_has_energy_and_no_tensor_evidence(runs, fake):
    fake.gpm_supported = False
    found = windows(runs)
    assert [e.reason for e in gpm_from(found, CALIBRATED)] == [
        "this GPU has no GPM counters (Hopper and later have)"
    ] * 2
    assert all(use.joules_per_sample for use in energy_from(found))


def test_gpm_that_is_not_permitted_is_the_reason(runs, fake):
    fake.failing["nvmlGpmMetricsGet"] = "Insufficient Permissions"
    assert gpm_from(windows(runs), CALIBRATED)[0].reason == "GPM counters: Insufficient Permissions"


def test_tensor_evidence_on_a_shared_or_busy_gpu_is_refused(runs, fake):
    fake.values = AT_REST | {"sm": 60.0}
    found = gpm_from(windows(runs), CALIBRATED)
    assert all(e.used is None and e.share is None for e in found)
    assert found[0].reason.startswith("the GPU was busy with other work")


def test_tensor_evidence_on_a_cpu_needs_a_gpu(runs):
    found = windows_of_arms(tuple(runs), SimpleNamespace, CPU)
    assert [e.reason for e in gpm_from(found, CALIBRATED)] == ["needs a CUDA GPU"] * 2


def test_a_record_comes_back_from_json_equal(runs):
    use, _ = energy_of_arms(runs, CUDA, 5.0, 3)
    text = json.dumps(saved._plain(dataclasses.asdict(use)))
    assert saved._typed(EnergyUse, json.loads(text)) == use
