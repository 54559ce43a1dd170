"""What the job's own code does in one training step, as torch's function mode sees it: above autograd and autocast.

Calls that torch makes for itself have no line of the job's code behind them, and are nobody's doing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from mpdiag.capture.input_watch import InputWatch
from mpdiag.capture.loss_watch import TargetWatch, reduction_of
from mpdiag.capture.optimizer_facts import short
from mpdiag.capture.scaler_watch import CLIPS, ScalerWatch
from mpdiag.capture.source_line import users_line
from mpdiag.loop import HALF, Event, LoopEvent
from mpdiag.training.autocast_lists import installed

_DECAYS = (0.5, 1.0)  # a factor in between, on something kept in 16 bits, is the decay of a moving average
_TORCHS = ("torch.", "mpdiag.")


class LoopWatch(TorchFunctionMode):
    """Within it, `events` fills, one for each place in the code, and `reductions` with what each loss is: "mean", "sum"
    or None for neither. `inputs` follows what the batch becomes, `targets` what the model's output is compared with.

    Not reentrant, one thread: torch.autocast, GradScaler and Function.apply are watched by standing in for them.
    """

    def __init__(self, model: torch.nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        super().__init__()
        moved = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
        self._names = {id(t): n for n, t in (*model.named_buffers(), *model.named_parameters()) if id(t) not in moved}
        self._weights = {id(p): name for name, p in model.named_parameters()}
        self._buffers = {id(b) for b in model.buffers()}
        self._averaged: set[int] = set()
        self._regions = 0
        self._undo: list[Callable[[], None]] = []
        self.events: dict[tuple[LoopEvent, str, str | None], Event] = {}
        self.inputs, self.targets = InputWatch(), TargetWatch()
        self.reductions: set[str | None] = set()
        self._scaler = ScalerWatch(self._note)

    def __enter__(self) -> LoopWatch:
        self._stand_in(torch.autocast, "__enter__", self._entered)
        self._stand_in(torch.autocast, "__exit__", self._left)
        self._stand_in(torch.amp.GradScaler, "scale", self._scaled)
        self._stand_in(torch.amp.GradScaler, "unscale_", self._scaler.unscaling)
        self._stand_in(torch.amp.GradScaler, "step", lambda scaler, *given, **_: self._scaler.stepping(scaler, *given))
        self._stand_in(torch.autograd.Function, "apply", self._applied)
        super().__enter__()  # type: ignore[no-untyped-call] # torch's own class has no types here
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)  # type: ignore[no-untyped-call] # as above
        while self._undo:
            self._undo.pop()()
        self.inputs.forget()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        self.inputs.before(name, args, kwargs)
        self.targets.before(name, args, kwargs, self.inputs.followed)
        if args and name in CLIPS:
            self._scaler.in_place(args[0] if isinstance(args[0], list | tuple) else args[:1])
        reader = _READERS.get(name)
        if reader is None and (name in _skip_autocast() or kwargs.get("out") is not None):
            reader = LoopWatch._skipping
        if reader is not None:
            with torch.no_grad():
                reader(self, name, args, kwargs)
        result = func(*args, **kwargs)
        self.inputs.after(name, args, kwargs, result)
        return result

    def _note(self, what: LoopEvent, name: str, dtype: str | None = None, value: float | None = None) -> None:
        source = users_line()
        if source is not None:
            self.events.setdefault((what, name, source), Event(what, name, source, dtype, value))

    # --- stood in for

    def _stand_in(self, owner: Any, name: str, told: Callable[..., None]) -> None:
        """Tell `told` of each call, with the object or class it is called on, and then make it."""
        own = owner.__dict__[name]
        by_class = isinstance(own, classmethod)
        call: Any = own.__func__ if by_class else own

        def stand_in(self_or_class: Any, *args: Any, **kwargs: Any) -> Any:
            told(self_or_class, *args, **kwargs)
            return call(self_or_class, *args, **kwargs)

        setattr(owner, name, classmethod(stand_in) if by_class else stand_in)
        self._undo.append(lambda: setattr(owner, name, own))

    def _entered(self, region: Any, *_: Any) -> None:
        self._regions += bool(region._enabled)
        if region._enabled:
            self._note(LoopEvent.AUTOCAST, region.device, short(region.fast_dtype))

    def _left(self, region: Any, *_: Any) -> None:
        self._regions = max(self._regions - bool(region._enabled), 0)

    def _scaled(self, scaler: Any, *_: Any, **__: Any) -> None:
        if scaler.is_enabled():
            self._scaler.scaled()
            self._note(LoopEvent.SCALER, type(scaler).__name__, value=float(scaler.get_scale()))

    def _applied(self, function: Any, *_: Any, **__: Any) -> None:
        if not f"{function.__module__}.".startswith(_TORCHS) and not _decorated(function.forward):
            self._note(LoopEvent.FUNCTION, function.__qualname__.rpartition(".<locals>.")[2])

    # --- seen as functions

    def _skipping(self, name: str, args: Any, kwargs: Any) -> None:
        """An operator of autocast's lists that writes into a tensor it is given."""
        given = kwargs.get("out")
        into = args[0] if given is None and args else given
        listed = name in _skip_autocast() or f"{name}_" in _skip_autocast()
        if listed and isinstance(into, torch.Tensor) and into.is_floating_point():
            self._note(LoopEvent.IN_PLACE, _plain(name) if given is None else f"{name}(out=)")

    def _grad(self, name: str, args: Any, kwargs: Any) -> None:
        if self._regions:
            self._note(LoopEvent.BACKWARD_INSIDE, f"torch.autograd.{name}")
        if kwargs.get("create_graph"):
            self._note(LoopEvent.PENALTY, "torch.autograd.grad")

    def _backward(self, name: str, args: Any, kwargs: Any) -> None:
        if self._regions:
            self._note(LoopEvent.BACKWARD_INSIDE, name)
        if args and isinstance(args[0], torch.Tensor):
            self.reductions.add(reduction_of(args[0]))
        self._scaler.backward()

    def _decay(self, name: str, args: Any, kwargs: Any) -> None:
        """x.mul_(decay) and x.lerp_(new, 1 - decay), one tensor or a list of them, kept in 16 bits."""
        kept = [t for t in (args[0] if isinstance(args[0], list | tuple) else [args[0]]) if _kept_in_half(t)]
        number = kwargs.get("weight", args[-1])
        if not kept or not isinstance(number, int | float):
            return
        decay = 1 - float(number) if "lerp" in name else float(number)
        if _DECAYS[0] < decay < _DECAYS[1]:
            self._averaged |= {id(t) for t in kept}
            told = self._names.get(id(kept[0]), "a tensor outside the model")
            self._note(LoopEvent.AVERAGE, told, short(kept[0].dtype), 1 - decay)

    def _add(self, name: str, args: Any, kwargs: Any) -> None:
        into = args[0]
        if id(into) in self._buffers and _kept_in_half(into) and id(into) not in self._averaged:
            self._note(LoopEvent.COUNTER, self._names.get(id(into), "a buffer"), short(into.dtype))

    def _embedding(self, name: str, args: Any, kwargs: Any) -> None:
        rows, weight = [*args[:2], kwargs.get("input"), kwargs.get("weight")][:2]
        if not isinstance(weight, torch.Tensor) or short(weight.dtype) not in HALF or not weight.requires_grad:
            return
        most = float(torch.bincount(rows.flatten()).max()) if rows.numel() else 0.0
        self._note(LoopEvent.REPEATS, self._weights.get(id(weight), "an embedding"), short(weight.dtype), most)


_READERS: dict[str, Any] = {
    "grad": LoopWatch._grad,
    "backward": LoopWatch._backward,
    "embedding": LoopWatch._embedding,
    **dict.fromkeys(("mul_", "__imul__", "_foreach_mul_", "lerp_", "_foreach_lerp_"), LoopWatch._decay),
    **dict.fromkeys(("add_", "__iadd__", "sub_", "__isub__"), LoopWatch._add),
}


def _kept_in_half(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and short(tensor.dtype) in HALF and tensor.is_leaf


def _decorated(forward: Any) -> bool:
    """Whether torch.amp.custom_fwd is among a function's decorators."""
    while forward is not None:
        if getattr(getattr(forward, "__code__", None), "co_filename", "").endswith("autocast_mode.py"):
            return True
        forward = getattr(forward, "__wrapped__", None)
    return False


def _plain(name: str) -> str:
    return "pow_" if name == "__ipow__" else name


@cache
def _skip_autocast() -> frozenset[str]:
    """The in-place forms of what autocast casts to FP16 or to FP32."""
    lists = installed()
    names = (name.partition(".")[0] for name in (*lists.lower, *lists.fp32, *lists.fp32_dtype))
    return frozenset(f"{name}_" for name in names) | {"__ipow__"}
