"""Every operator call of a training step, forward and backward, with its place in the model and in the user's code.

A dispatch mode sees what module hooks cannot: functional calls, operators between modules, the backward pass. It
stands below autograd and autocast, so composite functions arrive as the operators they are made of. A backward
operator belongs where its forward call was: autograd numbers its nodes, and the forward notes where each number arose.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle

from mpdiag.capture.modules import recomputing
from mpdiag.capture.op_names import shown_name, writes_in_place
from mpdiag.capture.source_line import rerun_in_backward, users_line
from mpdiag.operations import OUTSIDE
from mpdiag.target.batches import tensors_in
from mpdiag.training.rounding import emulated_operator

_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_NODES_A_CALL = 4  # writing in place into a view makes three


@dataclass(frozen=True)
class Place:
    """Where a forward call is. emulated: (operator, 16-bit type) that this call is a part of, where one is emulated."""

    module: str
    source: str | None
    emulated: tuple[str, torch.dtype] | None


@dataclass(frozen=True)
class OpCall:
    """One operator call. args and kwargs as the operator gets them; backward: it is part of a backward pass.

    again: nothing new, as a piece of the forward pass that runs once more for the backward.
    """

    func: OpOverload[..., Any]
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: Place
    backward: bool
    again: bool = False


class Reader(Protocol):
    """Who is told of the calls. Nothing it computes is seen, cast by autocast or recorded by autograd."""

    def before(self, call: OpCall) -> None:
        """The call is about to run."""

    def after(self, call: OpCall, result: Any) -> None:
        """It gave `result`."""

    def failed(self, call: OpCall, error: Exception) -> None:
        """It raised; what it should have given is computed in FP32, rounded, and told to `after`."""

    def returned(self, tensor: torch.Tensor) -> None:
        """A module returns a tensor."""


class _Nobody:
    """A reader that does not care."""

    def before(self, call: OpCall) -> None: ...

    def after(self, call: OpCall, result: Any) -> None: ...

    def failed(self, call: OpCall, error: Exception) -> None: ...

    def returned(self, tensor: torch.Tensor) -> None: ...


_NOBODY = _Nobody()


class OpWatch(TorchDispatchMode):
    """Tells a reader of every operator call while it is entered; optimizer steps and recomputations are left out.

    With `mend`, a call that raises is done again in FP32, so that the iteration goes on: for an FP16 run of which only
    the types matter.
    """

    supports_higher_order_operators = True

    def __init__(
        self, model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer], reader: Reader, mend: bool = False
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's own class has no types here
        self._reader, self._mend = reader, mend
        self._paused = False
        self._stack: list[str] = []
        self._nodes: dict[int, Place] = {}
        self._lines: dict[tuple[str, OpOverload[..., Any]], str | None] = {}
        self._names: dict[torch.nn.Module, str] = {}
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            if module not in self._names and not isinstance(module, torch.jit.ScriptModule):
                self._names[module] = name or type(module).__name__
                self._handles.append(module.register_forward_pre_hook(self._entered))
                # always: also where the forward raises, as checkpointing does to end a recomputation early
                self._handles.append(module.register_forward_hook(self._left, always_call=True))
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._pause))
            self._handles.append(optimizer.register_step_post_hook(self._resume))

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entered(self, module: torch.nn.Module, _: Any) -> None:
        self._stack.append(self._names[module])

    def _left(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        if self._stack and self._stack[-1] == self._names[module]:
            self._stack.pop()
        for tensor in tensors_in(output):
            self._reader.returned(tensor)

    def _pause(self, *_: Any) -> None:
        self._paused = True

    def _resume(self, *_: Any) -> None:
        self._paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or not isinstance(func, OpOverload):
            return func(*args, **kwargs)
        call = self._called(func, args, kwargs)
        told = _NOBODY if call.again else self._reader
        with torch.no_grad(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            told.before(call)
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            if not self._mend:
                raise
            with torch.no_grad(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                told.failed(call, error)
                result = _in_fp32(call, error)
        with torch.no_grad(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            told.after(call, result)
        return result

    def _called(self, func: OpOverload[..., Any], args: Any, kwargs: Any) -> OpCall:
        """The call with its place."""
        if recomputing() and not rerun_in_backward():
            node = torch._C._current_autograd_node()
            place = self._forward_place(node._sequence_nr()) if node is not None else None
            place = place or Place(OUTSIDE, users_line(), None)
            if torch.is_grad_enabled():  # a backward with a graph of its own, as a gradient penalty's
                self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, place)
            # AccumulateGrad only hands a finished gradient to its parameter
            handed = node is not None and "AccumulateGrad" in node.name()
            return OpCall(func, shown_name(func), args, kwargs, place, backward=True, again=handed)
        module, source = self._stack[-1] if self._stack else OUTSIDE, users_line()
        if recomputing():  # the user's frames may be gone by now
            source = source or self._lines.get((module, func))
        else:
            self._lines[module, func] = source
        place = Place(module, source, emulated_operator())
        # the node of this call was made just before it; one that makes none finds its predecessor's number taken
        self._nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, place)
        return OpCall(func, shown_name(func), args, kwargs, place, backward=False, again=recomputing())

    def _forward_place(self, number: int) -> Place | None:
        """Where the node of this number arose, or one of the few before it: a call may make more than one node."""
        return next((self._nodes[n] for n in range(number, number - _NODES_A_CALL, -1) if n in self._nodes), None)


def _in_fp32(call: OpCall, error: Exception) -> Any:
    """What a call that FP16 refuses would give: computed in FP32 and rounded. Raises `error` where that fails too."""

    def widened(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.dtype == torch.float16:
            return value.float()
        return torch.float32 if value is torch.float16 else value

    def rounded(value: Any) -> Any:
        return value.half() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    try:
        args, kwargs = pytree.tree_map(widened, (call.args, call.kwargs))
        result = call.func(*args, **kwargs)
        return call.args[0].copy_(args[0]) if writes_in_place(call.func) else pytree.tree_map(rounded, result)
    except Exception:
        raise error from None
