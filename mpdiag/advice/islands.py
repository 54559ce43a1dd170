"""Which modules could stay in FP32, from the tables alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mpdiag.advice.loss_scale import recommend
from mpdiag.advice.scale_window import fp16_gradients
from mpdiag.diagnosis import Capture, LossScaleAdvice, TensorKind, TensorTable
from mpdiag.formats import FP16

_MANY = 8  # candidates weighed a round; each takes a whole recommendation


def overflowing_layers(capture: Capture) -> tuple[str, ...]:
    """Modules with a weight of their own in FP16 whose output, or that weight, exceeds FP16 in the FP32 run.

    Nothing but FP32 can hold these, so no trial is needed to know that they have to stay there.
    """
    halved = [t for t in capture.of_kind(TensorKind.WEIGHT) if t.amp_dtype == "float16" and "." in t.name]
    owners = dict.fromkeys(t.name.rpartition(".")[0] for t in halved)
    too_large = {t.name.rpartition(".")[0] for t in halved if _over(t)}
    outputs = {t.name for t in capture.of_kind(TensorKind.ACTIVATION) if t.amp_dtype == "float16" and _over(t)}
    return tuple(owner for owner in owners if owner in too_large or owner in outputs)


def in_forward_order(names: Iterable[str], capture: Capture) -> tuple[str, ...]:
    """Modules as the forward pass comes to them, each by the first output inside it; those without one come last."""
    seen = [table.name for table in capture.of_kind(TensorKind.ACTIVATION)]

    def place(name: str) -> int:
        inside = (i for i, each in enumerate(seen) if each == name or each.startswith(f"{name}."))
        return next(inside, len(seen))

    return tuple(sorted(names, key=place))


def described(name: str, capture: Capture) -> str:
    """What a module is: "Linear 24->64" for a layer, "LSTM" for another; "" where it was not seen."""
    layer = next((each for each in capture.loop.layers if each.name == name), None) if capture.loop else None
    if layer is None:
        own = (t for t in capture.of_kind(TensorKind.ACTIVATION) if t.name == name)
        return next((t.module_type for t in own), "")
    weights = (t.elements for t in capture.of_kind(TensorKind.WEIGHT) if t.name == f"{name}.weight")
    given = next(weights, 0) // layer.inner or layer.features_out  # of all groups; a layer's features are one group's
    groups = max(given // layer.features_out, 1)
    return f"{layer.module_type} {layer.features_in * groups}->{given}"


def gradient_candidates(capture: Capture, loss_scale: LossScaleAdvice) -> list[str]:
    """Modules at the two ends of the window, the one whose absence opens it most first."""
    tables = fp16_gradients(capture)
    ends = [f"{t.name} ({t.kind})" for t in sorted(tables, key=lambda t: -(t.abs_max or 0.0)) if _over(t)]
    ends += [*loss_scale.limited_by.get("upper", ()), *loss_scale.limited_by.get("lower", ())]
    modules = list(dict.fromkeys(name for name in map(_module_of, ends) if name))[:_MANY]
    return sorted(modules, key=lambda module: _left_without(module, capture))


def _over(table: TensorTable) -> bool:
    return (table.abs_max or 0.0) >= FP16.overflows_at


def _module_of(bound: str) -> str:
    """ "head.weight (weight_gradient)" -> "head"; "head (activation_gradient)" -> "head"."""
    name, _, kind = bound.rpartition(" (")
    return name.rpartition(".")[0] if kind.startswith(TensorKind.WEIGHT_GRADIENT) else name


def _left_without(module: str, capture: Capture) -> tuple[int, float]:
    """What remains wrong once a module's gradients are FP32: tensors that overflow, octaves that the window lacks."""
    without = replace(capture, tables=tuple(_taken_out(module, capture)))
    scale = recommend(without)
    over = sum(map(_over, fp16_gradients(without)))
    if scale.lower_log2 is None or scale.upper_log2 is None:
        return over, -math.inf
    return over, scale.lower_log2 - scale.upper_log2


def _taken_out(module: str, capture: Capture) -> Iterator[TensorTable]:
    for table in capture.tables:
        gone = table.name == module or table.name.startswith(f"{module}.")
        yield replace(table, amp_dtype="float32") if gone else table
