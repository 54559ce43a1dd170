"""Counts inside blocks: one row of a device table per tensor, for the one step of a capture that has them."""

from __future__ import annotations

import torch

from mpdiag.capture import block_kernel
from mpdiag.capture.block_columns import BLOCK_WIDTH
from mpdiag.capture.block_layout import Rows
from mpdiag.capture.portable_blocks import count_blocks
from mpdiag.capture.transfer import HostCopies, Waiting


class BlockTable:
    """Rows of counts on one device; `kernel`: whether to count with the CUDA kernel where it can be had."""

    def __init__(self, device: torch.device, rows: int, kernel: bool) -> None:
        self._table = _empty(rows, device)
        self._used = 0
        self._kernel: block_kernel.BlockKernel | None = None
        if kernel:
            try:
                self._kernel = block_kernel.block_kernel_for(device.index or 0)
            except RuntimeError:  # counted by torch then, to the same integers
                self._kernel = None

    def add(self, row: int, tensor: torch.Tensor, rows: Rows, table: torch.Tensor) -> bool:
        """Count a real floating tensor into a row; whether the row of the ordinary `table` was filled in passing."""
        self._used = max(self._used, row + 1)
        if row >= len(self._table):
            used, self._table = self._table, _empty(2 * len(self._table) + row, tensor.device)
            self._table[: len(used)].copy_(used)
        if self._kernel is not None and block_kernel.readable(tensor, rows):
            self._kernel.count(row, tensor, rows, table, self._table)
            return True
        counts, here = count_blocks(rows.of(tensor), rows.length), self._table[row]
        largest = torch.maximum(counts[-1], here[-1])
        here += counts
        here[-1] = largest
        return False

    def hand_over(self) -> Waiting:
        """The rows, on their way to the host. No synchronization."""
        return HostCopies().start(self._table[: self._used])


def _empty(rows: int, device: torch.device) -> torch.Tensor:
    """Zeros that may be written later too, though a module that runs in inference mode asked for them."""
    with torch.inference_mode(False):
        return torch.zeros(rows, BLOCK_WIDTH, dtype=torch.int64, device=device)


def merged(parts: list[torch.Tensor]) -> torch.Tensor:
    """One host table of several devices' counts."""
    whole = torch.zeros(max(map(len, parts), default=0), BLOCK_WIDTH, dtype=torch.int64)
    for part in parts:
        here = whole[: len(part)]
        largest = torch.maximum(here[:, -1], part[:, -1])
        here += part
        here[:, -1] = largest
    return whole
