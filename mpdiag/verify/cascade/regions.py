"""Whether the user's own code has switched autocast off around the running line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from mpdiag.training.cuda_regions import cuda_regions_on_cpu


@contextmanager
def users_regions(device: torch.device) -> Iterator[list[bool]]:
    """Follow the user's own autocast regions; the last of the list says whether the innermost one wants autocast.

    Outside them it does: an FP16 run computes the whole loss under autocast. An FP32 run keeps every region off
    (training.precision), so torch's state cannot be asked. device: where the job runs; on a CPU a region that says
    "cuda" counts, as in the emulated run. One of another device changes nothing.
    """
    enter: Any = torch.autocast.__enter__
    leave: Any = torch.autocast.__exit__
    wanted = [True]

    def enter_and_note(self: torch.autocast) -> Any:
        # activation checkpointing enters regions that restore the state it met, which is off throughout an FP32 run
        restored = sys._getframe(1).f_globals.get("__name__") == "torch.utils.checkpoint"
        asked = wanted[-1] if restored or self.device != device.type else bool(self._enabled)
        entered = enter(self)
        wanted.append(asked)
        return entered

    def leave_and_note(self: torch.autocast, *args: Any) -> Any:
        wanted.pop()
        return leave(self, *args)

    torch.autocast.__enter__ = enter_and_note  # type: ignore[method-assign]
    torch.autocast.__exit__ = leave_and_note  # type: ignore[method-assign]
    try:
        with nullcontext() if device.type == "cuda" else cuda_regions_on_cpu():
            yield wanted
    finally:
        torch.autocast.__enter__ = enter  # type: ignore[method-assign]
        torch.autocast.__exit__ = leave  # type: ignore[method-assign]
