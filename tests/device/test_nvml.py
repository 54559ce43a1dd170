"""NVML around a window of work: energy, GPM, the device's state and other processes; each refusal is a reason."""

from __future__ import annotations

import math
import os
import sys

import pytest
import torch

from fake_nvml import AT_REST, BUSY_AT_REST, CUDA, UUID, FakeNvml, install
from mpdiag.costs.gpu import GpuState
from mpdiag.device.block import LEAD_IN_SECONDS, QUEUED_STEPS, read_block, run_for, watch_rest
from mpdiag.device.gpm import GPM_METRICS, MIN_GPM_SECONDS
from mpdiag.device.memory import CudaAllocator
from mpdiag.device.nvml import Nvml, Reading, RefusedError, driver_version
from mpdiag.measure.sharing import look_for_others, sharing_from

CPU = torch.device("cpu")
NOT_THERE = "NVML is for NVIDIA GPUs; this ran on the CPU"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    return install(monkeypatch)


def window(fake: FakeNvml | None = None, seconds: float = 4.0, **arguments) -> Reading:
    with Nvml(CUDA if fake else CPU).window(**arguments) as reading:
        if fake:
            fake.spend(seconds)
    return reading


# a CPU


def test_a_cpu_has_reasons_and_no_numbers():
    reading = window()
    assert (reading.energy_joules, reading.gpm, reading.others) == (None, None, None)
    assert reading.reasons == {"energy": NOT_THERE, "tensor_core": NOT_THERE}


def test_a_cpu_asks_nvml_nothing(fake):
    window()
    assert Nvml(CPU).processes() is None
    assert Nvml(CPU).state() == GpuState()
    assert Nvml(CPU).utilization() is None
    assert fake.asked == []


# the device


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_the_device_is_found_by_its_uuid_with_one_prefix(fake, monkeypatch, uuid):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"uuid": uuid}))
    assert Nvml(CUDA).unavailable is None
    assert fake.uuid == f"GPU-{UUID}"


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_without_nvml_a_gpu_has_reasons_and_no_numbers(fake, failing):
    fake.failing[failing] = "Driver Not Loaded"
    reading = window(fake)
    why = "NVML is not available: Driver Not Loaded"
    assert reading.reasons == {"energy": why, "tensor_core": why}
    assert (reading.energy_joules, reading.gpm, reading.others) == (None, None, None)


def test_without_the_library_a_gpu_has_reasons(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Nvml(CUDA).window() as reading:
        pass
    assert reading.reasons["energy"].startswith("NVML is not available: ")
    assert Nvml(CUDA).processes() is None
    with pytest.raises(RefusedError, match="NVML is not available"):
        Nvml(CUDA).energy_mj()


# a MIG instance: a part of a card, of which NVML tells some figures as a whole

REFUSED = "this is a MIG instance, and NVML tells that of the whole card only"


@pytest.fixture(params=["by its own UUID", "by its card's"])
def mig(fake, request):
    fake.mig_instance = request.param == "by its own UUID"
    fake.mig_mode = (1, 1)
    return fake


def test_a_mig_instance_is_found_by_its_own_uuid(fake):
    fake.mig_instance = True
    assert Nvml(CUDA).unavailable is None
    assert fake.uuid == f"MIG-{UUID}"


def test_a_mig_instances_energy_power_and_pipes_are_refused_by_name(mig):
    reading = window(mig)
    assert (reading.energy_joules, reading.gpm) == (None, None)
    assert reading.reasons == {"energy": f"the energy counter: {REFUSED}", "tensor_core": f"GPM counters: {REFUSED}"}
    assert Nvml(CUDA).utilization() is None
    assert not {"nvmlDeviceGetTotalEnergyConsumption", "nvmlGpmSampleGet", "nvmlDeviceGetUtilizationRates"} & set(
        mig.asked
    )


def test_a_mig_instances_clock_heat_and_limits_are_its_cards(mig):
    mig.limits = 0x4
    assert Nvml(CUDA).state() == GpuState(1980, 60, None, ("power cap",))
    assert mig.handles["nvmlDeviceGetClockInfo"] == "handle"


def test_the_processes_of_a_mig_instance_are_its_own(fake):
    fake.mig_instance, fake.processes = True, [os.getpid(), 17]
    assert Nvml(CUDA).processes() == [17]
    assert fake.handles["nvmlDeviceGetComputeRunningProcesses"] == "instance"


def test_the_processes_of_a_whole_card_are_not_those_of_its_part(fake):
    fake.mig_mode, fake.processes = (1, 1), [os.getpid(), 17]
    assert Nvml(CUDA).processes() is None
    with pytest.raises(RefusedError, match="processes: this is a MIG instance"):
        Nvml(CUDA).ask("processes", "nvmlDeviceGetComputeRunningProcesses")


def test_a_mig_instance_that_does_not_tell_its_card_has_no_state(fake, monkeypatch):
    fake.mig_instance = True
    fake.failing["nvmlDeviceGetDeviceHandleFromMigDeviceHandle"] = "Not Supported"
    assert Nvml(CUDA).state() == GpuState()
    assert Nvml(CUDA).processes() == []


def test_mig_that_is_switched_off_or_only_pending_changes_nothing(fake):
    fake.mig_mode = (0, 1)
    assert window(fake).energy_joules == pytest.approx(400.0)
    fake.failing["nvmlDeviceGetMigMode"] = "Not Supported"  # as most cards say
    assert window(fake).energy_joules == pytest.approx(400.0)


def test_whether_others_use_a_mig_instance_is_not_known(mig):
    sharing, _ = look_for_others(CUDA)
    assert (sharing.busy, sharing.idle_watts) == (None, None)
    assert sharing.reason == f"whether others use this GPU is not known: GPM counters: {REFUSED}"


@pytest.mark.parametrize(
    ("instance", "mode", "told"), [(True, (1, 1), True), (False, (1, 1), False), (False, (0, 0), True)]
)
def test_the_drivers_memory_is_this_process_own_and_refused_of_a_card_in_parts(fake, instance, mode, told):
    fake.mig_instance, fake.mig_mode = instance, mode
    expected = (2**30, None) if told else (None, f"NVML does not tell: {REFUSED}")
    assert CudaAllocator(CUDA).driver_bytes() == expected


# energy


def test_energy_is_the_counters_difference_in_joules(fake):
    reading = window(fake, 4.0)
    assert reading.energy_joules == pytest.approx(400.0)  # 4 s at 100 W
    assert reading.seconds == pytest.approx(4.0)
    assert "energy" not in reading.reasons


def test_a_window_of_twenty_ticks_is_long_enough_for_the_energy_counter(fake):
    assert window(fake, 2.01).energy_joules == pytest.approx(200.0)


def test_a_shorter_window_has_no_energy_and_says_why(fake):
    reading = window(fake, 1.9)
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the window of 1.9 s is too short for the energy counter"


def test_a_counter_that_moves_seldom_needs_a_longer_window(fake):
    fake.tick = 0.5
    assert window(fake, 4.0, tick_seconds=0.5).reasons["energy"].startswith("the window of 4.0 s is too short")
    assert window(fake, 11.0, tick_seconds=0.5).energy_joules == pytest.approx(1100.0)


@pytest.mark.parametrize("tick", [0.1, None])
def test_a_counter_that_does_not_move_is_a_reason_and_no_zero(fake, tick):
    fake.moving = False
    reading = window(fake, tick_seconds=tick)
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the energy counter does not move"


def test_a_counter_that_went_back_is_a_reason(fake):
    fake.watts = -100.0
    assert window(fake).reasons["energy"] == "the energy counter went back"


def test_more_power_than_the_card_can_draw_is_a_reason(fake):
    fake.watts = 2000.0
    reading = window(fake)
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the energy counter says 2000 W, the card's limit is 700"


def test_energy_is_read_where_the_power_limit_is_not_told(fake):
    fake.failing["nvmlDeviceGetEnforcedPowerLimit"] = "Not Supported"
    assert window(fake).energy_joules == pytest.approx(400.0)


def test_an_energy_counter_that_refuses_is_a_reason(fake):
    fake.failing["nvmlDeviceGetTotalEnergyConsumption"] = "Not Supported"
    reading = window(fake)
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the energy counter: Not Supported"
    assert reading.gpm is not None


# GPM


def test_gpm_values_are_shares_by_name(fake):
    expected = {name: pytest.approx((i + 1) / 10) for i, name in enumerate(GPM_METRICS)}
    assert window(fake).gpm == expected
    assert set(expected) == {"any_tensor", "hmma_tensor", "dram_bandwidth", "fp32", "fp16", "sm"}


def test_a_metric_that_nvml_refuses_is_left_out(fake):
    fake.returns["hmma_tensor"] = 3
    gpm = window(fake).gpm
    assert "hmma_tensor" not in gpm
    assert gpm["any_tensor"] == pytest.approx(0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 250.0])
def test_a_value_that_is_no_share_is_left_out(fake, value):
    fake.values["any_tensor"] = value
    gpm = window(fake).gpm
    assert "any_tensor" not in gpm
    assert gpm["sm"] == pytest.approx(0.6)


def test_a_rounding_error_above_all_of_the_time_is_all_of_it(fake):
    fake.values["sm"] = 100.2
    assert window(fake).gpm["sm"] == 1.0


def test_where_nvml_refuses_every_metric_there_is_no_gpm_and_the_codes_are_said(fake):
    fake.returns = {name: 3 if i % 2 else 9 for i, name in enumerate(GPM_METRICS)}
    reading = window(fake)
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "GPM counters: NVML error 3, 9 for every metric"


def test_a_pipe_that_was_never_active_is_a_measured_zero(fake):
    fake.values["any_tensor"] = 0.0
    assert window(fake).gpm["any_tensor"] == 0.0


def test_a_gpu_without_gpm_is_a_reason_and_energy_is_still_read(fake):
    fake.gpm_supported = False
    reading = window(fake)
    assert reading.gpm is None
    assert reading.reasons == {"tensor_core": "this GPU has no GPM counters (Hopper and later have)"}
    assert reading.energy_joules == pytest.approx(400.0)
    assert fake.samples == []


@pytest.mark.parametrize(
    "failing", ["nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleGet", "nvmlGpmMetricsGet"]
)
def test_gpm_that_is_not_permitted_is_a_reason(fake, failing):
    fake.failing[failing] = "Insufficient Permissions"
    reading = window(fake)
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "GPM counters: Insufficient Permissions"
    assert reading.energy_joules == pytest.approx(400.0)


def test_a_library_that_faults_otherwise_ends_no_scan(fake, monkeypatch):
    monkeypatch.setattr(FakeNvml, "nvmlGpmMetricsGet", lambda self, request: 1 / 0)
    assert window(fake).reasons["tensor_core"] == "GPM counters: division by zero"


def test_a_pynvml_without_gpm_is_a_reason(fake, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlGpmQueryDeviceSupport")
    reading = window(fake)
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "GPM counters: this nvidia-ml-py has no nvmlGpmQueryDeviceSupport"
    assert reading.energy_joules == pytest.approx(400.0)


def test_a_window_too_short_for_gpm_says_so(fake):
    reading = window(fake, MIN_GPM_SECONDS - 0.05)
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "the window of 0.15 s is too short for GPM"


@pytest.mark.parametrize("failing", [None, "nvmlGpmMetricsGet"])
def test_both_samples_are_freed(fake, failing):
    if failing:
        fake.failing[failing] = "Unknown Error"
    window(fake)
    assert fake.freed == ["sample 1", "sample 2"]


def test_a_window_that_raises_is_still_read_and_the_error_goes_on(fake):
    with pytest.raises(KeyError), Nvml(CUDA).window() as reading:
        raise KeyError(fake.spend(4.0))
    assert reading.energy_joules == pytest.approx(400.0)
    assert fake.freed == ["sample 1", "sample 2"]


# other processes


def test_other_processes_are_all_but_this_one_and_its_parent(fake):
    fake.processes = [17, os.getpid(), os.getppid(), 23]
    assert Nvml(CUDA).processes() == [17, 23]


def test_other_processes_that_may_not_be_listed_are_not_known(fake):
    fake.failing["nvmlDeviceGetComputeRunningProcesses"] = "No Permission"
    assert Nvml(CUDA).processes() is None
    assert window(fake).others is None


def test_in_a_container_the_one_unseen_process_is_this_one(fake):
    unseen = 4_000_000_000  # no kernel gives that number
    fake.processes = [unseen]
    assert Nvml(CUDA).processes() == []
    fake.processes = [unseen, unseen + 1]
    assert Nvml(CUDA).processes() == [unseen + 1]
    assert Nvml(CUDA, own_processes=2).processes() == []


def test_an_unseen_process_beside_this_one_is_another(fake):
    fake.processes = [os.getpid(), 4_000_000_000]
    assert Nvml(CUDA).processes() == [4_000_000_000]


def test_a_process_that_can_be_seen_is_never_taken_for_this_one(fake):
    fake.processes = [1]
    assert Nvml(CUDA).processes() == ([] if os.getppid() == 1 else [1])


def test_a_process_that_came_during_the_window_is_counted(fake):
    with Nvml(CUDA).window() as reading:
        fake.spend(1.0)
        fake.processes = [os.getpid(), 17]
    assert reading.others == 1


# the device's state


def test_the_state_is_in_its_units(fake):
    fake.limits = 0x4 | 0x1 | 0x20
    assert Nvml(CUDA).state() == GpuState(1980, 60, 100.0, ("power cap", "heat"))


def test_a_clock_that_nothing_limits_has_no_limits(fake):
    fake.limits = 0x1 | 0x2 | 0x10 | 0x100  # idle, set by the user, sync boost, display: none of them a limit
    assert Nvml(CUDA).state().limited_by == ()


def test_what_is_not_told_of_the_state_is_none(fake, monkeypatch):
    for name in ("nvmlDeviceGetClockInfo", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature"):
        fake.failing[name] = "Not Supported"
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    assert Nvml(CUDA).state() == GpuState()


def test_older_drivers_tell_the_limits_by_their_old_name(fake, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetCurrentClocksEventReasons")
    monkeypatch.setattr(FakeNvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda self, h: 0x40, raising=False)
    assert Nvml(CUDA).state().limited_by == ("heat (hardware)",)


def test_the_drivers_version_is_text(fake):
    assert driver_version() == "580.65.06"


def test_without_a_driver_there_is_no_version(fake):
    fake.failing["nvmlInit"] = "Driver Not Loaded"
    assert driver_version() is None


# blocks of work


def test_a_block_counts_its_steps_and_not_the_lead_in(fake):
    done = []

    def step():
        done.append(fake.clock.now)
        fake.spend(0.25)

    began = fake.clock.now
    block = read_block(Nvml(CUDA), step, 3.0, CUDA)
    assert block.steps == 12
    assert len(done) - block.steps == math.ceil(LEAD_IN_SECONDS / 0.25)
    assert block.device_seconds == pytest.approx(3.0)
    assert block.reading.seconds == pytest.approx(fake.clock.now - began - 0.5)
    assert block.reading.energy_joules == pytest.approx(300.0)


def test_a_blocks_state_is_noted_before_and_after(fake):
    def step():
        fake.clock_mhz -= 100
        fake.spend(1.0)

    block = read_block(Nvml(CUDA), step, 2.0, CUDA)
    assert [state.sm_clock_mhz for state in block.reading.states] == [1880, 1680]


def test_a_block_on_a_cpu_has_steps_and_reasons():
    block = read_block(Nvml(CPU), lambda: None, 0.0, CPU, lead_in_seconds=0.0)
    assert block.steps == 1
    assert block.reading.reasons["energy"] == NOT_THERE


def test_the_queue_of_a_block_stays_short(fake, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda self: waited.append(self.at))
    steps = run_for(lambda: fake.spend(0.1), 3.0, CUDA)
    assert len(waited) == steps - QUEUED_STEPS


# a rest


def test_a_rest_gives_idle_power_and_how_often_the_counter_moves(fake):
    fake.watts, fake.values = 70.0, AT_REST
    sharing, rest = look_for_others(CUDA)
    assert rest.tick_seconds == pytest.approx(0.1, rel=0.05)
    assert sharing.idle_watts == pytest.approx(70.0, rel=0.06)
    assert (sharing.busy, sharing.processes, sharing.active_share, sharing.reason) == (False, 0, 0.0, None)
    assert sharing.state == GpuState(1980, 60, None, ())  # its power is of the second before, work included


def test_a_gpu_on_which_something_runs_while_we_rest_is_busy(fake):
    fake.values = BUSY_AT_REST
    sharing, _ = look_for_others(CUDA)
    assert sharing.busy
    assert sharing.reason == "the GPU was busy with other work before this run: active 60% of the time"
    assert sharing.tensor_share == pytest.approx(0.3)
    assert sharing.idle_watts is None  # what it draws is not idle power


@pytest.mark.parametrize(("percent", "busy"), [(0, False), (5, False), (6, True), (100, True)])
def test_without_gpm_utilisation_tells_whether_the_gpu_is_busy(fake, percent, busy):
    fake.gpm_supported, fake.utilization = False, percent
    sharing, _ = look_for_others(CUDA)
    assert sharing.busy is busy
    assert sharing.active_share == percent / 100


def test_another_process_that_rests_too_is_a_reason_and_not_busy(fake):
    fake.values, fake.processes = AT_REST, [os.getpid(), 17]
    sharing, _ = look_for_others(CUDA)
    assert (sharing.busy, sharing.processes) == (False, 1)
    assert sharing.reason == "1 other process(es) hold this GPU"


def test_where_nothing_tells_it_is_not_known_whether_the_gpu_is_busy(fake):
    fake.gpm_supported = False
    fake.failing["nvmlDeviceGetUtilizationRates"] = "Not Supported"
    sharing, _ = look_for_others(CUDA)
    assert (sharing.busy, sharing.active_share) == (None, None)
    assert sharing.reason.startswith("whether others use this GPU is not known: ")


def test_a_counter_that_hardly_moves_gives_no_idle_power(fake):
    fake.tick = 0.5
    rest = watch_rest(Nvml(CUDA), CUDA, 2.5)
    assert rest.reading.energy_joules is None
    assert rest.reading.reasons["energy"].startswith("the energy counter moved only ")
    assert sharing_from(rest).idle_watts is None


def test_a_cpu_needs_a_gpu_for_that():
    sharing, rest = look_for_others(CPU)
    assert rest is None
    assert sharing.reason == "needs a CUDA GPU"
    assert (sharing.busy, sharing.processes, sharing.idle_watts) == (None, None, None)
