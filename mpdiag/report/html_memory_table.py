"""The table of memory by part: a row a part, then what was measured; a column an arm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mpdiag.costs.memory import HALF_TYPES, MemoryUse
from mpdiag.report.html_cells import Cell
from mpdiag.report.html_numbers import MINUS, breakable, size
from mpdiag.report.memory_reasons import times

NOT_SPLIT = "not split into parts"
NO_REASON = "no reason was recorded"
ORDER = ("weights", "gradients", "state", "copies", "full", "half", "ints", "batch", "buffers", "workspace",
         "before", "forward", "backward", "step", "rounding")  # fmt: skip
_CSS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer state": "state",
    "autocast copies of weights": "copies",
    "batch": "batch",
    "buffers": "buffers",
    "workspace": "workspace",
    "other, before the step": "before",
    "other, from forward": "forward",
    "other, from backward": "backward",
    "other, from optimizer step": "step",
    "allocator's rounding": "rounding",
    NOT_SPLIT: "unsplit",
}


@dataclass(frozen=True)
class Row:
    """One line of the table, a cell an arm. css: the part's swatch."""

    heading: str
    cells: tuple[Cell, ...]
    css: str | None = None
    title: str | None = None


def css_of(name: str) -> str:
    """The class of a part's colour; one hue for what lives from step to step, one for activations, one for the rest."""
    if not name.startswith("activations, "):
        return _CSS.get(name, "before")
    dtype = name.removeprefix("activations, ")
    if dtype in HALF_TYPES or dtype.startswith(("float8", "float4")):
        return "half"
    return "full" if dtype.startswith(("float", "complex")) else "ints"


def ordered_names(uses: Sequence[MemoryUse]) -> list[str]:
    """The names of all arms' parts, in the order of the page whichever arm has them."""
    names = dict.fromkeys(name for use in uses if use.split for name in use.split.parts)
    return sorted(names, key=lambda name: ORDER.index(css_of(name)))


def part_rows(uses: Sequence[MemoryUse], baseline: MemoryUse | None) -> list[Row]:
    """The bytes of each part, and their sum; nothing where no step was recorded."""

    def read(name: str) -> Callable[[MemoryUse], int | None]:
        return lambda use: None if use.split is None else use.split.parts.get(name, 0)

    rows = [
        Row(name, tuple(_sized(use, read(name), baseline, _no_split) for use in uses), css_of(name))
        for name in ordered_names(uses)
    ]
    if rows:
        rows.append(Row("Sum, the recorded peak", tuple(_sized(use, _total, baseline, _no_split) for use in uses)))
    return rows


def figure_rows(uses: Sequence[MemoryUse], baseline: MemoryUse | None) -> list[Row]:
    """What was measured without a record, and where the recorded peak lies."""
    sized: list[tuple[str, str, Callable[[MemoryUse], int | None], Callable[[MemoryUse], str]]] = [
        ("Peak allocated", "in tensors, over three steps", lambda use: use.peak_allocated_bytes, _no_figure),
        ("Peak reserved", "held by torch's allocator", lambda use: use.peak_reserved_bytes, _no_figure),
        ("Driver's figure", "of the whole process, CUDA context and libraries included",
         lambda use: use.driver_bytes, lambda use: use.driver_reason or _no_figure(use)),
    ]  # fmt: skip
    rows = [
        Row(head, tuple(_sized(u, read, baseline, why) for u in uses), title=says) for head, says, read, why in sized
    ]
    if any(use.recorded_peak_bytes not in (None, use.peak_allocated_bytes) for use in uses):
        says = "recording a step should change nothing; where it does, the parts are those of another peak"
        rows.insert(1, Row("Recorded less measured", tuple(map(_off, uses)), title=says))
    rows.append(Row("The peak lies", tuple(map(_place, uses)), title="the phase of the step, and the module at work"))
    says = "how often the allocator had to empty its cache and try again; each costs time"
    return [*rows, Row("Allocator retries", tuple(map(_retries, uses)), title=says)]


def _no_split(use: MemoryUse) -> str:
    return use.split_reason or NO_REASON


def _no_figure(use: MemoryUse) -> str:
    return use.reason or NO_REASON


def _total(use: MemoryUse) -> int | None:
    return None if use.split is None else use.split.total


def _retries(use: MemoryUse) -> Cell:
    if use.alloc_retries is None:
        return Cell(None, reason=_no_figure(use))
    return Cell(Markup(use.alloc_retries))


def _sized(
    use: MemoryUse,
    read: Callable[[MemoryUse], int | None],
    baseline: MemoryUse | None,
    reason: Callable[[MemoryUse], str],
) -> Cell:
    """Bytes, and under them the multiple of FP32's."""
    mine = read(use)
    if mine is None:
        return Cell(None, reason=reason(use))
    if not mine:
        return Cell(Markup('<span class="nil">0</span>'))
    against = times(mine, read(baseline)) if baseline is not None and baseline is not use else None
    return Cell(Markup(escape(size(mine))), under=(Markup(against),) if against else ())


def _off(use: MemoryUse) -> Cell:
    if use.recorded_peak_bytes is None or use.peak_allocated_bytes is None:
        return Cell(None, reason=_no_split(use))
    off = use.recorded_peak_bytes - use.peak_allocated_bytes
    return Cell(Markup(escape(f"{'+' if off > 0 else MINUS if off else ''}{size(abs(off)) if off else 0}")))


def _place(use: MemoryUse) -> Cell:
    if use.peak_phase is None:
        return Cell(None, reason=_no_split(use))
    near = (Markup("near <code>{}</code>").format(breakable(use.peak_near)),) if use.peak_near else ()
    return Cell(Markup(escape(use.peak_phase)), under=near)
