"""The counts of all tensors over a capture's steps, in one host table: no Python work a row and step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpdiag.capture.columns import ABS_MAX, ABS_MIN, CODES, Row, empty_table, row_of, unscaled

_HOST = torch.device("cpu")


class Totals:
    """Sums of the device tables' rows, and each row's largest magnitude by step."""

    def __init__(self) -> None:
        self._sum = empty_table(0, _HOST)
        self._steps = torch.zeros(0, dtype=torch.int64)
        self._maxima: list[torch.Tensor] = []
        self._seen: list[torch.Tensor] = []

    def add(
        self,
        tables: Sequence[torch.Tensor],
        scaled_rows: Sequence[int] = (),
        scale: float = 1.0,
        forgotten: Sequence[int] = (),
    ) -> None:
        """Add one step's tables, int64 [rows, WIDTH] on the host, without the rows that are to be forgotten.

        `scaled_rows` were multiplied by `scale`.
        """
        counts = tables[0] if len(tables) == 1 else _merged(tables)
        if forgotten:
            counts = counts.clone()
            counts[list(forgotten)] = empty_table(len(forgotten), _HOST)
        here = [row for row in scaled_rows if row < len(counts)]
        if here:
            counts = counts.clone()
            counts[here] = unscaled(counts[here], scale)
        seen = counts[:, :CODES].sum(dim=1) > 0
        self._include(counts, seen)
        self._maxima.append(counts[:, ABS_MAX].clone())
        self._seen.append(seen)

    @classmethod
    def together(cls, parts: Sequence[Totals]) -> Totals:
        """The totals of several parts of a capture, in their order."""
        whole = cls()
        for part in parts:
            whole._include(part._sum, part._steps)
            whole._maxima += part._maxima
            whole._seen += part._seen
        return whole

    def _include(self, counts: torch.Tensor, steps: torch.Tensor) -> None:
        missing = len(counts) - len(self._sum)
        if missing > 0:
            self._sum = torch.cat([self._sum, empty_table(missing, _HOST)])
            self._steps = torch.cat([self._steps, torch.zeros(missing, dtype=torch.int64)])
        smallest = torch.minimum(self._sum[: len(counts), ABS_MIN], counts[:, ABS_MIN])
        self._sum[: len(counts)] += counts
        self._sum[: len(counts), ABS_MIN] = smallest
        self._steps[: len(counts)] += steps

    def steps(self, row: int) -> int:
        """In how many steps a row was counted."""
        return int(self._steps[row]) if row < len(self._steps) else 0

    def row(self, row: int) -> Row:
        """A row's sums; its abs_max is the largest of all steps."""
        counts = self._sum[row].clone()
        counts[ABS_MAX] = max((int(m[row]) for m in self._maxima if row < len(m)), default=0)
        return row_of(counts)

    def abs_max_by_step(self, row: int) -> Sequence[float]:
        """The largest finite magnitude of each step in which the row was counted."""
        found = [m[row] for m, seen in zip(self._maxima, self._seen, strict=True) if row < len(m) and seen[row]]
        if not found:
            return []
        return [float(x) for x in torch.stack(found).to(torch.int32).view(torch.float32)]


def _merged(tables: Sequence[torch.Tensor]) -> torch.Tensor:
    """One table of several devices' counts."""
    merged = empty_table(max(len(table) for table in tables), _HOST)
    for table in tables:
        here = merged[: len(table)]
        largest, smallest = torch.maximum(here, table)[:, ABS_MAX], torch.minimum(here, table)[:, ABS_MIN]
        here += table
        here[:, ABS_MAX], here[:, ABS_MIN] = largest, smallest
    return merged
