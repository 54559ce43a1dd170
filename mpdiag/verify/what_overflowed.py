"""Where FP16 broke in a training run: the module whose output was the first not to be finite, found by a second look.

A run is not watched while it trains, which would cost each of its steps. A GradScaler skips the step whose loss is
infinite, so the weights are still those that gave it: the batch is run again, in 16 bits and in FP32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from mpdiag.capture.modules import ModuleWatch
from mpdiag.device.random_state import random_state_kept
from mpdiag.errors import MpdiagError
from mpdiag.foretold import FirstOverflow
from mpdiag.target.user_code import guarded
from mpdiag.training.session import Session

WEIGHTS_GONE = "the weights were no longer finite after that step"
FINITE_AGAIN = "the same batch was finite when it was run again"
OUTSIDE = "every module's output was finite: it is the loss itself, or an operation between modules"


def first_overflow(run: Session, batch: Any, step: int) -> FirstOverflow:
    """Look again at a placed batch whose loss was not finite. step: which, from 1.

    The run goes on as it was: its buffers and the random state are put back. No gradient is touched.
    """
    if not all(bool(torch.isfinite(p).all()) for p in run.model.parameters()):
        return FirstOverflow(step, None, None, WEIGHTS_GONE)
    try:
        half, loss = _largest(run, batch, run.region)
        if math.isfinite(loss):
            return FirstOverflow(step, None, None, FINITE_AGAIN)
        full, _ = _largest(run, batch, nullcontext)
    except MpdiagError as error:  # the run has already told what it is about
        return FirstOverflow(step, None, None, f"the batch could not be run again: {error.message}")
    for name, largest in half.items():
        in_fp32 = full.get(name, math.nan)
        if not math.isfinite(largest) and math.isfinite(in_fp32):  # a mask of -inf is meant, in FP32 too
            return FirstOverflow(step, name, in_fp32, None)
    return FirstOverflow(step, None, None, OUTSIDE)


def _largest(run: Session, batch: Any, region: Callable[[], Any]) -> tuple[dict[str, float], float]:
    """(the largest magnitude of each module's output in the order of the calls, NaN if there is one; the loss)."""
    seen: dict[str, torch.Tensor] = {}

    def on_output(name: str, _: torch.nn.Module, tensor: torch.Tensor) -> None:
        if tensor.numel():
            largest = tensor.detach().abs().max().double()  # a NaN is the largest
            seen[name] = torch.maximum(seen[name], largest) if name in seen else largest

    loss = 0.0
    with _unchanged(run.model), guarded("computing the loss again"), region():
        watch = ModuleWatch(run.model, on_output)
        try:
            losses = run.job.losses(run.model, batch)
            for _, value in losses:
                loss += float(value.detach())
        finally:
            watch.remove()
    return {name: float(value) for name, value in seen.items()}, loss


@contextmanager
def _unchanged(model: torch.nn.Module) -> Iterator[None]:
    """The model's buffers and the random state as they were."""
    kept = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    try:
        with random_state_kept():
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in kept and buffer.shape == kept[name].shape:
                    buffer.copy_(kept[name])
