"""CUPTI's range profiler through ctypes: hardware counters of a piece of work, where the driver permits it.

The library is the copy that torch itself has loaded; the calls and their order are those of CUPTI's API reference
("Range Profiling" and "Profiler Host", CUDA 12.6 and later). It belongs into a process of its own: a fault in it must
end nothing else, and it cannot share a process with torch.profiler.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mpdiag.device import cupti_structs as blocks
from mpdiag.device.block import synchronize

CAP_SYS_ADMIN = 21  # its bit in /proc/self/status, CapEff
INSUFFICIENT_PRIVILEGES = (35, 40)
BUSY = (26, 39)  # hardware busy, multiple subscribers
MORE_PASSES = 2  # than announced; then something is wrong and we stop
RANGE = b"step"

PERMIT = (
    "run as root or with CAP_SYS_ADMIN, or load the NVIDIA driver with NVreg_RestrictProfilingToAdminUsers=0 "
    "(RmProfilingAdminOnly in /proc/driver/nvidia/params)"
)
END_OTHERS = "end other profilers first (Nsight, DCGM: `dcgmi profile --pause`)"


class CuptiRefusedError(Exception):
    """A call that CUPTI refused, or a library that is not there; the text says which and why."""

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code

    @property
    def remedy(self) -> str | None:
        """What would permit it, where we know."""
        if self.code in INSUFFICIENT_PRIVILEGES:
            return f"{PERMIT}; {privileges()}"
        return END_OTHERS if self.code in BUSY else None


class Cupti:
    """The loaded library. `calls` lists every call with its status, in order.

    folder: where libcupti and libnvperf_host lie, for a copy that is not torch's. Raises CuptiRefusedError.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.calls: list[tuple[str, int]] = []
        self._library = _load(folder)

    def call(self, function: str, block: blocks.Block) -> Any:
        """Make a call and give its block back with what it filled in. Raises CuptiRefusedError."""
        try:
            status = int(getattr(self._library, function)(ctypes.byref(block)))
        except AttributeError:
            raise CuptiRefusedError(f"this CUPTI has no {function} (CUDA 12.6 and later have)") from None
        self.calls.append((function, status))
        if status != 0:
            raise CuptiRefusedError(f"{function} returned {status} ({self._words(status)})", status)
        return block

    def _words(self, status: int) -> str:
        text = ctypes.c_char_p()
        with contextlib.suppress(AttributeError):
            self._library.cuptiGetResultString(status, ctypes.byref(text))
        return (text.value or b"unknown").decode(errors="replace")

    def chip(self, device_index: int) -> str:
        """The chip's name ("GH100") of a CUDA device; initializes the profiler. Without a driver this crashes."""
        self.call("cuptiProfilerInitialize", blocks.ProfilerInitialize())
        found = self.call("cuptiDeviceGetChipName", blocks.DeviceGetChipName(device_index=device_index))
        return str(found.chip.decode())

    def obstacles(self, device_index: int) -> str:
        """What of this device or its surroundings CUPTI does not support, in its words; "" where it names nothing."""
        with contextlib.suppress(CuptiRefusedError):
            found = self.call("cuptiProfilerDeviceSupported", blocks.DeviceSupported(device=device_index))
            levels = {name: getattr(found, name) for name in blocks.OBSTACLES}
            return ", ".join(name for name, level in levels.items() if level in (blocks.UNSUPPORTED, blocks.DISABLED))
        return ""

    def base_metrics(self, chip: str) -> list[str]:
        """The names of the chip's counters; needs no GPU."""
        with self._host(chip) as host:
            found = self.call(
                "cuptiProfilerHostGetBaseMetrics",
                blocks.HostGetBaseMetrics(host=host, kind=blocks.METRIC_COUNTER),
            )
            return [found.names[index].decode() for index in range(found.count)]

    def config_image(self, chip: str, metrics: Sequence[str]) -> tuple[Any, int]:
        """(image, passes) for a set of metrics; needs no GPU."""
        with self._host(chip) as host:
            names = _names(metrics)
            self.call(
                "cuptiProfilerHostConfigAddMetrics",
                blocks.HostConfigAddMetrics(host=host, names=names, count=len(metrics)),
            )
            wanted = self.call("cuptiProfilerHostGetConfigImageSize", blocks.HostGetConfigImageSize(host=host))
            image = (ctypes.c_uint8 * wanted.image_size)()
            self.call(
                "cuptiProfilerHostGetConfigImage",
                blocks.HostGetConfigImage(host=host, image_size=len(image), image=ctypes.addressof(image)),
            )
            asked = blocks.HostGetNumOfPasses(image_size=len(image), image=ctypes.addressof(image))
            return image, int(self.call("cuptiProfilerHostGetNumOfPasses", asked).passes)

    def count(
        self, chip: str, metrics: Sequence[str], step: Callable[[], object], device: torch.device
    ) -> tuple[dict[str, float], int]:
        """({metric: value}, passes) of one `step` on a CUDA device; it runs once a pass. Raises CuptiRefusedError."""
        image, passes = self.config_image(chip, metrics)
        enabled = self.call("cuptiRangeProfilerEnable", blocks.RangeEnable(context=_current_context(device)))
        profiler = enabled.profiler
        try:
            data = self._counter_data(profiler, metrics)
            self.call(
                "cuptiRangeProfilerSetConfig",
                blocks.RangeSetConfig(
                    profiler=profiler,
                    image_size=len(image),
                    image=ctypes.addressof(image),
                    data_size=len(data),
                    data=ctypes.addressof(data),
                    range_mode=blocks.USER_RANGE,
                    replay_mode=blocks.USER_REPLAY,
                    ranges_per_pass=1,
                    nesting_levels=1,
                    first_nesting_level=1,
                    pass_index=0,
                    target_nesting_level=1,
                ),
            )
            for _ in range(passes + MORE_PASSES):
                if self._one_pass(profiler, step, device):
                    break
            else:
                raise CuptiRefusedError(f"{passes} passes were announced and {passes + MORE_PASSES} did not do")
            decoded = self.call("cuptiRangeProfilerDecodeData", blocks.RangeDecodeData(profiler=profiler))
            if decoded.dropped:
                raise CuptiRefusedError(f"cuptiRangeProfilerDecodeData dropped {decoded.dropped} ranges")
            return self._values(chip, data, metrics), passes
        finally:
            with contextlib.suppress(CuptiRefusedError):
                self.call("cuptiRangeProfilerDisable", blocks.RangeDisable(profiler=profiler))

    def _one_pass(self, profiler: int, step: Callable[[], object], device: torch.device) -> bool:
        """Run the step inside a range; whether all passes are done with it."""
        synchronize(device)
        self.call("cuptiRangeProfilerStart", blocks.RangeStart(profiler=profiler))
        self.call("cuptiRangeProfilerPushRange", blocks.RangePush(profiler=profiler, name=RANGE))
        step()
        synchronize(device)
        self.call("cuptiRangeProfilerPopRange", blocks.RangePop(profiler=profiler))
        return bool(self.call("cuptiRangeProfilerStop", blocks.RangeStop(profiler=profiler)).all_passes)

    def _counter_data(self, profiler: int, metrics: Sequence[str]) -> Any:
        wanted = self.call(
            "cuptiRangeProfilerGetCounterDataSize",
            blocks.RangeGetCounterDataSize(
                profiler=profiler, names=_names(metrics), count=len(metrics), ranges=1, tree_nodes=1
            ),
        )
        data = (ctypes.c_uint8 * wanted.data_size)()
        self.call(
            "cuptiRangeProfilerCounterDataImageInitialize",
            blocks.RangeCounterDataImageInitialize(profiler=profiler, data_size=len(data), data=ctypes.addressof(data)),
        )
        return data

    def _values(self, chip: str, data: Any, metrics: Sequence[str]) -> dict[str, float]:
        where = {"data": ctypes.addressof(data), "data_size": len(data)}
        ranges = self.call("cuptiRangeProfilerGetCounterDataInfo", blocks.RangeGetCounterDataInfo(**where)).ranges
        if ranges != 1:
            raise CuptiRefusedError(f"the counters hold {ranges} ranges instead of one")
        values = (ctypes.c_double * len(metrics))()
        with self._host(chip) as host:
            self.call(
                "cuptiProfilerHostEvaluateToGpuValues",
                blocks.HostEvaluateToGpuValues(
                    host=host,
                    **where,
                    range_index=0,
                    names=_names(metrics),
                    count=len(metrics),
                    values=ctypes.cast(values, ctypes.POINTER(ctypes.c_double)),
                ),
            )
        return dict(zip(metrics, map(float, values), strict=True))

    @contextmanager
    def _host(self, chip: str) -> Iterator[int]:
        """CUPTI's host object for a chip."""
        made = self.call(
            "cuptiProfilerHostInitialize", blocks.HostInitialize(kind=blocks.RANGE_PROFILER, chip=chip.encode())
        )
        try:
            yield made.host
        finally:
            with contextlib.suppress(CuptiRefusedError):
                self.call("cuptiProfilerHostDeinitialize", blocks.HostDeinitialize(host=made.host))


def privileges() -> str:
    """What this process may do, as the kernel tells: for the reason beside a refusal."""
    said = []
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/driver/nvidia/params").read_text().splitlines():
            if line.startswith("RmProfilingAdminOnly"):
                said.append(line.strip())
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("CapEff:"):
                has = int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1
                said.append("this process has CAP_SYS_ADMIN" if has else "this process lacks CAP_SYS_ADMIN")
    return ", ".join(said) or "what this process may do is not known"


def _names(metrics: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(metrics))(*(metric.encode() for metric in metrics))


def _load(folder: Path | None) -> Any:
    major = (torch.version.cuda or "13").partition(".")[0]
    versions = dict.fromkeys((major, "13", "12"))
    reasons = []
    for version in versions:
        try:
            if folder is not None:
                ctypes.CDLL(str(folder / "libnvperf_host.so"), mode=ctypes.RTLD_GLOBAL)
                return ctypes.CDLL(str(folder / f"libcupti.so.{version}"))
            library = ctypes.CDLL(f"libcupti.so.{version}")
        except OSError as error:
            reasons.append(str(error))
            continue
        if (place := _folder_of("libcupti.so")) is not None:  # CUPTI looks for it by name alone
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(place / "libnvperf_host.so"), mode=ctypes.RTLD_GLOBAL)
        return library
    raise CuptiRefusedError(f"CUPTI is not there: {reasons[0]}")


def _folder_of(name: str) -> Path | None:
    """Where a library that this process has loaded lies; None where /proc does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            path = line.partition("/")[2]
            if path and Path(path).name.startswith(name):
                return Path(f"/{path}").parent
    return None


def _current_context(device: torch.device) -> int:
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)
    context = ctypes.c_void_p()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context))
    except (OSError, AttributeError) as error:
        raise CuptiRefusedError(f"the CUDA driver: {error}") from None
    if status != 0 or not context.value:
        raise CuptiRefusedError(f"cuCtxGetCurrent returned {status}")
    return int(context.value)
