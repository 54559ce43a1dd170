"""The values of operator calls, and who is told of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from mpdiag.formats import FP16
from mpdiag.operations import OpRole

EXACT_INTEGERS = 2.0 ** (FP16.mantissa_bits + 1)  # 2048: up to here FP16 holds every whole number


class RowKey(NamedTuple):
    """What makes two values the same row: place, operator and role. Alike in both iterations."""

    module: str
    backward: bool
    op: str
    role: OpRole
    argument: str | None
    source: str | None


Row = tuple[RowKey, int]
"""A row and which call of it, from 0."""


@dataclass(frozen=True)
class Value:
    """One value of one call. dtype: what it is stored as on a GPU in this run. numbers: what there is of it, or,
    for values that exist inside a kernel only, derived: how to compute it. read: (rows read, rows) of a sample.
    masked: a mask's large constant is among the numbers.
    """

    key: RowKey
    dtype: torch.dtype
    numbers: tuple[torch.Tensor, ...] = ()
    derived: Callable[[], torch.Tensor] | None = None
    read: tuple[int, int] | None = None
    constant: float | None = None
    masked: bool = False


class Listener(Protocol):
    """Who is told of the values."""

    def note(self, value: Value) -> int:
        """A value of a call; gives the call's number within its row."""

    def halved(self, row: Row) -> None:
        """A value noted earlier is cast to FP16."""

    def refused(self, key: RowKey, error: Exception) -> None:
        """The operator of a row raised in its latest call."""

    def attends(self, row: Row) -> None:
        """A product noted earlier reaches a softmax: it is attention's logits."""

    def returned(self, key: RowKey) -> None:
        """A module returns a row's value."""
