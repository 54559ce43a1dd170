"""Which tensors of an FP32 pass CUDA autocast would have in FP16, followed from operator to operator.

By autocast's lists and torch's type promotion. Where a Python function of torch does several things of which this knows
nothing, its results count as FP32 until a module returns them, whose types were observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from mpdiag.training.autocast_lists import installed

_OF_FIRST = frozenset({"batch_norm", "instance_norm"})
"""Their result has the type of what is normalised, whatever that of their parameters."""
_SIMPLE = frozenset(
    """relu relu_ relu6 leaky_relu leaky_relu_ silu mish elu elu_ selu celu rrelu hardtanh hardswish hardsigmoid tanh
    sigmoid softsign tanhshrink threshold glu dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    adaptive_avg_pool2d adaptive_avg_pool3d unfold fold split unflatten __rsub__ __rdiv__ batch_norm
    instance_norm""".split()
)
"""Python functions of torch that do one thing, in their operand's type."""
_IN_PLACE = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__", "__setitem__"})
_TO_FP32 = frozenset({"float", "double"})
_CONVERSIONS = frozenset({"to", "type", "type_as", "float", "double"})


class HalfTensors:
    """The tensors that would be FP16, told apart by identity; they are forgotten as they die."""

    def __init__(self) -> None:
        lists = installed()
        self._fp32 = {name.partition(".")[0] for name in (*lists.fp32, *lists.fp32_dtype)} | {"norm", "interpolate"}
        self._known: Any = WeakIdKeyDictionary()

    def mark(self, tensor: torch.Tensor, half: bool) -> None:
        """Say of a tensor whether it would be FP16."""
        if half:
            self._known[tensor] = True
        else:
            self._known.pop(tensor, None)

    def has(self, tensor: Any) -> bool:
        """Whether this tensor would be FP16."""
        return isinstance(tensor, torch.Tensor) and tensor in self._known

    def conversion(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool | None:
        """Whether what `x.to(...)` or the like gives would be FP16; None: this is no such function."""
        if name not in _CONVERSIONS or not args:
            return None
        if name in _TO_FP32:
            return False
        said = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.Tensor | torch.dtype | str)]
        for value in said:
            if isinstance(value, torch.Tensor):
                return self.has(value)
            if isinstance(value, torch.dtype):
                return False
            if name == "type":
                return False
        return self.has(args[0])

    def passes_on(self, func: Any, name: str, args: Any, kwargs: Any) -> bool:
        """Whether the results of an operator outside the lower-precision list would be FP16."""
        if name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")):
            return bool(args) and self.has(args[0])  # what is written into keeps its type
        if name in self._fp32 or (isinstance(func, FunctionType) and name not in _SIMPLE):
            return False
        if kwargs.get("dtype") is not None or any(isinstance(value, torch.dtype) for value in args):
            return False
        if name in _OF_FIRST:
            return self.has(args[0])
        floating = [t for t in pytree.tree_leaves((args, kwargs)) if _floats(t)]
        wide = [t for t in floating if t.dim()] or floating  # a tensor without dimensions does not decide the type
        return bool(wide) and all(self.has(t) for t in wide)


def _floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
