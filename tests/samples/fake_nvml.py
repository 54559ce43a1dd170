"""A pynvml and a CUDA device that a test sets: what they say, what they refuse, and how time passes on them."""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from mpdiag.device import block as block_room
from mpdiag.device import nvml as nvml_room
from mpdiag.device import stopwatch as stopwatch_room
from mpdiag.device.gpm import GPM_METRICS
from mpdiag.measure import timing as timing_room

CUDA = torch.device("cuda", 0)
UUID = "8d1f0f3c-0000-4444-8888-123456789abc"
BUSY_AT_REST = {"any_tensor": 30.0, "hmma_tensor": 30.0, "dram_bandwidth": 20.0, "fp32": 5.0, "fp16": 0.0, "sm": 60.0}
AT_REST = dict.fromkeys(GPM_METRICS, 0.0)


class NVMLError(Exception):
    """As pynvml's: every failure is one."""


class Clock:
    """Time that passes only when something is done: a sleep, or a step of work."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeNvml(ModuleType):
    """pynvml of one card. Its energy counter moves every tick of the clock by the watts that it draws then.

    failing: {function: words} raises NVMLError; missing functions are deleted from the class by the test.
    """

    NVMLError = NVMLError
    NVML_GPM_METRICS_GET_VERSION = 1

    def __init__(self, clock: Clock) -> None:
        super().__init__("pynvml")
        self.clock = clock
        self.tick = 0.1
        self.watts = 100.0
        self.joules = 5000.0
        self.counted_until = clock.now
        self.moving = True
        self.gpm_supported = True
        self.values: dict[str, float] = {name: 10.0 * (i + 1) for i, name in enumerate(GPM_METRICS)}
        self.returns = dict.fromkeys(GPM_METRICS, 0)
        self.processes = [os.getpid()]
        self.clock_mhz, self.temperature, self.limits, self.power_limit = 1980, 60, 0, 700_000
        self.utilization = 0
        self.samples: list[str] = []
        self.freed: list[str] = []
        self.asked: list[str] = []
        self.failing: dict[str, str] = {}
        self.mig_instance = False  # whether CUDA's device is one that this NVML knows by its own UUID
        self.mig_mode = (0, 0)
        self.handles: dict[str, str] = {}  # the handle that each function was last asked with

    def spend(self, seconds: float) -> None:
        """Let time pass at the present power."""
        self.clock.now += seconds

    def _called(self, name: str) -> None:
        self.asked.append(name)
        if name in self.failing:
            raise NVMLError(self.failing[name])

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith(("nvml", "c_nvml")):
            return value

        def noted(*arguments: Any) -> Any:
            self._called(name)
            if arguments:
                self.handles[name] = arguments[0]
            return value(*arguments)

        return noted

    def nvmlInit(self) -> None:  # noqa: N802 # NVML's own name, as all below
        pass

    def nvmlSystemGetDriverVersion(self) -> bytes:  # noqa: N802
        return b"580.65.06"

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes) -> str:  # noqa: N802
        known = f"MIG-{UUID}" if self.mig_instance else f"GPU-{UUID}"
        if uuid.decode() != known:
            raise NVMLError("Not Found")
        self.uuid = uuid.decode()
        return "instance" if self.mig_instance else "handle"

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: str) -> str:  # noqa: N802
        assert handle == "instance"
        return "handle"

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return list(self.mig_mode)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        ticks = int((self.clock.now - self.counted_until) / self.tick + 1e-9)
        if self.moving:
            self.joules += ticks * self.tick * self.watts
        self.counted_until += ticks * self.tick
        return round(self.joules * 1000)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return self.power_limit

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        assert kind == 1
        return self.clock_mhz

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        assert sensor == 0
        return self.temperature

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return round(self.watts * 1000)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:  # noqa: N802
        return self.limits

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self.utilization, memory=0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=2**30) for pid in self.processes]

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(isSupportedDevice=int(self.gpm_supported))

    def nvmlGpmSampleAlloc(self) -> str:  # noqa: N802
        self.samples.append(f"sample {len(self.samples) + 1}")
        return self.samples[-1]

    def nvmlGpmSampleGet(self, handle: str, sample: str) -> None:  # noqa: N802
        assert sample in self.samples

    def nvmlGpmSampleFree(self, sample: str) -> None:  # noqa: N802
        self.freed.append(sample)

    def c_nvmlGpmMetricsGet_t(self) -> Any:  # noqa: N802
        return SimpleNamespace(metrics=[SimpleNamespace(metricId=0, value=0.0, nvmlReturn=0) for _ in range(98)])

    def nvmlGpmMetricsGet(self, request: Any) -> None:  # noqa: N802
        assert request.version == 1
        assert [request.sample1, request.sample2] == self.samples[-2:]
        by_number = {number: name for name, number in GPM_METRICS.items()}
        for metric in request.metrics[: request.numMetrics]:
            name = by_number[metric.metricId]
            metric.value, metric.nvmlReturn = self.values[name], self.returns[name]


class Event:
    """A CUDA event on the fake clock."""

    clock: Clock

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = self.clock.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: Event) -> float:
        return (later.at - self.at) * 1000


def install(monkeypatch: Any) -> FakeNvml:
    """Put the fake library, clock and device in place of the real ones."""
    clock = Clock()
    library = FakeNvml(clock)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    for room in (nvml_room, block_room, stopwatch_room, timing_room):
        monkeypatch.setattr(room, "time", clock)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=UUID))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "Event", type("FakeEvent", (Event,), {"clock": clock}))
    return library
