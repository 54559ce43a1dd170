"""The memory section: each arm's peak in parts on one axis, the same in a table, and why it is not half of FP32's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpdiag.costs.memory import MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.report.html_axes import ticks
from mpdiag.report.html_largest_batch import batch_view
from mpdiag.report.html_memory_table import (
    NO_REASON,
    NOT_SPLIT,
    ORDER,
    Row,
    css_of,
    figure_rows,
    ordered_names,
    part_rows,
)
from mpdiag.report.html_numbers import THIN, size
from mpdiag.report.memory_reasons import HalfWords, baseline_of, grouped_remarks, half_words, joined, times

TICKS = 4  # labels that fit side by side on a telephone


@dataclass(frozen=True)
class Part:
    """One part of a bar; width in percent of the bar."""

    css: str
    name: str
    shown: str
    width: str


@dataclass(frozen=True)
class Bar:
    """One arm's peak. width: in percent of the axis. told: all of it in words."""

    arm: str
    precision: str
    peak: str
    ratio: str | None
    width: str
    parts: tuple[Part, ...]
    told: str


@dataclass(frozen=True)
class MemoryView:
    """The section. axis: (percent of its length, label). half_at: where half of FP32's peak lies on it, in percent.

    legend: (class, words). parts, figures: the table above and below the sum. remarks: (arms, text).
    """

    setup: str
    bars: tuple[Bar, ...]
    axis: tuple[tuple[str, str], ...]
    half_at: str | None
    legend: tuple[tuple[str, str], ...]
    halves: tuple[HalfWords, ...]
    parts: tuple[Row, ...]
    figures: tuple[Row, ...]
    remarks: tuple[tuple[str, str], ...]


def memory_context(costs: Costs | None) -> dict[str, Any]:
    """What templates/memory.html needs; None where nothing was verified."""
    costs = costs or Costs()
    return {
        "memory_view": memory_view(costs.memory),
        "memory_reason": costs.memory_reason or NO_REASON,
        "batch_view": batch_view(costs.largest_batch),
        "batch_reason": costs.largest_batch_reason or NO_REASON,
    }


def memory_view(uses: Sequence[MemoryUse]) -> MemoryView | None:
    """The view of all arms; None where no arm was even tried."""
    if not uses:
        return None
    measured = [use for use in uses if use.peak_allocated_bytes is not None]
    baseline = baseline_of(uses)
    largest = max((sum(_parts(use).values()) for use in measured), default=0)
    axis = _axis(largest)
    end = axis[-1][0] if axis else 1.0
    return MemoryView(
        setup=_setup(measured),
        bars=tuple(_bar(use, baseline, end) for use in measured),
        axis=tuple((_percent(at / end), label) for at, label in axis),
        half_at=None if baseline is None else _percent(sum(_parts(baseline).values()) / 2 / end),
        legend=_legend(measured),
        halves=tuple(half_words(uses)),
        parts=tuple(part_rows(measured, baseline)),
        figures=tuple(figure_rows(measured, baseline)),
        remarks=_remarks(uses),
    )


def _parts(use: MemoryUse) -> dict[str, int]:
    return use.split.parts if use.split is not None else {NOT_SPLIT: use.peak_allocated_bytes or 0}


def _setup(uses: Sequence[MemoryUse]) -> str:
    samples = sorted({use.samples for use in uses if use.samples is not None})
    parameters = {use.parameters for use in uses if use.parameters is not None}
    text = f"Batches of {joined([str(each) for each in samples])} samples" if samples else ""
    if len(parameters) == 1:
        text += f"{', a' if text else 'A'} model of {parameters.pop():,} parameters"
    return text


def _bar(use: MemoryUse, baseline: MemoryUse | None, end: float) -> Bar:
    parts, peak = _parts(use), use.peak_allocated_bytes or 0
    total = sum(parts.values())
    order = sorted(parts, key=lambda name: (*ORDER, "unsplit").index(css_of(name)))
    theirs = baseline.peak_allocated_bytes if baseline is not None and baseline is not use else None
    drawn = [Part(css_of(name), name, size(parts[name]), _percent(parts[name] / (total or 1))) for name in order]
    told = f"{use.arm}: {size(total)}, of which " + ", ".join(f"{part.name} {part.shown}" for part in drawn)
    return Bar(use.arm, use.precision, size(peak), times(peak, theirs), _percent(total / end), tuple(drawn), told)


def _axis(largest: int) -> list[tuple[float, str]]:
    """(bytes, label), round numbers in one unit from 0 to the first that holds the largest bar."""
    if not largest:
        return []
    unit = max(each for each in (1, 2**10, 2**20, 2**30) if each <= largest)
    step = (found := ticks(0, largest / unit, TICKS))[1] - found[0]
    name = size(unit).rpartition(THIN)[2]
    count = math.ceil(largest / unit / step - 1e-9)
    return [(i * step * unit, f"{i * step:g}{THIN}{name}" if i else "0") for i in range(count + 1)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3f}".rstrip("0").rstrip(".")


def _legend(uses: Sequence[MemoryUse]) -> tuple[tuple[str, str], ...]:
    """One entry a colour: types that share one are named together."""
    found: dict[str, list[str]] = {}
    for name in ordered_names(uses):
        found.setdefault(css_of(name), []).append(name)
    words = [
        (css, [names[0], *(each.removeprefix("activations, ") for each in names[1:])]) for css, names in found.items()
    ]
    unsplit = [("unsplit", [NOT_SPLIT])] if any(use.split is None for use in uses) else []
    return tuple((css, ", ".join(names)) for css, names in (*words, *unsplit))


def _remarks(uses: Sequence[MemoryUse]) -> tuple[tuple[str, str], ...]:
    told = []
    for use in uses:
        if use.peak_allocated_bytes is None:
            told.append((use.arm, f"not measured: {use.reason or NO_REASON}"))
            continue
        told += [(use.arm, f"no parts: {use.split_reason or NO_REASON}")] if use.split is None else []
        told += [(use.arm, f"no figure from the driver: {use.driver_reason}")] if use.driver_reason else []
        told += [(use.arm, f"the allocator's settings are {use.allocator_settings}")] if use.allocator_settings else []
        told += [(use.arm, note) for note in use.notes]
    return grouped_remarks(told)
