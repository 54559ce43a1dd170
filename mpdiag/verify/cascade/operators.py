"""The operators of the cascade's FP32 pass, each followed by the roundings that FP16 autocast would make."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mpdiag.training.autocast_lists import installed
from mpdiag.verify.cascade.fused_attention import attention, kernel_rounding
from mpdiag.verify.cascade.half_tensors import HalfTensors
from mpdiag.verify.cascade.recurrent import KINDS, unrolled
from mpdiag.verify.cascade.rounding import cast, store

_ATTENTION, _LOSS = "scaled_dot_product_attention", "cross_entropy"
_LOOKED_INTO = frozenset({"multi_head_attention_forward", "backward", "grad"})
"""Python functions of torch in which the mode goes on. Backward, for what activation checkpointing computes again."""


class Operators(TorchFunctionMode):
    """Rounds what would be FP16: the operands and results of autocast's lower-precision list, and what follows them.

    Attention and recurrent layers are taken apart, as their kernels round inside. Emulated FP16 (off CUDA) has no such
    kernels, and nothing inside is rounded. halves: which tensors would be FP16. wanted: the last says whether the
    user's code has autocast on.
    """

    def __init__(self, log2_scale: int, halves: HalfTensors, wanted: Sequence[bool]) -> None:
        super().__init__()
        self._lower = {entry.partition(".")[0] for entry in installed().lower} | {"__matmul__", "__rmatmul__"}
        self._scale, self._halves, self._wanted = log2_scale, halves, wanted

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _LOOKED_INTO and isinstance(func, FunctionType):
            with self:
                return _opened(func)(*args, **kwargs)
        if (name in self._lower or name in KINDS) and self._wanted[-1]:
            return self._of_lower(func, name, args, kwargs)
        if name == _LOSS and self._halves.has(args[0] if args else kwargs.get("input")):
            return self._cross_entropy(func, inspect.signature(func).bind(*args, **kwargs).arguments)
        half = self._halves.conversion(name, args, kwargs)
        if half is not None:
            return self._converted(args[0], func(*args, **kwargs), half)
        half = self._halves.passes_on(func, name, args, kwargs)
        result = func(*args, **kwargs)
        if half:
            self._results(result)
        return result

    def _of_lower(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = pytree.tree_map(self._operand, (args, kwargs))
        result = None
        if name == _ATTENTION and _plain(args, kwargs):
            rounded = kernel_rounding(*args, **kwargs)
            result = attention(*args, **kwargs, rounded=rounded, log2_scale=self._scale)
        elif name in KINDS and args[0].is_cuda:
            result = unrolled(name, args, self._scale)
        result = func(*args, **kwargs) if result is None else result
        self._results(result)
        return result

    def _operand(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        return cast(value, self._scale, value=not self._halves.has(value))

    def _results(self, result: Any) -> None:
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32:
                store(tensor, self._scale, value=not tensor._is_view())
                self._halves.mark(tensor, True)

    def _converted(self, before: Any, after: Any, half: bool) -> Any:
        """What a conversion gives, which in FP32 may be the very tensor it was given."""
        if not isinstance(after, torch.Tensor) or after.dtype != torch.float32 or half == self._halves.has(before):
            if half and isinstance(after, torch.Tensor):
                self._halves.mark(after, True)
            return after
        if half:
            after = cast(after, self._scale)
            self._halves.mark(after, True)
            return after
        return after.view_as(after) if after is before else after

    def _cross_entropy(self, func: Any, arguments: dict[str, Any]) -> Any:
        """Of FP16 logits: torch asks log_softmax for their own type, which autocast then leaves at FP16."""
        if arguments.get("label_smoothing") or arguments["target"].is_floating_point():
            return func(**arguments)
        arguments.pop("label_smoothing", None)
        logits = arguments.pop("input")
        log_probabilities = functional.log_softmax(logits, 0 if logits.dim() == 1 else 1)
        self._results(log_probabilities)
        return functional.nll_loss(log_probabilities, **arguments)


def _plain(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether these are dense FP32 tensors, which is what the plain mathematics is for."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    return all(not t.is_nested and t.dtype in (torch.float32, torch.bool) for t in tensors)


def _opened(func: FunctionType) -> FunctionType:
    """A Python function of torch that, called under a mode, lets the mode see what it calls.

    As it is, it hands itself to the mode first and would do so for ever.
    """
    no = lambda *_: False
    asking = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = vars(sys.modules[func.__module__]) | dict.fromkeys(asking, no)
    own = FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    own.__kwdefaults__ = func.__kwdefaults__
    return own
