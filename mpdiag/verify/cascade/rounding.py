"""Rounding to FP16 within an FP32 pass: the value as it is stored, the gradient as it comes back under a loss scale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Gradient = Callable[[torch.Tensor], torch.Tensor]


def to_half(value: torch.Tensor, log2_scale: int = 0) -> torch.Tensor:
    """FP32 values as FP16 holds them with 2^log2_scale on them; a power of two, so that nothing else changes."""
    with torch._C.DisableTorchFunction():  # a hook may run while the operators of the pass are watched
        if log2_scale == 0:
            return value.half().float()
        return (value * 2.0**log2_scale).half().float() * 2.0**-log2_scale


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, log2_scale: int, value: bool) -> torch.Tensor:
        ctx.log2_scale = log2_scale
        return to_half(tensor) if value else tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return to_half(gradient, ctx.log2_scale), None, None


def cast(tensor: torch.Tensor, log2_scale: int, value: bool = True) -> torch.Tensor:
    """A tensor as a cast to FP16 gives it, gradient included. Without `value` only the gradient is rounded."""
    if not tensor.requires_grad:
        return to_half(tensor) if value else tensor
    with torch._C.DisableTorchFunction():
        cast_tensor: torch.Tensor = _Cast.apply(tensor, log2_scale, value)  # type: ignore[no-untyped-call] # torch's
    return cast_tensor


def store(tensor: torch.Tensor, log2_scale: int, value: bool = True) -> None:
    """Round a result where it lies, and later its gradient.

    Where it lies, because an operator may have kept it for its backward pass: a tanh that FP16 rounds to 1 has
    no gradient. A parameter, or what shares elements with itself, keeps its value.
    """
    with torch._C.DisableTorchFunction():
        own = not (tensor.requires_grad and tensor.is_leaf)
        if value and own and not _overlaps(tensor):
            tensor.data.copy_(to_half(tensor.data))
        if tensor.requires_grad and own:
            tensor.register_hook(lambda gradient: None if gradient is None else to_half(gradient, log2_scale))


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether several elements lie in one place, as after expand."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
