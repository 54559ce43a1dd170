"""GPM: NVML's counters of pipe activity between two samples, on Hopper and later; the whole device, every process."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from mpdiag.device.nvml import Nvml, RefusedError

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
PERCENT = 100.0
ROUNDING = 1.0  # percent above 100 that is still a rounding error of the counters and no nonsense
STRUCT_VERSION = 1  # of c_nvmlGpmMetricsGet_t; where a wheel lacks NVML_GPM_METRICS_GET_VERSION


class GpmWindow:
    """Two samples of one device, and the shares between them. `open` takes the first, `close` gives the shares."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._samples: list[Any] = []

    def open(self) -> None:
        """Take the first sample. Raises RefusedError with the reason."""
        if not self._nvml.ask("GPM counters", "nvmlGpmQueryDeviceSupport").isSupportedDevice:
            raise RefusedError("this GPU has no GPM counters (Hopper and later have)")
        self._take()

    def close(self, seconds: float) -> dict[str, float]:
        """Take the second sample and give the shares 0..1 by name. Raises RefusedError with the reason."""
        if seconds < MIN_GPM_SECONDS:
            raise RefusedError(f"the window of {seconds:.2f} s is too short for GPM")
        self._take()
        return self._shares()

    def free(self) -> None:
        """Give the samples back; more than once does no harm."""
        while self._samples:
            with contextlib.suppress(RefusedError):
                self._nvml.nvml_call("GPM counters", "nvmlGpmSampleFree", self._samples.pop(0))

    def _take(self) -> None:
        sample = self._nvml.nvml_call("GPM counters", "nvmlGpmSampleAlloc")
        self._samples.append(sample)
        self._nvml.ask("GPM counters", "nvmlGpmSampleGet", sample)

    def _shares(self) -> dict[str, float]:
        request = self._nvml.nvml_call("GPM counters", "c_nvmlGpmMetricsGet_t")
        request.version = self._nvml.constant("NVML_GPM_METRICS_GET_VERSION", STRUCT_VERSION)
        request.numMetrics = len(GPM_METRICS)
        request.sample1, request.sample2 = self._samples
        for index, metric in enumerate(GPM_METRICS.values()):
            request.metrics[index].metricId = metric
        self._nvml.nvml_call("GPM counters", "nvmlGpmMetricsGet", request)
        shares, codes = {}, set()
        for index, name in enumerate(GPM_METRICS):
            metric = request.metrics[index]
            percent = float(metric.value)
            if metric.nvmlReturn != 0:
                codes.add(int(metric.nvmlReturn))
            elif math.isfinite(percent) and 0 <= percent <= PERCENT + ROUNDING:  # anything else is no share
                shares[name] = min(percent / PERCENT, 1.0)
        if not shares:
            said = f"NVML error {', '.join(map(str, sorted(codes)))}" if codes else "no value is a share"
            raise RefusedError(f"GPM counters: {said} for every metric")
        return shares
