"""An operator in FP32 whose result is rounded to 16 bits, as tensor cores work, and which one is at it just now."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

_running: list[tuple[str, torch.dtype]] = []


def emulated_operator() -> tuple[str, torch.dtype] | None:
    """(name, 16-bit type) of the emulated operator around the running code; None outside one.

    What it computes in FP32, a GPU gives in that type.
    """
    return _running[-1] if _running else None


def eligible(value: Any) -> bool:
    """autocast's own test: floating point, not double (ATen/autocast_mode.h, is_eligible)."""
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def to_type(value: Any, dtype: torch.dtype) -> Any:
    """An eligible tensor in another type; anything else as it is."""
    return value.to(dtype) if eligible(value) else value


def rounded_result(op: Callable[..., Any], args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    """What an operator gives, in `dtype`; meanwhile it is the emulated operator."""
    _running.append((str(getattr(op, "_name", op)).removeprefix("aten::"), dtype))
    try:
        return pytree.tree_map(lambda result: to_type(result, dtype), op(*args, **kwargs))
    finally:
        _running.pop()


class Softmax(torch.autograd.Function):
    """softmax or log_softmax as a GPU gives them in 16 bits: summed in FP32, rounded once, forward and backward.

    A CPU's own 16-bit kernels round in between: gradients of 1e-3 become zero that a GPU keeps. Backward takes the
    rounded result, as torch's does. apply(x, dim, dtype, log): x in any eligible type, the result in `dtype`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, dtype: torch.dtype, log: bool) -> torch.Tensor:  # noqa: D102
        function = torch.log_softmax if log else torch.softmax
        result: torch.Tensor = rounded_result(function, (x.to(dtype).float(), dim), {}, dtype)
        ctx.save_for_backward(result)
        ctx.dim, ctx.log, ctx.dtype = dim, log, x.dtype
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: D102
        wide, result = gradient.float(), ctx.saved_tensors[0].float()
        if ctx.log:
            found = wide - result.exp() * wide.sum(ctx.dim, keepdim=True)
        else:
            found = result * (wide - (wide * result).sum(ctx.dim, keepdim=True))
        return found.to(gradient.dtype).to(ctx.dtype), None, None, None
