"""Counting exponents: one row of a device table per tensor, no synchronization, handed to the host once a step.

On a CUDA device the kernels of kernel.py count; the portable path counts everywhere else and whatever the kernels do
not read, to the same integers.
"""

from __future__ import annotations

import torch

from mpdiag.capture import kernel, portable
from mpdiag.capture.block_counting import BlockTable
from mpdiag.capture.block_layout import rows_of
from mpdiag.capture.columns import (
    ABS_MAX,
    ABS_MIN,
    CODES,
    STAGNANT_BF16,
    STAGNANT_FP16,
    WANTED,
    Row,
    empty_table,
    row_of,
)
from mpdiag.capture.layout import flat
from mpdiag.capture.transfer import HostCopies, Waiting


class CountTable:
    """Rows of counts on one device. `add` may be called any number of times for a row within a step."""

    def __init__(self, device: torch.device, rows: int = 512, portable: bool = False) -> None:
        self.device = device
        self.counted_by = "torch"
        self._table = empty_table(rows, device)
        self._blank = empty_table(rows, device)
        self._used = 0
        self._later: list[kernel.Entry] = []
        self._copies = HostCopies()
        self._blocks: BlockTable | None = None
        self._kernels: kernel.Kernels | None = None
        if device.type == "cuda" and not portable:
            try:
                self._kernels = kernel.kernels_for(device.index or 0)
                self.counted_by = "CUDA kernel"
            except RuntimeError as error:
                self.counted_by = f"torch ({error})"

    def add(self, row: int, tensor: torch.Tensor) -> None:
        """Count the elements of a real floating tensor into a row."""
        self._reach(row)
        entry = kernel.entry_for(row, tensor) if self._kernels is not None else None
        if entry is not None and self._kernels is not None:
            self._kernels.count([entry], self._table)
        elif tensor.numel():
            self._add_portably(row, tensor)

    def add_with_blocks(self, row: int, tensor: torch.Tensor, weight: bool, module_type: str = "") -> str | None:
        """Count a real strided tensor into a row, and inside its blocks: in one pass where the kernel reads it.

        Gives what its blocks run along; None of an empty tensor.
        """
        if not tensor.numel():
            return None
        self._reach(row)
        if self._blocks is None:
            self._blocks = BlockTable(self.device, len(self._table), kernel=self._kernels is not None)
        rows = rows_of(tensor, weight, module_type)
        if not self._blocks.add(row, tensor, rows, self._table):
            self.add(row, tensor)
        return rows.along

    def add_later(self, row: int, tensor: torch.Tensor) -> None:
        """The same for a tensor that stays as it is until `add_waiting`: many small ones share one launch."""
        entry = kernel.entry_for(row, tensor) if self._kernels is not None else None
        if entry is None:
            self.add(row, tensor)
            return
        self._reach(row)
        self._later.append(entry)

    def add_waiting(self) -> None:
        """Count what `add_later` has put off."""
        if self._later and self._kernels is not None:
            self._kernels.count(self._later, self._table)
            self._later.clear()

    def _reach(self, row: int) -> None:
        self._used = max(self._used, row + 1)
        if row >= len(self._table):
            more = empty_table(max(len(self._table), row + 1), self.device)
            self._table, self._blank = torch.cat([self._table, more]), torch.cat([self._blank, more])

    def _add_portably(self, row: int, tensor: torch.Tensor) -> None:
        counted, largest, least = portable.count(flat(tensor))
        counts = self._table[row]
        counts[:CODES] += counted
        counts[ABS_MAX] = torch.maximum(counts[ABS_MAX], largest.long())
        counts[ABS_MIN] = torch.minimum(counts[ABS_MIN], least.long())

    def add_updates(self, updates: list[kernel.Update]) -> None:
        """Count updates after - before, and how many of the wanted ones 16-bit weights do not feel.

        An update is wanted where it is not zero. Weights that are 16-bit already have lost the small ones, so there
        it is wanted where the gradient is not zero, and lost where the weight stayed.
        """
        for update in updates:
            self._reach(update.row)
        if self._kernels is not None:
            fused = [update for update in updates if update.after.dtype in kernel.TYPES]
            self._kernels.count_updates(fused, self._table)
            updates = [update for update in updates if update.after.dtype not in kernel.TYPES]
        for update in updates:
            self._add_update_portably(update)

    def _add_update_portably(self, update: kernel.Update) -> None:
        row, before = update.row, update.before
        exact = torch.float64 if before.dtype == torch.float64 else torch.float32
        difference = (update.after.to(exact) - before.to(exact)).float()
        self.add(row, difference)
        full = before.dtype in (torch.float32, torch.float64)
        wanted = difference if full else update.gradient
        if wanted is None:
            return
        for column, dtype in ((STAGNANT_FP16, torch.float16), (STAGNANT_BF16, torch.bfloat16)):
            if full:
                stored = before.to(dtype)
                moved = (stored.float() + difference).to(dtype)
                self._table[row, column] += ((moved == stored) & (difference != 0)).sum()
            elif before.dtype == dtype:
                self._table[row, column] += ((difference == 0) & (wanted != 0)).sum()
        self._table[row, WANTED] += (wanted != 0).sum()

    def hand_over(self) -> Waiting:
        """The rows since the last call, on their way to the host; the table starts anew. No synchronization."""
        self.add_waiting()
        waiting = self._copies.start(self._table[: self._used])
        self._table[: self._used].copy_(self._blank[: self._used])
        return waiting

    def hand_over_blocks(self) -> Waiting | None:
        """The counts inside blocks, on their way to the host, and their memory given back; None without any."""
        waiting = self._blocks.hand_over() if self._blocks is not None else None
        self._blocks = None
        return waiting

    def take(self) -> dict[int, Row]:
        """The rows counted since the last call; waits for them."""
        host = self.hand_over().values()
        used = (host[:, :CODES].sum(dim=1) > 0).nonzero().flatten().tolist()
        return {row: row_of(host[row]) for row in used}
