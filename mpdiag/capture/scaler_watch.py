"""The job's own GradScaler in one step: where gradients that carry its scale are taken for gradients without one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from mpdiag.loop import LoopEvent

CLIPS = frozenset(("mul_", "_foreach_mul_", "clamp_", "_foreach_clamp_min_", "_foreach_clamp_max_"))
_CLIP_GRAD = os.path.join("torch", "nn", "utils", "clip_grad.py")


class ScalerWatch:
    """Told of each call before it is made. `note` is given what was seen, at the user's line that runs then.

    In doubt it is silent: of gradients that are altered by anything but torch's own clipping it says nothing, for to
    divide them by the number of micro-batches is right with a scale and without.
    """

    def __init__(self, note: Callable[[LoopEvent, str], None]) -> None:
        self._note = note
        self._scaled_loss = self._carried = False  # a loss has been scaled; gradients with its scale have come
        self._unscaled: list[tuple[int, torch.nn.Parameter, torch.Tensor]] = []  # of an optimizer that has not stepped
        self._stepping: set[int] = set()

    def scaled(self) -> None:
        """GradScaler.scale, of an enabled scaler."""
        self._scaled_loss = True

    def unscaling(self, scaler: Any, optimizer: Any) -> None:
        """GradScaler.unscale_."""
        if scaler.is_enabled() and id(optimizer) not in self._stepping:  # a step unscales what is not yet
            given = (p for group in optimizer.param_groups for p in group["params"])
            self._unscaled += [(id(optimizer), p, p.grad) for p in given if p.grad is not None]

    def stepping(self, scaler: Any, optimizer: Any) -> None:
        """GradScaler.step, of a step that may be skipped."""
        if scaler.is_enabled():
            self._carried = False  # a backward pass without the scaler may follow, and be clipped as it is
            self._stepping.add(id(optimizer))
            self._unscaled = [each for each in self._unscaled if each[0] != id(optimizer)]
            self._note(LoopEvent.SCALER_STEP, type(optimizer).__name__)

    def backward(self) -> None:
        """Tensor.backward."""
        if not self._scaled_loss:
            return
        if any(p.grad is g and bool(g.any()) for _, p, g in self._unscaled):
            self._note(LoopEvent.MIXED_SCALES, "backward")
        self._scaled_loss, self._carried = False, True
        self._unscaled.clear()
        self._stepping.clear()

    def in_place(self, tensors: Iterable[Any]) -> None:
        """One of CLIPS."""
        if self._carried and _clipping():
            true = {id(gradient) for _, _, gradient in self._unscaled}
            if any(id(tensor) not in true for tensor in tensors):
                self._note(LoopEvent.CLIPPED_SCALED, "clip_grad")


def _clipping() -> bool:
    """Whether the call comes from torch's own clipping."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CLIP_GRAD):
            return True
        frame = frame.f_back  # type: ignore[assignment] # the walk ends at None
    return False
