"""Which type each tensor takes under CUDA FP16 autocast: one iteration is run that way and looked at."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpdiag.capture.layout import real_part
from mpdiag.capture.modules import ModuleWatch, recomputing
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.errors import MpdiagError
from mpdiag.target import Job, Start
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE, Precision
from mpdiag.training.session import open_session, total

STARVED = 0.01  # of the non-zero elements and of the squared norm: MP105's threshold where a loss is not hidden


@dataclass
class AutocastTypes:
    """What one FP16 iteration showed.

    outputs: module name -> dtype of its first floating output. cast: parameters that were copied to FP16.
    nonfinite: modules whose output had an inf or NaN, in call order; vanished: modules
    whose output was all zero; fed: modules that were given an inf or NaN; starved: those without children that compute
    in FP16 and lose, in the cast, more than STARVED of what an FP32 island gives them. loss: the loss's dtype.
    finite_loss and finite_gradients: whether they came out so; None where the iteration did not get there. error: why
    the iteration failed, when it did (an operator that autocast refuses, say).
    """

    outputs: dict[str, str] = field(default_factory=dict)
    cast: set[str] = field(default_factory=set)
    nonfinite: tuple[str, ...] = ()
    vanished: tuple[str, ...] = ()
    fed: tuple[str, ...] = ()
    starved: tuple[str, ...] = ()
    loss: str | None = None
    finite_loss: bool | None = None
    finite_gradients: bool | None = None
    error: str | None = None

    def of(self, table: TensorTable) -> TensorTable:
        """The table with its amp_dtype; unknown stays None."""
        if self.error is not None and not self.outputs:
            return table
        if table.kind in (TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT):
            return replace(table, amp_dtype=self.outputs.get(table.name))
        if table.kind is TensorKind.WEIGHT_UPDATE:
            return replace(table, amp_dtype=table.dtype)  # the master weights stay as they are
        return replace(table, amp_dtype="float16" if table.name in self.cast else table.dtype)


class _CastsOfParameters(TorchDispatchMode):
    """Notes which parameters are copied to FP16."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's own class has no types here
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.cast: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.float16:
            name = self._names.get(id(args[0]))
            if name is not None:
                self.cast.add(name)
        return func(*args, **kwargs)


def observe(job: Job, start: Start, device: torch.device, precision: Precision = FP16_AUTOCAST) -> AutocastTypes:
    """Run one FP16 autocast iteration (emulated off CUDA) on a model of its own and note the types."""
    seen = AutocastTypes()
    finite: dict[str, torch.Tensor] = {}
    alive: dict[str, torch.Tensor] = {}
    given: dict[str, torch.Tensor] = {}
    cast_away: dict[str, torch.Tensor] = {}
    with open_session(job, start, precision, device) as run:
        readers = {n for n, m in run.model.named_modules() if precision.keep_fp32 and not any(m.children())}

        def on_output(name: str, _: torch.nn.Module, tensor: torch.Tensor) -> None:
            if recomputing():
                return
            seen.outputs.setdefault(name, str(tensor.dtype).removeprefix("torch."))
            numbers = _numbers(tensor)
            if numbers is None:
                return
            ok = torch.isfinite(numbers).all()
            finite[name] = finite[name] & ok if name in finite else ok
            some = numbers.any() if numbers.numel() else torch.ones((), dtype=torch.bool, device=tensor.device)
            alive[name] = alive[name] | some if name in alive else some

        def on_input(name: str, tensor: torch.Tensor) -> None:
            numbers = None if recomputing() else _numbers(tensor)
            if numbers is not None:
                ok = torch.isfinite(numbers).all()
                given[name] = given[name] & ok if name in given else ok
                if name in readers and tensor.dtype == torch.float32 and numbers.numel():
                    lost = _lost_by_cast(numbers)
                    cast_away[name] = torch.maximum(cast_away[name], lost) if name in cast_away else lost

        watch = ModuleWatch(run.model, on_output, on_input)
        casts = _CastsOfParameters(run.model)
        try:
            with casts:
                losses = run.step(run.place(start.batch(0)))
            seen.finite_loss = math.isfinite(total(losses))
            seen.finite_gradients = _finite_gradients(run.model)
        except MpdiagError as error:
            seen.error = error.placed
        finally:
            watch.remove()
        if run.loss_dtype is not None:
            seen.loss = str(run.loss_dtype).removeprefix("torch.")
        # cuDNN's recurrent layers flatten their weights into one FP16 buffer, past any cast of a parameter
        recurrent = [
            n
            for n, m in run.model.named_modules()
            if isinstance(m, torch.nn.RNNBase) and seen.outputs.get(n) == "float16"
        ]
        names = [n for n, _ in run.model.named_parameters()]
        seen.cast = casts.cast | {n for n in names if n.rpartition(".")[0] in recurrent}
    seen.nonfinite = tuple(name for name, ok in finite.items() if not bool(ok))
    seen.fed = tuple(name for name, ok in given.items() if not bool(ok))
    seen.starved = tuple(
        name for name, lost in cast_away.items() if seen.outputs.get(name) == "float16" and float(lost) > STARVED
    )
    vanished = tuple(name for name, some in alive.items() if not bool(some))
    if vanished and precision.autocast is not None:  # a layer that begins at zero is all zero in FP32 too
        in_fp32 = observe(job, start, device, FP32_IEEE).vanished
        vanished = tuple(name for name in vanished if name not in in_fp32)
    seen.vanished = vanished
    return seen


def _numbers(tensor: torch.Tensor) -> torch.Tensor | None:
    """The real numbers that a tensor stores, also of a sparse one; None for a kind that stores them in no known way."""
    real = real_part(tensor)
    return real if real is None or real.element_size() > 1 else real.float()  # FP8 has no isfinite


def _lost_by_cast(tensor: torch.Tensor) -> torch.Tensor:
    """The share of the non-zero elements, or of the squared norm, that becomes zero in FP16: the smaller of the two."""
    wide = tensor.double()
    some, gone = wide != 0, (tensor.half() == 0) & (wide != 0)
    elements = gone.sum() / some.sum().clamp(min=1)
    squares = wide.square()
    return torch.minimum(elements.double(), (squares * gone).sum() / squares.sum().clamp(min=1e-300))


def _finite_gradients(model: torch.nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(torch.isfinite(g.coalesce().values() if g.is_sparse else g).all()) for g in gradients)
