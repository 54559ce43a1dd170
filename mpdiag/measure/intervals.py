"""Stretches of time in a trace: what they cover together, and what lies idle between them. No torch here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

from mpdiag.measure.trace_events import TracedKernel, TracedWait


def merged(kernels: Iterable[TracedKernel]) -> list[tuple[float, float]]:
    """(start, end) in us of each stretch in which at least one of them ran, in order; streams overlap."""
    found: list[tuple[float, float]] = []
    for k in sorted(kernels, key=lambda k: k.start_us):
        end = k.start_us + k.duration_us
        if found and k.start_us <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((k.start_us, end))
    return found


def union_us(kernels: Iterable[TracedKernel]) -> float:
    """The time in which at least one of them ran."""
    return sum(end - start for start, end in merged(kernels))


def lost_us(waits: Sequence[TracedWait], busy: Sequence[tuple[float, float]]) -> list[float]:
    """How long the GPU had nothing to do during each wait of the host and right after it, until its next work began.

    That is what a wait costs: while the GPU still works, the host loses nothing by waiting. No instant counts for two
    waits: the one that began first has it. busy: of the GPU, as `merged` gives it.
    """
    starts, ends = [start for start, _ in busy], [end for _, end in busy]
    lost, told = [0.0] * len(waits), float("-inf")
    for i in sorted(range(len(waits)), key=lambda i: waits[i].start_us):
        begin, end = waits[i].start_us, waits[i].start_us + waits[i].duration_us
        running = bisect_right(starts, end) - 1  # the last stretch begun by then
        if running < 0 or ends[running] <= end:
            following = bisect_left(starts, end)
            end = starts[following] if following < len(starts) else end
        begin, told = max(begin, told), max(end, told)
        first, last = bisect_right(ends, begin), bisect_left(starts, end)
        worked = sum(min(end, ends[j]) - max(begin, starts[j]) for j in range(first, last))
        lost[i] = max(0.0, end - begin - worked)
    return lost
