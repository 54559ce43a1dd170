"""The rows of the table of operations: the same line of code in many modules is one row, worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.formats import FP16
from mpdiag.operations import OpRole, OpTable
from mpdiag.report.html_numbers import share

_LEAST_SHARE = 0.01  # of the non-zero elements, from which the page's table of tensors marks a loss, too


@dataclass(frozen=True)
class OperationRow:
    """One row, ready to print. table: the worst of the modules, of which there are `modules`.

    verdict: what FP16 does to it, in words; css: how bad that is ("bad", "" or "dim").
    """

    table: OpTable
    modules: int
    calls: int
    verdict: str
    css: str

    @property
    def place(self) -> str:
        """The source without its folders; the cell's title has them."""
        return (self.table.source or "").replace("\\", "/").rpartition("/")[2]

    @property
    def largest(self) -> float | None:
        """A constant with its sign, the largest magnitude of anything else."""
        return self.table.abs_max if self.table.value is None else self.table.value

    @property
    def what(self) -> str:
        """The role as people say it; nothing for a plain output."""
        if self.table.role is OpRole.CONSTANT:
            return f"constant {self.table.argument}" if self.table.argument else "constant"
        return "" if self.table.role is OpRole.OUTPUT else self.table.role


def operation_rows(tables: Sequence[OpTable], log2_scale: int | None) -> list[OperationRow]:
    """All rows, worst first; equal ones keep the order of the training step. log2_scale: the one recommended."""
    scale = log2_scale or 0

    def badness(table: OpTable) -> float:
        return _badness(table, scale)

    groups: dict[tuple[object, ...], list[OpTable]] = {}
    for t in tables:
        groups.setdefault((t.op, t.role, t.direction, t.source, t.amp_dtype, t.argument), []).append(t)
    rows = []
    for group in groups.values():
        worst = max(group, key=badness)
        verdict, css = verdict_of(worst, scale)
        rows.append(OperationRow(worst, len({t.module for t in group}), sum(t.calls for t in group), verdict, css))
    return sorted(rows, key=lambda row: -badness(row.table))


def verdict_of(table: OpTable, log2_scale: int) -> tuple[str, str]:
    """(words, css) of what FP16 does to a value in the type it runs in; in the backward pass at a loss scale."""
    if table.amp_error is not None:
        return "raises in FP16", "bad"
    if table.amp_dtype is None:
        return "type not known", "dim"
    if table.role is OpRole.CONSTANT:
        return _constant_verdict(table)
    if table.masked:
        return "holds a mask", "dim"
    backward = table.direction == "backward"
    scale = log2_scale if backward else 0
    largest = (table.abs_max or 0.0) * 2.0 ** min(scale, 1023)  # no float is larger
    at = f" at {f'2^{scale}' if scale else 'scale 1'}" if backward else ""
    if not table.in_half:
        return ("needs its FP32" if largest >= FP16.overflows_at else "fits"), "dim"
    if largest >= FP16.overflows_at or (table.histogram.infs and table.dtype == "float16"):
        return f"overflows{at}", "bad"
    if largest >= FP16.max / 2:
        return f"{math.log2(FP16.max / largest):.2f} octaves left{at}", "" if backward else "bad"
    lost = table.histogram.usage(FP16, scale).underflow
    return (f"{share(lost)} become zero{at}", "") if lost >= _LEAST_SHARE else ("fits", "dim")


def _constant_verdict(table: OpTable) -> tuple[str, str]:
    kept = table.in_fp16
    # torch's products take a number in FP32 and round their result alone; a mask is what its product with one is
    factor = table.op in ("mul", "div") and (table.value or 0) > 0
    if kept is None or not table.in_half or factor:
        return "fits", "dim"
    if kept == 0:
        return "becomes zero", "bad"
    if math.isinf(kept):
        return "becomes infinite", "bad"
    return ("subnormal", "") if abs(kept) < FP16.min_normal else ("fits", "dim")


def _badness(table: OpTable, log2_scale: int) -> float:
    """A number to sort by: what breaks, what loses, FP16 before FP32, forward before backward; then by size."""
    grade = {"bad": 4.0, "": 2.0, "dim": 0.0}[verdict_of(table, log2_scale)[1]]
    size = math.log2(table.abs_max) / 256 if table.abs_max else -1.0  # within -1..1 for every FP32 number
    told = table.role is not OpRole.CONSTANT and not table.masked
    backward = table.direction == "backward"
    return grade + (1.0 if table.in_half else 0.0) + (size if told else -1.0) - (2.5 if backward and grade < 4 else 0)
