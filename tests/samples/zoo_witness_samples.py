"""The witness of the zoo: it records every tensor that the probe has to see, by other means.

The witness is a third run without the probe. It stands between each module and its caller, calls autograd.grad where
the loop calls backward, and counts with NumPy: no code that counts is shared with what it judges.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from mpdiag.diagnosis import TensorKind
from mpdiag.histogram import ExponentHistogram
from zoo_paper_samples import AG, STEPS, WG, WU, A, Key, W

# the witness


def magnitudes(tensor: torch.Tensor, divisor: float = 1.0) -> np.ndarray:
    """|x| of each real number in a tensor, as FP32 keeps it, over a power of two."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_nested:
        tensor = torch.cat([part.reshape(-1) for part in tensor.unbind()])
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return np.abs(tensor.float().cpu().numpy().astype(np.float64).reshape(-1)) / divisor


def histogram_of(values: np.ndarray) -> ExponentHistogram:
    """Counted by NumPy's frexp."""
    finite = values[np.isfinite(values) & (values > 0)]
    exponents, counts = np.unique(np.frexp(finite)[1] - 1, return_counts=True)
    bins = dict(zip(exponents.tolist(), counts.tolist(), strict=True))
    return ExponentHistogram.from_bins(
        bins, int((values == 0).sum()), int(np.isinf(values).sum()), int(np.isnan(values).sum())
    )


class Tap(torch.autograd.Function):
    """A copy of a tensor that tells what gradient reaches it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, note: Callable[[torch.Tensor], None]) -> torch.Tensor:
        ctx.note = note
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.note(gradient)
        return gradient, None


class Witness:
    """Every tensor that the probe has to see, written down by other means."""

    def __init__(self, loop: SimpleNamespace, modules: Iterable[str]) -> None:
        self.loop = loop
        named = dict(loop.model.named_modules())
        self.modules = {id(named.get(name, loop.model)): name for name in modules}
        self.parameters = {id(p): (name, p) for name, p in loop.model.named_parameters() if p.requires_grad}
        self.dtypes: dict[Key, str] = {}
        self.steps: list[dict[Key, list[np.ndarray]]] = [{}]

    def note(self, kind: TensorKind, name: str, tensor: torch.Tensor) -> None:
        scaled = kind in (AG, WG) and hasattr(self.loop, "scaler")
        divisor = self.loop.scaler.get_scale() if scaled else 1.0
        self.steps[-1].setdefault((kind, name), []).append(magnitudes(tensor, divisor))
        self.dtypes.setdefault((kind, name), str(tensor.dtype).removeprefix("torch."))

    def step_done(self) -> None:
        self.steps.append({})

    def tapped(self, name: str, value: Any) -> Any:
        """The value with every floating or complex tensor in it noted, and replaced by its tap."""
        if isinstance(value, torch.Tensor):
            if not (value.is_floating_point() or value.is_complex()):
                return value
            self.note(A, name, value)
            return Tap.apply(value, functools.partial(self.note, AG, name)) if value.requires_grad else value
        each = functools.partial(self.tapped, name)
        if isinstance(value, PackedSequence):
            return PackedSequence(each(value.data), *value[1:])
        if dataclasses.is_dataclass(value):
            changed = copy.copy(value)
            for item in dataclasses.fields(value):
                part = each(getattr(value, item.name))
                object.__setattr__(changed, item.name, part)
                if isinstance(value, dict) and item.name in value:
                    dict.__setitem__(changed, item.name, part)
            return changed
        if isinstance(value, dict):
            return type(value)((key, each(part)) for key, part in value.items())
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(each, value))
        return type(value)(map(each, value)) if isinstance(value, list | tuple) else value

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand in the way of modules, backward, autograd.grad and the optimizers."""
        with pytest.MonkeyPatch.context() as patch:
            call, gradients_of = nn.Module.__call__, torch.autograd.grad

            def calling(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                output = call(module, *args, **kwargs)
                name = self.modules.get(id(module))
                return output if name is None else self.tapped(name, output)

            def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                gradients = gradients_of(outputs, inputs, *args, **kwargs)
                for leaf, gradient in zip([inputs] if isinstance(inputs, torch.Tensor) else inputs, gradients,
                                          strict=True):  # fmt: skip
                    if id(leaf) in self.parameters and gradient is not None:
                        self.note(WG, self.parameters[id(leaf)][0], gradient)
                return gradients

            def backward(loss: torch.Tensor, gradient: Any = None, retain_graph: Any = None) -> None:
                leaves = [parameter for _, parameter in self.parameters.values()]
                found = grad(loss, leaves, gradient, retain_graph=retain_graph, allow_unused=True)
                for leaf, new in zip(leaves, found, strict=True):
                    if new is not None:
                        leaf.grad = new.clone() if leaf.grad is None else leaf.grad.add_(new)

            patch.setattr(nn.Module, "__call__", calling)
            patch.setattr(torch.autograd, "grad", grad)
            patch.setattr(torch.Tensor, "backward", backward)
            for optimizer in self.loop.optimizers:
                patch.setattr(optimizer, "step", self._stepping(optimizer), raising=True)
            yield

    def _stepping(self, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
        original = optimizer.step
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}

        def step(*args: Any, **kwargs: Any) -> Any:
            before = {key: p.detach().clone() for key, (_, p) in self.parameters.items() if key in held}
            result = original(*args, **kwargs)
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is not None and found_inf.item():
                return result  # a fused optimizer is called, and does nothing
            for key, old in before.items():
                name, parameter = self.parameters[key]
                if parameter.grad is not None:
                    self.note(W, name, old)
                    self.note(WU, name, (_wide(parameter) - _wide(old)).to(_narrow(old)))
                    self.dtypes[WU, name] = self.dtypes[W, name]
            return result

        return step

    def table(self, key: Key, every: int = 1) -> dict[str, Any]:
        """The fields of a table that can be known."""
        by_step = [np.concatenate(step[key]) for step in self.steps[:STEPS:every] if key in step]
        by_step = [values for values in by_step if values.size]
        histogram = sum(map(histogram_of, by_step), ExponentHistogram())
        finite = [values[np.isfinite(values)] for values in by_step]
        maxima = tuple(float(np.float32(values.max(initial=0.0))) for values in finite)
        nonzero = [values[values > 0] for values in finite]
        smallest = min((float(values.min()) for values in nonzero if values.size), default=None)
        return {
            "histogram": histogram,
            "steps": len(by_step),
            "elements": histogram.total // len(by_step),
            "dtype": self.dtypes[key],
            "abs_max_by_step": maxima,
            "abs_max": max(maxima) if histogram.finite_nonzero else None,
            "abs_min": smallest,
        }

    def tables(self, every: int = 1) -> dict[Key, dict[str, Any]]:
        """All of them that hold anything."""
        keys = {key for step in self.steps[:STEPS:every] for key, values in step.items() if sum(v.size for v in values)}
        return {key: self.table(key, every) for key in keys}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _narrow(tensor: torch.Tensor) -> torch.dtype:
    return torch.complex64 if tensor.is_complex() else torch.float32
