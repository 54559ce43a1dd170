"""Step times on a device, and giving its memory back."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from itertools import pairwise

import torch


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


def release_memory() -> None:
    """Give freed blocks back, so that one arm's remains are not counted in the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
