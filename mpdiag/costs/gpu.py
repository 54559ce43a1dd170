"""The state of the GPU beside a measurement: its clock, its limits, and who else uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEEDS_GPU = "needs a CUDA GPU"
ON_THE_CPU = f"{NEEDS_GPU}; this run was on the CPU"


@dataclass(frozen=True)
class GpuState:
    """What NVML said at one moment; None where it does not say.

    power_watts is an average over the last second on Ampere and later. limited_by: why the clock was held down
    ("power cap", "heat", ...), empty where nothing did.
    """

    sm_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_watts: float | None = None
    limited_by: tuple[str, ...] | None = None


@dataclass(frozen=True)
class GpuSharing:
    """Who else used the GPU before we began, seen while this process let it rest.

    processes: compute processes of others, None where NVML does not list them. active_share: share of the time in
    which something ran there, 0..1; tensor_share: the tensor pipe's. busy: something did, by `rule`; None where nothing
    tells. idle_watts: by the energy counter over the rest; state's power is left out, which would be of the last
    second, work included. reason: why figures of time, energy and tensor cores are not this run's alone, or why that is
    not known.
    """

    processes: int | None
    active_share: float | None
    busy: bool | None
    seconds: float
    rule: str
    reason: str | None = None
    tensor_share: float | None = None
    idle_watts: float | None = None
    state: GpuState | None = None


@dataclass(frozen=True)
class StatesSeen:
    """Several moments together: lowest and highest clock and temperature, and what held the clock down.

    None where NVML told of no moment; throttled likewise.
    """

    clocks_mhz: tuple[int, int] | None
    temperatures_c: tuple[int, int] | None
    throttled: bool | None
    limited_by: tuple[str, ...]


def states_seen(states: Sequence[GpuState]) -> StatesSeen:
    """What several moments say together."""
    limits = [state.limited_by for state in states if state.limited_by is not None]
    return StatesSeen(
        clocks_mhz=_range([state.sm_clock_mhz for state in states]),
        temperatures_c=_range([state.temperature_c for state in states]),
        throttled=any(limits) if limits else None,
        limited_by=tuple(sorted({name for limit in limits for name in limit})),
    )


def _range(values: Sequence[int | None]) -> tuple[int, int] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
