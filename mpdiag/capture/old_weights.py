"""Weights as they were before an optimizer's step, in memory that is asked for once and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpdiag.capture.slices import START, Slice, next_slices

_ALIGNMENT = 16  # bytes: a slice of any type may begin there


@dataclass(frozen=True)
class Kept:
    """A copy of one slice of one parameter."""

    slice: Slice
    values: torch.Tensor


class OldWeights:
    """Copies up to `limit_bytes` of the weights it is given; where they are more, another part each time."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._place = START
        self._buffers: dict[torch.device, torch.Tensor] = {}

    def keep(self, runs: Sequence[torch.Tensor]) -> list[Kept]:
        """Copy the next slices of flat tensors, on the current stream. They are valid until the next call."""
        if not runs or not self._limit_bytes:
            return []
        sizes = [(run.numel(), run.element_size()) for run in runs]
        slices, self._place = next_slices(sizes, self._limit_bytes, self._place)
        room = min(self._limit_bytes, sum(count * size for count, size in sizes)) + _ALIGNMENT * (len(runs) + 1)
        used: dict[torch.device, int] = {}
        kept = []
        for part in slices:
            run = runs[part.index]
            buffer = self._buffers.get(run.device)
            if buffer is None or len(buffer) < room:
                buffer = self._buffers[run.device] = torch.empty(room, dtype=torch.uint8, device=run.device)
            at = used.get(run.device, 0)
            size = (part.stop - part.start) * run.element_size()
            used[run.device] = -(-(at + size) // _ALIGNMENT) * _ALIGNMENT
            kept.append(Kept(part, buffer[at : at + size].view(run.dtype)))
        if kept:  # one launch for many
            sources = [runs[k.slice.index][k.slice.start : k.slice.stop] for k in kept]
            torch._foreach_copy_([k.values for k in kept], sources)
        return kept
