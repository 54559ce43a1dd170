"""NVML: the energy counter and GPM's pipe activity. What NVML refuses is a reason, never a number."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

# nvml.h's numbers (NVML_GPM_METRIC_*); old wheels of nvidia-ml-py lack the names of some
GPM_METRICS = {
    "any_tensor": 5,
    "hmma_tensor": 7,
    "dram_bandwidth": 10,
    "fp32": 12,
    "fp16": 13,
    "sm": 2,
}
MIN_GPM_SECONDS = 0.2  # "internal sample refresh rate" is 100 ms (nvml.h); a window must hold at least one
ENERGY_TICK_SECONDS = 0.1  # how often the energy counter moves (measured on an H100)
MIN_ENERGY_TICKS = 20


@dataclass
class Reading:
    """What NVML said of one window. gpm: shares 0..1 of the time a pipe was active, by name; whole device."""

    seconds: float = 0.0
    energy_joules: float | None = None
    gpm: dict[str, float] | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def driver_version() -> str | None:
    """The NVIDIA driver's version, None without NVML."""
    try:
        import pynvml

        pynvml.nvmlInit()
        version = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # no library, no driver, no permission: nothing to report
        return None
    return str(version.decode() if isinstance(version, bytes) else version)


class Nvml:
    """NVML's view of one CUDA device, found by UUID because CUDA_VISIBLE_DEVICES renumbers."""

    def __init__(self, device: torch.device) -> None:
        self._handle: Any = None
        self._reason = "NVML is for NVIDIA GPUs; this ran on the CPU"
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}".encode())
        except Exception as error:
            self._reason = f"NVML is not available: {error}"

    @contextmanager
    def window(self) -> Iterator[Reading]:
        """Read around a block; the reading is complete when the block has ended. The caller synchronizes."""
        reading = Reading()
        if self._handle is None:
            reading.reasons = {"energy": self._reason, "tensor_core": self._reason}
            yield reading
            return
        first = self._gpm_sample(reading)
        energy = self._energy(reading)
        started = time.perf_counter()
        try:
            yield reading
        finally:
            reading.seconds = time.perf_counter() - started
            self._finish_energy(reading, energy)
            self._finish_gpm(reading, first)

    def others(self) -> list[int]:
        """Process ids other than this one that compute on the device, as far as NVML tells."""
        import os

        if self._handle is None:
            return []
        try:
            import pynvml

            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except Exception:  # not permitted in some containers
            return []
        return [p.pid for p in running if p.pid != os.getpid()]

    def _energy(self, reading: Reading) -> int | None:
        import pynvml

        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except pynvml.NVMLError as error:
            reading.reasons["energy"] = f"the energy counter: {error}"
            return None

    def _finish_energy(self, reading: Reading, before: int | None) -> None:
        after = self._energy(reading)
        if before is None or after is None:
            return
        if reading.seconds < MIN_ENERGY_TICKS * ENERGY_TICK_SECONDS:
            reading.reasons["energy"] = f"the window of {reading.seconds:.1f} s is too short for the energy counter"
        else:
            reading.energy_joules = (after - before) / 1000

    def _gpm_sample(self, reading: Reading) -> Any:
        import pynvml

        try:
            if not pynvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice:
                reading.reasons["tensor_core"] = "this GPU has no GPM counters (Hopper and later have)"
                return None
            sample = pynvml.nvmlGpmSampleAlloc()
            pynvml.nvmlGpmSampleGet(self._handle, sample)
        except (pynvml.NVMLError, AttributeError) as error:
            reading.reasons["tensor_core"] = f"GPM counters: {error}"
            return None
        return sample

    def _finish_gpm(self, reading: Reading, first: Any) -> None:
        import pynvml

        if first is None:
            return
        second = self._gpm_sample(reading)
        try:
            if second is not None and reading.seconds >= MIN_GPM_SECONDS:
                reading.gpm = _gpm_shares(first, second)
            elif second is not None:
                reading.reasons["tensor_core"] = f"the window of {reading.seconds:.2f} s is too short for GPM"
        except pynvml.NVMLError as error:
            reading.reasons["tensor_core"] = f"GPM counters: {error}"
        finally:
            for sample in (first, second):
                if sample is not None:
                    pynvml.nvmlGpmSampleFree(sample)


def _gpm_shares(first: Any, second: Any) -> dict[str, float] | None:
    import pynvml

    request = pynvml.c_nvmlGpmMetricsGet_t()
    request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
    request.numMetrics = len(GPM_METRICS)
    request.sample1, request.sample2 = first, second
    for index, metric in enumerate(GPM_METRICS.values()):
        request.metrics[index].metricId = metric
    pynvml.nvmlGpmMetricsGet(request)
    shares = {
        name: request.metrics[index].value / 100
        for index, name in enumerate(GPM_METRICS)
        if request.metrics[index].nvmlReturn == 0
    }
    return shares or None
