"""Reading torch.profiler: a profile as JSON, and the kernel time of a piece of work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from mpdiag.measure.trace_events import STEP, read_trace


def exported(profiler: profile) -> Any:
    """A finished profile as the Chrome trace's JSON."""
    with TemporaryDirectory(prefix="mpdiag-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text(encoding="utf-8"))


def kernel_ms(makers: Sequence[Callable[[], Callable[[], object]]], calls: int) -> list[float | None]:
    """Kernel time in ms of one call of each body, by the profiler: the host's pace does not enter.

    A maker makes its body's inputs, which are freed before the next is made. None: it launched no kernel, or raised
    RuntimeError (also out of memory), or the profiler's record could not be read.
    """
    ranges: list[int | None] = []  # which of the marked ranges is each body's own; None for one that failed
    begun = 0
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for make in makers:
            try:
                body = make()
                for _ in range(2):
                    body()  # warm: cuBLAS chooses its kernel and takes its workspace
                begun += 1  # the range is in the trace also where its body fails
                with record_function(STEP):
                    for _ in range(calls):
                        body()
            except RuntimeError:
                ranges.append(None)
                continue
            ranges.append(begun - 1)
            del body
    try:
        found = read_trace(exported(profiler)).kernels
    except (RuntimeError, ValueError):
        return [None] * len(ranges)
    return [
        None if i is None else sum(k.duration_us for k in found if k.step == i) / calls / 1000 or None for i in ranges
    ]
