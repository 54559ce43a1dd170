"""A block of work on a device under NVML's eyes: run for a time, synchronized at both ends; and a rest before it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mpdiag.device.nvml import ENERGY_TICK_SECONDS, MIN_ENERGY_TICKS, Nvml, Reading, RefusedError

LEAD_IN_SECONDS = 0.3  # the energy counter lags by a tick of 0.1 s and clocks rise in less; both are then this work's
QUEUED_STEPS = 8  # steps the host may be ahead: enough to keep a GPU fed, few enough to end near the time asked for
POLL_SECONDS = 0.005  # an energy counter's tick is about 0.1 s
SETTLE_SECONDS = 0.3  # of rest before a look at the idle GPU: the last work is over, and the counter's lag too


@dataclass(frozen=True)
class Block:
    """`steps` steps and what NVML read over them. device_seconds: by the device's own events where it has them."""

    steps: int
    reading: Reading
    device_seconds: float


@dataclass(frozen=True)
class Rest:
    """The device while this process let it rest. utilization: 0..1 by NVML, of about the last second.

    tick_seconds: how often the energy counter moves, None where it does not or too seldom to tell.
    """

    reading: Reading
    utilization: float | None
    tick_seconds: float | None


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device; any other has done its work already."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_for(step: Callable[[], object], seconds: float, device: torch.device) -> int:
    """Run `step` for about `seconds` (once at least) with a short queue; how often. Does not wait for the last ones."""
    began = time.perf_counter()
    queued: deque[torch.cuda.Event] = deque()
    steps = 0
    while steps == 0 or time.perf_counter() - began < seconds:
        step()
        steps += 1
        if (mark := _mark(device)) is not None:
            queued.append(mark)
            if len(queued) > QUEUED_STEPS:
                queued.popleft().synchronize()
    return steps


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """An event at this place of the device's queue."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def read_block(
    nvml: Nvml,
    step: Callable[[], object],
    seconds: float,
    device: torch.device,
    tick_seconds: float | None = ENERGY_TICK_SECONDS,
    lead_in_seconds: float = LEAD_IN_SECONDS,
) -> Block:
    """Run `step` for about `seconds` in a window of NVML, after a lead-in that is not counted.

    The device's state is noted while work is under way, because clocks fall and limits end when it does.
    """
    run_for(step, lead_in_seconds, device)
    under_way = nvml.state()
    synchronize(device)
    with nvml.window(tick_seconds) as reading:
        first = _mark(device)
        steps = run_for(step, seconds, device)
        last = _mark(device)
        reading.states = [under_way, nvml.state()]
        synchronize(device)
    if first is None or last is None:
        return Block(steps, reading, reading.seconds)
    return Block(steps, reading, first.elapsed_time(last) / 1000)


def watch_rest(nvml: Nvml, device: torch.device, seconds: float) -> Rest:
    """Let the device rest for `seconds` and see what it does meanwhile, and how often its energy counter moves."""
    synchronize(device)
    if nvml.unavailable is not None:
        with nvml.window() as reading:
            pass
        return Rest(reading, None, None)
    time.sleep(SETTLE_SECONDS)
    moves: list[float] = []
    with nvml.window() as reading:
        reading.states = [nvml.state()]
        last, began = _counter(nvml), time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            time.sleep(POLL_SECONDS)
            if (counter := _counter(nvml)) != last:
                last = counter
                moves.append(now)
    tick = (moves[-1] - moves[0]) / (len(moves) - 1) if len(moves) > 2 else None
    if len(moves) < MIN_ENERGY_TICKS and reading.energy_joules is not None:
        reading.energy_joules = None
        reading.reasons["energy"] = f"the energy counter moved only {len(moves)} times in {reading.seconds:.1f} s"
    return Rest(reading, nvml.utilization(), tick)


def _counter(nvml: Nvml) -> int | None:
    try:
        return nvml.energy_mj()
    except RefusedError:
        return None
