"""The device rooms without a GPU: reasons instead of numbers, a fake NVML, settings that come back."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import mpdiag
from mpdiag.device import nvml as nvml_room
from mpdiag.device.environment import describe
from mpdiag.device.nvml import GPM_METRICS, MIN_GPM_SECONDS, Nvml, Reading, driver_version
from mpdiag.device.precision_settings import configured, fp32_products, is_ieee
from mpdiag.device.select import select_device
from mpdiag.errors import UsageError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
UUID = "8d1f0f3c-0000-4444-8888-123456789abc"


class NVMLError(Exception):
    """As pynvml's: every failure is one."""


class FakeNvml(ModuleType):
    """pynvml with an energy counter and GPM samples that a test sets; it notes what was asked and freed."""

    NVMLError = NVMLError
    NVML_GPM_METRICS_GET_VERSION = 1

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.energy_mj = iter((5_000_000, 5_420_000))
        self.gpm_supported = True
        self.values = {name: 10.0 * (i + 1) for i, name in enumerate(GPM_METRICS)}
        self.returns = dict.fromkeys(GPM_METRICS, 0)
        self.processes: list[int] = []
        self.samples = 0
        self.freed: list[str] = []
        self.asked: list[str] = []
        self.failing: dict[str, str] = {}

    def called(self, name: str) -> None:
        self.asked.append(name)
        if name in self.failing:
            raise NVMLError(self.failing[name])

    def nvmlInit(self) -> None:  # noqa: N802 # NVML's own name, as all below
        self.called("init")

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        self.called("driver")
        return b"580.65.06"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:  # noqa: N802
        self.called(f"uuid {uuid.decode()}")
        return "handle"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        self.called("energy")
        return next(self.energy_mj)

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:  # noqa: N802
        self.called("support")
        return SimpleNamespace(isSupportedDevice=self.gpm_supported)

    def nvmlGpmSampleAlloc(self) -> str:  # noqa: N802
        self.samples += 1
        return f"sample {self.samples}"

    def nvmlGpmSampleGet(self, handle: str, sample: str) -> None:  # noqa: N802
        self.called("sample")

    def nvmlGpmSampleFree(self, sample: str) -> None:  # noqa: N802
        self.freed.append(sample)

    def c_nvmlGpmMetricsGet_t(self) -> Any:  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, value=0.0, nvmlReturn=0) for _ in range(98)])

    def nvmlGpmMetricsGet(self, request: Any) -> None:  # noqa: N802
        self.called("metrics")
        assert (request.sample1, request.sample2) == ("sample 1", "sample 2")
        by_number = {number: name for name, number in GPM_METRICS.items()}
        for metric in request.metrics[: request.numMetrics]:
            name = by_number[metric.metricId]
            metric.value, metric.nvmlReturn = self.values[name], self.returns[name]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        self.called("processes")
        return [SimpleNamespace(pid=pid) for pid in self.processes]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID))
    return library


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds a window lasts: set clock[0]."""
    lasts = [4.0]

    def ticks() -> Iterator[float]:
        yield 100.0
        yield 100.0 + lasts[0]

    ticking = ticks()
    monkeypatch.setattr(nvml_room, "time", SimpleNamespace(perf_counter=lambda: next(ticking)))
    return lasts


def window(device: torch.device = CUDA) -> Reading:
    with Nvml(device).window() as reading:
        pass
    return reading


# a CPU


def test_a_cpu_has_reasons_and_no_numbers():
    reading = window(CPU)
    why = "NVML is for NVIDIA GPUs; this ran on the CPU"
    assert (reading.energy_joules, reading.gpm) == (None, None)
    assert reading.reasons == {"energy": why, "tensor_core": why}


def test_a_cpu_asks_nvml_nothing(fake):
    window(CPU)
    assert Nvml(CPU).others() == []
    assert fake.asked == []


# the window


def test_the_device_is_found_by_its_uuid(fake, clock):
    window()
    assert f"uuid GPU-{UUID}" in fake.asked


def test_a_uuid_that_has_its_prefix_already_gets_no_second(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"GPU-{UUID}"))
    Nvml(CUDA)
    assert fake.asked == ["init", f"uuid GPU-{UUID}"]


def test_energy_is_the_counters_difference_in_joules(fake, clock):
    reading = window()
    assert (reading.energy_joules, reading.seconds) == (420.0, 4.0)
    assert "energy" not in reading.reasons


def test_a_window_of_twenty_ticks_is_long_enough_for_the_energy_counter(fake, clock):
    clock[0] = 2.0
    assert window().energy_joules == 420.0


def test_a_shorter_window_has_no_energy_and_says_why(fake, clock):
    clock[0] = 1.9
    reading = window()
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the window of 1.9 s is too short for the energy counter"


@pytest.mark.parametrize("failing", ["energy"])
def test_an_energy_counter_that_refuses_is_a_reason(fake, clock, failing):
    fake.failing[failing] = "Not Supported"
    reading = window()
    assert reading.energy_joules is None
    assert reading.reasons["energy"] == "the energy counter: Not Supported"
    assert reading.gpm is not None


def test_gpm_values_are_shares_by_name(fake, clock):
    expected = {name: pytest.approx((i + 1) / 10) for i, name in enumerate(GPM_METRICS)}
    assert window().gpm == expected
    assert set(expected) == {"any_tensor", "hmma_tensor", "dram_bandwidth", "fp32", "fp16", "sm"}


def test_a_metric_that_nvml_refuses_is_left_out(fake, clock):
    fake.returns["hmma_tensor"] = 3
    gpm = window().gpm
    assert "hmma_tensor" not in gpm
    assert gpm["any_tensor"] == pytest.approx(0.1)


def test_where_nvml_refuses_every_metric_there_is_no_gpm(fake, clock):
    fake.returns = dict.fromkeys(GPM_METRICS, 3)
    assert window().gpm is None


def test_a_pipe_that_was_never_active_is_a_measured_zero(fake, clock):
    fake.values["any_tensor"] = 0.0
    assert window().gpm["any_tensor"] == 0.0


def test_a_gpu_without_gpm_is_a_reason_and_energy_is_still_read(fake, clock):
    fake.gpm_supported = False
    reading = window()
    assert reading.gpm is None
    assert reading.reasons == {"tensor_core": "this GPU has no GPM counters (Hopper and later have)"}
    assert reading.energy_joules == 420.0
    assert fake.samples == 0


@pytest.mark.parametrize("failing", ["support", "sample", "metrics"])
def test_gpm_that_fails_is_a_reason(fake, clock, failing):
    fake.failing[failing] = "Insufficient Permissions"
    reading = window()
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "GPM counters: Insufficient Permissions"


def test_a_pynvml_without_gpm_is_a_reason(fake, clock, monkeypatch):
    monkeypatch.delattr(FakeNvml, "nvmlGpmQueryDeviceSupport")
    reading = window()
    assert reading.gpm is None
    assert reading.reasons["tensor_core"].startswith("GPM counters: ")
    assert reading.energy_joules == 420.0


def test_a_window_too_short_for_gpm_says_so(fake, clock):
    clock[0] = MIN_GPM_SECONDS - 0.05
    reading = window()
    assert reading.gpm is None
    assert reading.reasons["tensor_core"] == "the window of 0.15 s is too short for GPM"


@pytest.mark.parametrize("failing", [None, "metrics"])
def test_both_samples_are_freed(fake, clock, failing):
    if failing:
        fake.failing[failing] = "Unknown Error"
    window()
    assert fake.freed == ["sample 1", "sample 2"]


def test_a_window_that_raises_is_still_read_and_the_error_goes_on(fake, clock):
    with pytest.raises(KeyError), Nvml(CUDA).window() as reading:
        raise KeyError("the user's")
    assert reading.energy_joules == 420.0
    assert fake.freed == ["sample 1", "sample 2"]


@pytest.mark.parametrize("failing", ["init", f"uuid GPU-{UUID}"])
def test_without_nvml_a_gpu_has_reasons_and_no_numbers(fake, failing):
    fake.failing[failing] = "Driver Not Loaded"
    reading = window()
    why = "NVML is not available: Driver Not Loaded"
    assert reading.reasons == {"energy": why, "tensor_core": why}
    assert (reading.energy_joules, reading.gpm) == (None, None)


def test_without_the_library_a_gpu_has_reasons(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert window().reasons["energy"].startswith("NVML is not available: ")


# other processes, and the driver


def test_other_processes_are_all_but_this_one(fake):
    fake.processes = [17, os.getpid(), 23]
    assert Nvml(CUDA).others() == [17, 23]


def test_other_processes_that_may_not_be_listed_are_none(fake):
    fake.failing["processes"] = "No Permission"
    assert Nvml(CUDA).others() == []


def test_the_drivers_version_is_text(fake):
    assert driver_version() == "580.65.06"


def test_without_a_driver_there_is_no_version(fake):
    fake.failing["init"] = "Driver Not Loaded"
    assert driver_version() is None


# precision settings


def all_settings() -> dict[str, str]:
    return {**configured(CPU), **configured(CUDA)}


@pytest.fixture
def mixed_settings() -> Iterator[dict[str, str]]:
    """The user's settings: TF32 here, BF16 there; put back after the test."""
    switches = (torch.backends.cuda.matmul, "tf32"), (torch.backends.mkldnn.matmul, "bf16")
    before = [(s, s.fp32_precision) for s, _ in switches]
    for switch, value in switches:
        switch.fp32_precision = value
    yield all_settings()
    for switch, value in before:
        switch.fp32_precision = value


def test_within_ieee_fp32_every_switch_says_ieee(mixed_settings):
    assert {mixed_settings["cuda.matmul"], mixed_settings["mkldnn.matmul"]} == {"tf32", "bf16"}
    with fp32_products("ieee"):
        assert set(all_settings().values()) == {"ieee"}
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_the_users_settings_come_back(mixed_settings):
    with fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_an_exception(mixed_settings):
    with pytest.raises(ZeroDivisionError), fp32_products("ieee"):
        raise ZeroDivisionError
    assert all_settings() == mixed_settings


def test_the_users_settings_come_back_after_nesting(mixed_settings):
    with fp32_products("ieee"), fp32_products("ieee"):
        pass
    assert all_settings() == mixed_settings


def test_a_device_has_the_switches_of_its_own_backends():
    assert {name.partition(".")[0] for name in configured(CPU)} == {"mkldnn"}
    assert {name.partition(".")[0] for name in configured(CUDA)} == {"cuda", "cudnn"}


def test_settings_are_ieee_when_no_switch_of_the_device_lowers_them(mixed_settings):
    assert is_ieee(CPU) is False
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert is_ieee(CPU) is True


# select


def without_cuda(monkeypatch: pytest.MonkeyPatch, build: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)


@pytest.mark.parametrize(
    ("build", "why"), [(None, "this torch is a CPU build"), ("13.0", "torch finds no CUDA device")]
)
def test_cuda_without_cuda_is_a_usage_error_that_says_why(monkeypatch, build, why):
    without_cuda(monkeypatch, build)
    with pytest.raises(UsageError) as caught:
        select_device("cuda")
    assert (caught.value.slug, caught.value.exit_code) == ("no-cuda", 2)
    assert caught.value.message == f"--device cuda: {why}"
    assert "--device cpu" in caught.value.hint


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    without_cuda(monkeypatch, None)
    assert select_device("auto") == CPU


def test_auto_and_cuda_are_the_first_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == select_device("cuda") == CUDA


def test_cpu_is_the_cpu_even_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("cpu") == CPU


# environment


def test_the_environment_of_a_cpu_has_versions_and_no_gpu():
    found = describe(CPU)
    assert (found.python, found.torch, found.mpdiag) == (
        platform.python_version(),
        torch.__version__,
        mpdiag.__version__,
    )
    assert (found.gpu, found.compute_capability, found.driver) == (None, None, None)
    assert found.cpu_threads == torch.get_num_threads()
    assert found.platform == f"{platform.system()} {platform.machine()}"
    assert found.fp32_precision == configured(CPU)


def test_the_environment_of_a_cpu_asks_nvml_nothing(fake):
    describe(CPU)
    assert fake.asked == []


def test_the_environment_of_a_gpu_names_it(fake, monkeypatch):
    properties = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = describe(CUDA)
    assert (found.gpu, found.compute_capability, found.driver) == ("NVIDIA H100 80GB HBM3", "9.0", "580.65.06")
