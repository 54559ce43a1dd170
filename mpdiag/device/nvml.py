"""NVML: what it tells of one CUDA device around a window of work. What it refuses is a reason, never a number."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from mpdiag.costs.gpu import GpuState
from mpdiag.errors import safe_text

ENERGY_TICK_SECONDS = 0.1  # how often the energy counter moves (measured on an H100), where nobody measured it here
MIN_ENERGY_TICKS = 20  # fewer moves are more than 5 % of rounding at the window's two ends
OVER_LIMIT = 1.5  # times the enforced power limit: no card draws that over seconds, so the counter is wrong
CLOCK_SM, TEMPERATURE_GPU = 1, 0  # nvml.h: NVML_CLOCK_SM, NVML_TEMPERATURE_GPU
# nvml.h's bits of the reasons that hold a clock down; idle, application and display clocks are no limits
LIMITS = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}

OF_THE_CARD = "this is a MIG instance, and NVML tells that of the whole card only"
# what other instances of the card do would be in these; its clock, heat and limits hold for every instance
WHOLE_CARD = frozenset(
    {
        "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetUtilizationRates", "nvmlGpmQueryDeviceSupport", "nvmlGpmSampleGet",
    }
)  # fmt: skip
OF_THE_INSTANCE = frozenset({"nvmlDeviceGetComputeRunningProcesses"})


class RefusedError(Exception):
    """NVML has no such figure here; the text says why."""


@dataclass
class Reading:
    """What NVML said of one window. gpm: shares 0..1 of the time a pipe was active, by name; whole device.

    others: compute processes of others, seen at either end, None where NVML does not list them. states: the device at
    moments that the caller chose. reasons: by "energy" and "tensor_core".
    """

    seconds: float = 0.0
    energy_joules: float | None = None
    gpm: dict[str, float] | None = None
    others: int | None = None
    states: list[GpuState] = field(default_factory=list)
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


@dataclass(frozen=True)
class Handles:
    """NVML's handles of one CUDA device. card: None where a MIG instance does not tell its card.

    instance: of the MIG instance that the device is; None for a whole card, and where only its card was found.
    is_part: the device is a MIG instance.
    """

    card: Any
    instance: Any = None
    is_part: bool = False


def handles_of(library: Any, device: torch.device) -> Handles:
    """Find a CUDA device in NVML by its UUID. Raises what the library raises.

    In a MIG instance CUDA gives the instance's UUID, which NVML knows as MIG-...; a card is GPU-... What is found as a
    card in MIG mode is a part of it nevertheless, because such a card computes in its instances only.
    """
    uuid = str(torch.cuda.get_device_properties(device).uuid).removeprefix("GPU-").removeprefix("MIG-")
    with contextlib.suppress(Exception):  # not found: no MIG instance, or an NVML that is older than they are
        instance = library.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}".encode())
        card = None
        with contextlib.suppress(Exception):
            card = library.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
        return Handles(card, instance, is_part=True)
    card = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode())
    is_part = False
    with contextlib.suppress(Exception):  # a card without MIG refuses the question
        is_part = int(library.nvmlDeviceGetMigMode(card)[0]) == 1
    return Handles(card, None, is_part)


class Nvml:
    """NVML's view of one CUDA device, found by UUID because CUDA_VISIBLE_DEVICES renumbers.

    own_processes: how many processes of mpdiag hold the device (a parent may, while its child measures); needed only
    where a container hides which of the listed ones they are. unavailable: why nothing can be asked, None if it can.
    On a MIG instance what NVML tells of the whole card only is refused, since others may use the rest of it.
    """

    def __init__(self, device: torch.device, own_processes: int = 1) -> None:
        self._library: Any = None
        self._handles = Handles(None)
        self._own_processes = own_processes
        self.unavailable: str | None = "NVML is for NVIDIA GPUs; this ran on the CPU"
        if device.type != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handles = handles_of(pynvml, device)
        except Exception as error:
            self.unavailable = f"NVML is not available: {error}"
        else:
            self._library, self.unavailable = pynvml, None

    def ask(self, what: str, function: str, *arguments: Any) -> Any:
        """Call a function of NVML on the device. Raises RefusedError: "`what`: NVML's words"."""
        if self.unavailable is not None:
            raise RefusedError(self.unavailable)
        handle = self._handles.card
        if self._handles.is_part:
            if function in OF_THE_INSTANCE:
                handle = self._handles.instance
            if function in WHOLE_CARD or handle is None:
                raise RefusedError(f"{what}: {OF_THE_CARD}")
        return self.nvml_call(what, function, handle, *arguments)

    def nvml_call(self, what: str, function: str, *arguments: Any) -> Any:
        """Call a function of NVML that takes no device. Raises RefusedError."""
        if self.unavailable is not None:
            raise RefusedError(self.unavailable)
        try:
            return getattr(self._library, function)(*arguments)
        except AttributeError:
            raise RefusedError(f"{what}: this nvidia-ml-py has no {function}") from None
        except Exception as error:  # NVMLError, and whatever a fault in the library raises: a scan goes on
            raise RefusedError(f"{what}: {safe_text(error)}") from None

    def constant(self, name: str, default: int) -> int:
        """A constant of the library, or ours where an old one lacks it."""
        return int(getattr(self._library, name, default))

    @contextmanager
    def window(self, tick_seconds: float | None = ENERGY_TICK_SECONDS) -> Iterator[Reading]:
        """Read around a block; the reading is complete when the block has ended. The caller synchronizes.

        tick_seconds: how often the energy counter moves here; None where it does not.
        """
        from mpdiag.device.gpm import GpmWindow  # it builds on this module

        reading = Reading()
        if self.unavailable is not None:
            reading.reasons = {"energy": self.unavailable, "tensor_core": self.unavailable}
            started = time.perf_counter()
            yield reading
            reading.seconds = time.perf_counter() - started
            return
        before = self.processes()
        gpm = GpmWindow(self)
        try:
            try:
                gpm.open()
            except RefusedError as error:
                reading.reasons["tensor_core"] = str(error)
            energy = self._energy_mj(reading)
            started = time.perf_counter()
            try:
                yield reading
            finally:
                reading.seconds = time.perf_counter() - started
                self._finish_energy(reading, energy, tick_seconds)
                if "tensor_core" not in reading.reasons:
                    try:
                        reading.gpm = gpm.close(reading.seconds)
                    except RefusedError as error:
                        reading.reasons["tensor_core"] = str(error)
                after = self.processes()
                reading.others = None if before is None or after is None else len({*before, *after})
        finally:
            gpm.free()

    def processes(self) -> list[int] | None:
        """Process ids other than mpdiag's own that compute on the device; None where NVML does not list them.

        In a container NVML may know this process by a number that nobody inside can see. As many unseen ones as
        mpdiag has are then taken for its own, because a process with a CUDA context is always on the list.
        """
        try:
            listed = self.ask("processes", "nvmlDeviceGetComputeRunningProcesses")
            pids = [int(process.pid) for process in listed]
        except (RefusedError, AttributeError, TypeError, ValueError):
            return None
        ours = {os.getpid(), os.getppid()}
        others = [pid for pid in pids if pid not in ours]
        if os.getpid() not in pids:
            for pid in [pid for pid in others if not _visible(pid)][: self._own_processes]:
                others.remove(pid)
        return others

    def state(self) -> GpuState:
        """Clock, temperature, power and what limits the clock, at this moment."""
        clock = self._number("nvmlDeviceGetClockInfo", CLOCK_SM)
        heat = self._number("nvmlDeviceGetTemperature", TEMPERATURE_GPU)
        milliwatts = self._number("nvmlDeviceGetPowerUsage")
        bits = self._number("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:  # its name before driver 535
            bits = self._number("nvmlDeviceGetCurrentClocksThrottleReasons")
        return GpuState(
            sm_clock_mhz=None if clock is None else int(clock),
            temperature_c=None if heat is None else int(heat),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            limited_by=None if bits is None else tuple(name for bit, name in LIMITS.items() if int(bits) & bit),
        )

    def utilization(self) -> float | None:
        """Share of the last second (or sixth of it) in which some kernel ran, 0..1; None where NVML does not tell."""
        with contextlib.suppress(RefusedError, AttributeError, TypeError, ValueError):
            return float(self.ask("utilization", "nvmlDeviceGetUtilizationRates").gpu) / 100
        return None

    def energy_mj(self) -> int:
        """The energy counter in millijoules since the driver was loaded. Raises RefusedError."""
        return int(self.ask("the energy counter", "nvmlDeviceGetTotalEnergyConsumption"))

    def _number(self, function: str, *arguments: Any) -> float | None:
        with contextlib.suppress(RefusedError, TypeError, ValueError):
            return float(self.ask(function, function, *arguments))
        return None

    def _energy_mj(self, reading: Reading) -> int | None:
        try:
            return self.energy_mj()
        except RefusedError as error:
            reading.reasons["energy"] = str(error)
            return None

    def _finish_energy(self, reading: Reading, before: int | None, tick_seconds: float | None) -> None:
        after = self._energy_mj(reading)
        if before is None or after is None:
            return
        limit = self._number("nvmlDeviceGetEnforcedPowerLimit")
        joules = (after - before) / 1000
        if tick_seconds is None or joules == 0:
            reading.reasons["energy"] = "the energy counter does not move"
        elif joules < 0:
            reading.reasons["energy"] = "the energy counter went back"
        elif reading.seconds < MIN_ENERGY_TICKS * tick_seconds:
            reading.reasons["energy"] = f"the window of {reading.seconds:.1f} s is too short for the energy counter"
        elif limit is not None and joules / reading.seconds > OVER_LIMIT * limit / 1000:
            watts = joules / reading.seconds
            reading.reasons["energy"] = f"the energy counter says {watts:.0f} W, the card's limit is {limit / 1000:.0f}"
        else:
            reading.energy_joules = joules


def _visible(pid: int) -> bool:
    """Whether a process of that number can be seen from here; taken for granted where there is no /proc."""
    return not os.path.isdir("/proc/self") or os.path.exists(f"/proc/{pid}")
