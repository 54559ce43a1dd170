"""One step of a warm run, recorded: every block that the allocator gives, and what each block is."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from mpdiag.device.memory import MARK_BYTES, Peaks
from mpdiag.measure.memory_split import (
    ACTIVATION,
    BATCH,
    BUFFER,
    COPY,
    END,
    GRADIENT,
    OPTIMIZER_STEP,
    STATE,
    WEIGHT,
    WORKSPACE,
    AtPeak,
    Note,
    split_at_peak,
)
from mpdiag.measure.steady import SteadyRun
from mpdiag.target.batches import tensors_in
from mpdiag.training.precision import Region

_HALF = (torch.float16, torch.bfloat16)
# how autograd gets from a parameter to a 16-bit copy of it: the cast, views, and cuDNN's flat buffer of an RNN
_CAST, _ON_THE_WAY = ("ToCopyBackward0", "CopyBackwards", "CopySlices"), (
    "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "UnsafeViewBackward0", "SelectBackward0",
    "ReshapeAliasBackward0", "AsStridedBackward0", "SplitBackward0", "SplitWithSizesBackward0", "SliceBackward0",
    "ExpandBackward0", "SqueezeBackward1", "UnsqueezeBackward0", "UnbindBackward0", "AliasBackward0",
)  # fmt: skip
_MOST_NODES = 64  # an RNN's flat buffer is written by one node a weight; an activation's graph is far larger


class Allocator(Protocol):
    """What recording needs of a device's allocator: device.memory.CudaAllocator, or a fake."""

    def synchronize(self) -> None: ...  # noqa: D102
    def reset_peaks(self) -> None: ...  # noqa: D102
    def peaks(self) -> Peaks: ...  # noqa: D102
    def start_history(self) -> list[tuple[int, int]]: ...  # noqa: D102
    def history(self) -> list[tuple[str, int, int]]: ...  # noqa: D102
    def stop_history(self) -> None: ...  # noqa: D102
    def mark(self) -> None: ...  # noqa: D102
    def clear_workspaces(self) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Recorded:
    """The recorded step: its own peak, and what was in memory there."""

    peak_bytes: int
    at_peak: AtPeak


def record_step(run: SteadyRun, allocator: Allocator) -> Recorded:
    """Record one step of a warm run on its device.

    Raises NoHistoryError or HistoryMismatchError with the reason where the history cannot be had or read.
    """
    recorder = _Recorder(run, allocator)
    with run.in_force_again() as step, recorder.watching():
        step()  # a compiled model compiles again for the hooks, and that is not part of a step
        gc.collect()
        allocator.synchronize()
        live = allocator.start_history()
        try:
            recorder.begin()
            allocator.reset_peaks()
            step()
            allocator.synchronize()
            peak = allocator.peaks().allocated_bytes
            recorder.end()
            events = allocator.history()
        finally:
            recorder.on = False
            allocator.stop_history()
    return Recorded(peak, split_at_peak(live, events, recorder.notes, peak, MARK_BYTES))


class _Recorder:
    """Takes a note and leaves a mark at the same moment."""

    def __init__(self, run: SteadyRun, allocator: Allocator) -> None:
        self.on = False
        self.notes: list[Note] = []
        self._run, self._session, self._allocator = run, run.session, allocator

    def note(self, kind: str, label: str = "", addresses: tuple[int, ...] = (), where: str | None = None) -> None:
        if self.on:
            self.notes.append(Note(kind, label, addresses, where))
            self._allocator.mark()

    def begin(self) -> None:
        self.on = True
        self._state()
        self.note("tag", BATCH, _addresses(tensors_in(self._run.batches)))

    def end(self) -> None:
        """What the step left behind, some of it new, and last of all the workspaces."""
        self.note("phase", END)
        self._state()
        self.note("freeing", WORKSPACE)
        self._allocator.clear_workspaces()
        self.note("freeing")

    def _state(self) -> None:
        session = self._session
        parameters = list(session.model.parameters())
        self.note("tag", WEIGHT, _addresses(parameters))
        self.note("tag", BUFFER, _addresses(session.model.buffers()))
        self.note("tag", GRADIENT, _addresses(p.grad for p in parameters if p.grad is not None))
        states = (tensors_in(list(optimizer.state.values())) for optimizer in session.optimizers.values())
        self.note("tag", STATE, _addresses(tensor for state in states for tensor in state))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks that take notes, and change neither a value nor how long anything lives."""
        session = self._session
        before = session.region
        session.region = Region(lambda: self._region(before()), before.own_autocast)
        with ExitStack() as stack:
            for name, parameter in session.model.named_parameters():
                if parameter.requires_grad:
                    stack.callback(parameter.register_post_accumulate_grad_hook(self._gradient_hook(name)).remove)
            for optimizer in session.optimizers.values():
                stack.callback(optimizer.register_step_pre_hook(self._stepping).remove)
            if not session.precision.compiled:  # a hook on a module would split its graph
                for name, module in session.model.named_modules():
                    if next(module.children(), None) is None:
                        stack.callback(module.register_forward_pre_hook(self._module_hook(name)).remove)
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._saved, lambda tensor: tensor))
            try:
                yield
            finally:
                session.region = before

    @contextmanager
    def _region(self, opened: AbstractContextManager[None]) -> Iterator[None]:
        self.note("phase", "forward")
        with opened:
            yield
            self.note("freeing", COPY)  # leaving the outermost autocast region empties its cache of weights
        self.note("freeing")
        self.note("phase", "backward")

    def _saved(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.on:
            label = COPY if _is_weight_copy(tensor) else ACTIVATION + str(tensor.dtype).removeprefix("torch.")
            self.note("tag", label, _addresses([tensor]))
        return tensor

    def _gradient_hook(self, name: str) -> Callable[[torch.Tensor], None]:
        def accumulated(parameter: torch.Tensor) -> None:
            if self.on and parameter.grad is not None:
                self.note("tag", GRADIENT, _addresses([parameter.grad]), name)

        return accumulated

    def _module_hook(self, name: str) -> Callable[..., None]:
        return lambda module, inputs: self.note("at", where=name or type(module).__name__)

    def _stepping(self, *given: Any) -> None:
        self.note("phase", OPTIMIZER_STEP)


def _addresses(tensors: Iterable[Any]) -> tuple[int, ...]:
    """Where the tensors' storages begin; one that has none (a sparse or a fake tensor) is left out."""
    found = []
    for tensor in tensors:
        try:
            found.append(tensor.untyped_storage().data_ptr())
        except (RuntimeError, NotImplementedError, AttributeError):
            continue
    return tuple(dict.fromkeys(found))


def _is_weight_copy(tensor: torch.Tensor) -> bool:
    """Whether a saved 16-bit tensor was cast from parameters alone: its graph has nothing but a cast and views."""
    if tensor.dtype not in _HALF:
        return False
    try:
        node = tensor.grad_fn
    except RuntimeError:  # an output that autograd saves has no graph of its own yet
        return False
    pending, seen, cast = [node], 0, False
    while pending:
        node, seen = pending.pop(), seen + 1
        if node is None or seen > _MOST_NODES:
            return False
        name = node.name()
        if name == "struct torch::autograd::AccumulateGrad" or name.endswith("AccumulateGrad"):
            continue
        if name not in _CAST and name not in _ON_THE_WAY:
            return False
        cast = cast or name in _CAST
        pending += [following for following, _ in node.next_functions if following is not None]
    return cast
