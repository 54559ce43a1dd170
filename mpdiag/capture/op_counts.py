"""The exponents of every value of every operator call in an FP32 iteration, as records."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from mpdiag.capture.columns import Row as Counted
from mpdiag.capture.counting import CountTable
from mpdiag.capture.layout import real_part
from mpdiag.capture.op_types import OpTypes, worst_of
from mpdiag.capture.op_values import EXACT_INTEGERS, Row, RowKey, Value
from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable

_Kind = tuple[RowKey, str | None, bool]
"""A row, the type that its calls take under autocast, and whether they may be attention logits: calls that differ in
these are different records."""


@dataclass
class _Entry:
    index: int
    dtype: str
    calls: int = 0
    masked: bool = False
    results: list[str] = field(default_factory=list)
    read: list[int] = field(default_factory=lambda: [0, 0])
    constants: list[tuple[float, float | None]] = field(default_factory=list)


class OpCounts:
    """Listens to an FP32 iteration and counts what it is told; `types` are what the FP16 iteration showed before."""

    def __init__(self, device: torch.device, types: OpTypes, wanted: Callable[[str], bool]) -> None:
        self._types, self._wanted = types, wanted
        self._table = CountTable(device)
        self._calls: Counter[RowKey] = Counter()
        self._entries: dict[_Kind, _Entry] = {}
        self._attention: set[RowKey] = set()
        self._returned: set[RowKey] = set()

    def note(self, value: Value) -> int:
        """A value of a call; gives the call's number within its row."""
        call = self._calls[value.key]
        self._calls[value.key] += 1
        if not self._wanted(value.key.module):
            return call
        seen = self._types.of((value.key, call))
        kind = (value.key, seen.dtype if seen else None, seen.attends if seen else True)
        if kind not in self._entries:
            self._entries[kind] = _Entry(len(self._entries), str(value.dtype).removeprefix("torch."))
        entry = self._entries[kind]
        entry.calls += 1
        entry.masked |= value.masked
        if seen is not None and seen.result is not None:
            entry.results.append(seen.result)
        if value.constant is not None:
            entry.constants.append((value.constant, seen.constant if seen else None))
        if value.read is not None:
            entry.read = [have + more for have, more in zip(entry.read, value.read, strict=True)]
        for numbers in (*value.numbers, *((value.derived(),) if value.derived else ())):
            counted = real_part(numbers)
            if counted is not None:
                self._table.add(entry.index, counted)
        return call

    def halved(self, row: Row) -> None:
        """The FP16 iteration tells."""

    def refused(self, key: RowKey, error: Exception) -> None:
        """The FP16 iteration tells."""

    def attends(self, row: Row) -> None:
        """A product of activations reaches a softmax. In the FP16 iteration weights could not be told from those."""
        self._attention.add(row[0])

    def returned(self, key: RowKey) -> None:
        """A module returns a row's value."""
        self._returned.add(key)

    def tables(self) -> tuple[OpTable, ...]:
        """A record for each row, in the order first seen, without constants and whole numbers that FP16 holds."""
        counts = self._table.take()
        made = [self._made(kind, entry, counts.get(entry.index)) for kind, entry in self._entries.items()]
        return tuple(table for table in made if table is not None)

    def _made(self, kind: _Kind, entry: _Entry, counted: Counted | None) -> OpTable | None:
        key, amp_dtype, attends = kind
        read, rows = entry.read
        histogram = counted.histogram if counted else ExponentHistogram()
        some = counted is not None and histogram.finite_nonzero > 0
        table = OpTable(
            op=key.op,
            module=key.module,
            direction="backward" if key.backward else "forward",
            role=OpRole.LOGITS if attends and key in self._attention else key.role,
            dtype=entry.dtype,
            elements=histogram.total,
            calls=entry.calls,
            histogram=histogram,
            abs_max=counted.abs_max if counted and some else None,
            abs_min=counted.abs_min if counted and some else None,
            amp_dtype=amp_dtype,
            amp_result=worst_of(entry.results),
            amp_error=self._types.errors.get(key),
            module_output=key in self._returned,
            masked=entry.masked,
            source=key.source,
            sampled=read < rows,
            rows_read=read if rows else None,
            rows=rows or None,
            argument=key.argument,
        )
        if key.role is OpRole.CONSTANT:
            return _with_constant(table, entry.constants)
        held_exactly = key.role is OpRole.INTEGERS and (table.abs_max or 0.0) <= EXACT_INTEGERS
        return None if held_exactly else table


def _with_constant(table: OpTable, constants: list[tuple[float, float | None]]) -> OpTable | None:
    """The record of the constant nearest to FP16's ends; None when all of them lie well inside."""
    known = [(value, amp) for value, amp in constants if math.isfinite(value) and value]
    value, amp = max(known, key=lambda pair: abs(math.log2(abs(pair[0]))), default=(1.0, None))
    if FP16.min_normal <= abs(value) < EXACT_INTEGERS:
        return None
    used = value if amp is None else amp
    return replace(
        table,
        elements=table.calls,
        histogram=ExponentHistogram.of([value]),
        abs_max=abs(value),
        abs_min=abs(value),
        value=value,
        amp_value=amp,
        in_fp16=float(FP16.round([used])[0]),
    )
