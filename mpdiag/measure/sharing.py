"""Whether the GPU is this run's alone: looked at while this process lets it rest."""

from __future__ import annotations

from dataclasses import replace

import torch

from mpdiag.costs.gpu import NEEDS_GPU, GpuSharing
from mpdiag.device.block import Rest, watch_rest
from mpdiag.device.nvml import Nvml

REST_SECONDS = 2.5  # the energy counter moves 25 times, 20 of which make an idle power
SHORT_REST_SECONDS = 0.5  # enough to see work (GPM needs 0.2 s), too short for an idle power
ACTIVE_ABOVE = 0.02  # of the time, by GPM: a GPU at rest reads 0.000
UTILIZED_ABOVE = 0.05  # by nvmlDeviceGetUtilizationRates, which counts whole percents of up to a second
BEFORE, AFTER = "before this run", "while steps were timed"
RULE = "busy: something ran in more than 2 % of the time (5 % by utilisation), while this process ran nothing"


def look_for_others(
    device: torch.device, seconds: float = REST_SECONDS, when: str = BEFORE
) -> tuple[GpuSharing, Rest | None]:
    """Let the device rest for `seconds` and say who else uses it; with the rest itself, for idle power.

    The caller's own work must be over, other threads' too. when: relative to what is measured, for the reason.
    """
    if device.type != "cuda":
        return GpuSharing(None, None, None, 0.0, RULE, NEEDS_GPU), None
    rest = watch_rest(Nvml(device), device, seconds)
    return sharing_from(rest, when), rest


def sharing_from(rest: Rest, when: str = BEFORE) -> GpuSharing:
    """The record of a rest."""
    reading = rest.reading
    gpm = reading.gpm or {}
    by_gpm = gpm.get("sm")
    active = by_gpm if by_gpm is not None else rest.utilization
    busy = None if active is None else active > (ACTIVE_ABOVE if by_gpm is not None else UTILIZED_ABOVE)
    reason = None
    if busy:
        reason = f"the GPU was busy with other work {when}: active {active:.0%} of the time"
    elif reading.others:
        reason = f"{reading.others} other process(es) hold this GPU"
    elif busy is None:
        why = reading.reasons.get("tensor_core", "no reading")
        reason = f"whether others use this GPU is not known: {why}"
    watts = None
    if reading.energy_joules is not None and not busy:
        watts = reading.energy_joules / reading.seconds
    return GpuSharing(
        processes=reading.others,
        active_share=active,
        busy=busy,
        seconds=reading.seconds,
        rule=RULE,
        reason=reason,
        tensor_share=gpm.get("any_tensor"),
        idle_watts=watts,
        state=replace(reading.states[0], power_watts=None) if reading.states else None,  # it averages the work before
    )
