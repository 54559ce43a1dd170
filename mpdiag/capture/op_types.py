"""Which type each value of each operator call takes under FP16 autocast, and what became of it there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpdiag.capture.op_values import Row, RowKey, Value
from mpdiag.errors import safe_text

RESULTS = ("finite", "inf", "nan")
"""What a value can be at worst, from good to bad."""


@dataclass
class Seen:
    """One value of one call in the FP16 iteration."""

    dtype: str
    result: str | None = None
    constant: float | None = None
    attends: bool = False


class OpTypes:
    """Listens to an FP16 iteration. last: the place of the latest value, for a run that stopped; errors: of calls."""

    def __init__(self) -> None:
        self._seen: defaultdict[RowKey, list[Seen]] = defaultdict(list)
        self.errors: dict[RowKey, str] = {}
        self.last: str | None = None

    def of(self, row: Row) -> Seen | None:
        """What was seen of a row's call, None where the FP16 iteration has no such call."""
        key, call = row
        return self._seen[key][call] if key in self._seen and call < len(self._seen[key]) else None

    def note(self, value: Value) -> int:
        """A value of a call; gives the call's number within its row."""
        self.last = f"{value.key.op} ({value.key.source or value.key.module})"
        seen = Seen(str(value.dtype).removeprefix("torch."), _worst(value), value.constant)
        self._seen[value.key].append(seen)
        return len(self._seen[value.key]) - 1

    def halved(self, row: Row) -> None:
        """A value noted earlier is cast to FP16."""
        key, call = row
        self._seen[key][call].dtype = "float16"

    def refused(self, key: RowKey, error: Exception) -> None:
        """The operator of a row raised."""
        self.errors.setdefault(key, safe_text(error))

    def attends(self, row: Row) -> None:
        """A product reaches a softmax."""
        key, call = row
        self._seen[key][call].attends = True

    def returned(self, key: RowKey) -> None:
        """The FP32 iteration tells."""


def _worst(value: Value) -> str | None:
    """What the numbers are at worst, in the type they take: an emulated product is still in FP32 here."""
    if not value.numbers:
        return None
    stored = [_stored(numbers, value.dtype) for numbers in value.numbers]
    return RESULTS[max(_grade(numbers) for numbers in stored)]


def _stored(numbers: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    values = numbers.detach()
    values = values.coalesce().values() if values.layout == torch.sparse_coo else values
    return values.to(dtype) if values.is_floating_point() and dtype == torch.float16 else values


def _grade(numbers: torch.Tensor) -> int:
    if bool(torch.isfinite(numbers).all()):
        return 0
    return 2 if bool(torch.isnan(numbers).any()) else 1


def worst_of(results: Sequence[str]) -> str | None:
    """The worst of several results; None of none."""
    return max(results, key=RESULTS.index, default=None)
