"""An FP32 backward pass whose gradients are rounded to FP16 where autocast would have them so.

What a gradient loses is then missing upstream too, which counts of each tensor for itself cannot know. Rounded are the
gradients of what FP16 modules return, and those of the operands and results of the lower-precision operators that
the user's code calls itself (an attention written by hand). What torch calls inside its own functions is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from mpdiag.capture.modules import ModuleWatch
from mpdiag.training.autocast_lists import installed


@dataclass(frozen=True)
class Rounding:
    """Where (names of modules whose output is FP16) and at which loss scale gradients are rounded."""

    names: frozenset[str]
    log2_scale: int

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """Put it on a model. Hooks set within come after the rounding's, so they see what goes on."""
        watch = ModuleWatch(model, self._output)
        try:
            with _Operators(self._rounded):
                yield
        finally:
            watch.remove()

    def _output(self, name: str, _: torch.nn.Module, tensor: torch.Tensor) -> None:
        if name in self.names and _has_history(tensor):
            tensor.register_hook(self._rounded)

    def _rounded(self, gradient: torch.Tensor | None) -> torch.Tensor | None:
        if gradient is None:
            return None
        return (gradient * 2.0**self.log2_scale).half().float() * 2.0**-self.log2_scale


class _Operators(TorchFunctionMode):
    """Rounds the gradients of the operands and results of every operator of autocast's lower-precision list."""

    def __init__(self, rounded: Callable[[torch.Tensor | None], torch.Tensor | None]) -> None:
        super().__init__()
        lower = {entry.partition(".")[0] for entry in installed().lower}
        self._names = lower | {"__matmul__", "__rmatmul__"}
        self._rounded = rounded

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") not in self._names:
            return func(*args, **kwargs)
        args, kwargs = pytree.tree_map(self._operand, (args, kwargs))
        result = func(*args, **kwargs)
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _has_history(tensor):
                tensor.register_hook(self._rounded)
        return result

    def _operand(self, value: Any) -> Any:
        """A view of the operand, so that only this use of it is rounded."""
        if not isinstance(value, torch.Tensor) or not value.requires_grad or value.dtype != torch.float32:
            return value
        view = value.view_as(value)
        if _has_history(view):
            view.register_hook(self._rounded)
        return view


def _has_history(tensor: torch.Tensor) -> bool:
    return tensor.requires_grad and not tensor.is_leaf and tensor.dtype == torch.float32
