"""Step times and peak memory on a CUDA device."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch


@dataclass(frozen=True)
class StepTimes:
    """Times of single steps: median and quartiles in milliseconds. wall_ms: the block's wall time a step."""

    median_ms: float
    iqr_ms: tuple[float, float]
    wall_ms: float
    steps: int


def time_steps(step: Callable[[], object], seconds: float, min_steps: int = 20, max_steps: int = 5000) -> StepTimes:
    """Run `step` for about `seconds` on the current CUDA device, with an event between steps and no other sync.

    The median of event intervals is the step time; where the host is slower than the GPU the intervals show that
    too, because an event is recorded when the host issues it.
    """
    events = [torch.cuda.Event(enable_timing=True)]
    torch.cuda.synchronize()
    started = time.perf_counter()
    events[0].record()
    while len(events) <= max_steps and (len(events) <= min_steps or time.perf_counter() - started < seconds):
        step()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        events.append(mark)
        if len(events) % 50 == 0:
            mark.synchronize()  # bounds the queue, so that the loop ends near its time
    torch.cuda.synchronize()
    wall = time.perf_counter() - started
    times = [a.elapsed_time(b) for a, b in pairwise(events)]
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else (times[0],) * 3
    return StepTimes(middle, (low, high), wall * 1000 / len(times), len(times))


def time_block(step: Callable[[], object], steps: int, device: torch.device) -> tuple[list[float], float]:
    """(milliseconds of each step, wall milliseconds a step) of a block, with no synchronization inside it.

    On a CUDA device an event stands between steps and all are read after the block; elsewhere the host's clock does.
    """
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(steps):
            step()
            marks.append(time.perf_counter())
        times = [(b - a) * 1000 for a, b in pairwise(marks)]
        return times, (marks[-1] - marks[0]) * 1000 / steps
    events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
    torch.cuda.synchronize(device)
    began = time.perf_counter()
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize(device)
    wall = (time.perf_counter() - began) * 1000 / steps
    return [a.elapsed_time(b) for a, b in pairwise(events)], wall


def peak_memory_bytes(step: Callable[[], object], device: torch.device, steps: int = 3) -> int:
    """The largest number of bytes allocated on the device during `steps` steps, by torch's allocator."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(steps):
        step()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device))


def release_memory() -> None:
    """Give freed blocks back, so that one arm's remains are not counted in the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
