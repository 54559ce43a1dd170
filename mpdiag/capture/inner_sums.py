"""Squares and sums that exist inside one kernel only: what a norm or a mean adds up before it divides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpdiag.capture.op_names import base_name
from mpdiag.capture.op_watch import OpCall
from mpdiag.operations import OpRole

Derived = Callable[[], torch.Tensor]


def summed_inside(call: OpCall, made: torch.Tensor) -> Iterator[tuple[OpRole, Derived]]:
    """(role, how to compute it in FP32) for a mean's sum, and for the squares of a norm and what they add up to."""
    given = call.args[0] if call.args and isinstance(call.args[0], torch.Tensor) else None
    if given is None or not given.is_floating_point() or not given.numel():
        return
    if base_name(call.func) == "mean":
        terms = given.numel() // max(1, made.numel())
        yield OpRole.SUM, lambda: made.float() * terms
        return
    grouped = _grouped(base_name(call.func), given, call.args)
    if grouped is not None:
        yield OpRole.SQUARE, lambda: given.float().square()
        yield OpRole.SUM, lambda: grouped.float().square().sum(-1)


def _grouped(name: str, given: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor | None:
    """The input of a norm as [groups, elements normalised together]; None for anything else."""
    if name in ("native_layer_norm", "_fused_rms_norm"):
        return given.flatten(given.dim() - len(args[1]))
    if name == "native_group_norm":
        samples, groups = args[3], args[6]
        return given.reshape(samples * groups, -1)
    if "batch_norm" in name and given.dim() > 1:
        return given.transpose(0, 1).flatten(1)
    if name == "linalg_vector_norm" and (len(args) < 2 or args[1] == 2):
        dims = args[2] if len(args) > 2 else None
        kept = [] if not dims else [d for d in range(given.dim()) if d not in {i % given.dim() for i in dims}]
        return given.permute(*kept, *(d for d in range(given.dim()) if d not in kept)).flatten(len(kept))
    return None
