"""The probe: counts the exponents of activations, their gradients, weights, weight gradients and updates.

Observes only. Activation gradients come from `Tensor.register_hook` set inside forward hooks; module backward hooks
are never used (they break in-place operations, miss nested outputs and change gradients by an ulp).
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from mpdiag.capture.counting import CountTable, values_of
from mpdiag.capture.modules import ModuleWatch, recomputing
from mpdiag.capture.tally import Tensor, tabled
from mpdiag.capture.totals import Totals
from mpdiag.diagnosis import TensorKind, TensorTable

Key = tuple[TensorKind, str]


class Probe:
    """Attached to a model and its optimizers from construction until `remove()`.

    Call `step_done()` after each iteration: it moves the step's counts to the host, the only synchronization.
    include and exclude are shell patterns on qualified names; a tensor is counted if any include matches (or
    none is given) and no exclude does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        device: torch.device,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
    ) -> None:
        self._include, self._exclude = include, exclude
        self._counts = CountTable(device)
        self._rows: dict[Key, int] = {}
        self._tensors: dict[Key, Tensor] = {}
        self._totals = Totals()
        self._before: dict[torch.nn.Parameter, torch.Tensor] = {}
        self._on_leaves: list[RemovableHandle] = []
        self._handles: list[RemovableHandle] = []
        self._watch = ModuleWatch(model, self._output)
        self._parameters = _parameter_names(model)
        self._owners = _owner_types(model)
        for parameter in self._parameters:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._weight_gradient))
        for optimizer in optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def remove(self) -> None:
        """Take every hook off again."""
        self._watch.remove()
        for handle in (*self._handles, *self._on_leaves):
            handle.remove()
        self._handles.clear()
        self._on_leaves.clear()
        self._before.clear()

    @property
    def counted_by(self) -> str:
        """Which path counts: the CUDA kernel, or torch (and why not the kernel)."""
        return self._counts.counted_by

    def step_done(self) -> None:
        """Add the step's counts to the totals."""
        self._watch.step_done()
        for handle in self._on_leaves:
            handle.remove()
        self._on_leaves.clear()
        self._before.clear()
        self._totals.add(self._counts.take_counts())

    def tables(self) -> tuple[TensorTable, ...]:
        """The totals so far, in the order first seen."""
        return tuple(self._table(key, row) for key, row in self._rows.items() if self._totals.steps(row))

    def _table(self, key: Key, row: int) -> TensorTable:
        source = self._watch.sources.get(self._module_of(key))
        steps, maxima = self._totals.steps(row), self._totals.abs_max_by_step(row)
        return tabled(self._tensors[key], self._totals.row(row), steps, maxima, source)

    def not_seen(self) -> tuple[str, ...]:
        """Modules that were never called, though they hold parameters of their own."""
        return tuple(
            name
            for module, name in self._watch.names.items()
            if name not in self._watch.called and any(True for _ in module.parameters(recurse=False))
        )

    def _module_of(self, key: Key) -> str:
        kind, name = key
        if kind in (TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT):
            return name
        return name.rpartition(".")[0]

    def _wanted(self, name: str) -> bool:
        included = not self._include or any(fnmatchcase(name, pattern) for pattern in self._include)
        return included and not any(fnmatchcase(name, pattern) for pattern in self._exclude)

    def _row(self, kind: TensorKind, name: str, module_type: str, tensor: torch.Tensor) -> int:
        key = (kind, name)
        if key not in self._rows:
            self._rows[key] = len(self._rows)
            dtype = str(tensor.dtype).removeprefix("torch.")
            self._tensors[key] = Tensor(name, module_type, kind, dtype)
        return self._rows[key]

    @torch.no_grad()
    def _count(self, kind: TensorKind, name: str, module_type: str, tensor: torch.Tensor, later: bool = False) -> None:
        """`later`: the tensor stays as it is until the optimizer steps, so it may share a launch with others."""
        if not self._wanted(name):
            return
        values = values_of(tensor)
        if values is not None:
            add = self._counts.add_later if later else self._counts.add
            add(self._row(kind, name, module_type, tensor), values)

    def _output(self, name: str, module: torch.nn.Module, tensor: torch.Tensor) -> None:
        module_type = type(module).__name__
        if not recomputing():
            self._count(TensorKind.ACTIVATION, name, module_type, tensor)
        if tensor.requires_grad and self._wanted(name):

            def gradient(grad: torch.Tensor | None) -> None:
                if grad is None:  # an output nothing was computed from, as cuDNN's last hidden state
                    return
                self._count(TensorKind.ACTIVATION_GRADIENT, name, module_type, grad)

            handle = tensor.register_hook(gradient)
            if tensor.is_leaf:  # a parameter returned as it is outlives the step, and the hook with it
                self._on_leaves.append(handle)

    def _weight_gradient(self, parameter: torch.Tensor) -> None:
        # waiting until the optimizer steps is right while nobody clips or unscales in between, as in our own loop
        name = self._parameters.get(parameter)  # type: ignore[call-overload] # the hook gets the Parameter itself
        if name is not None and parameter.grad is not None:
            self._count(TensorKind.WEIGHT_GRADIENT, name, self._owners[name], parameter.grad, later=True)

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, name in self._stepped(optimizer):
            self._count(TensorKind.WEIGHT, name, self._owners[name], parameter, later=True)
            self._before[parameter] = parameter.detach().clone()
        self._counts.add_waiting()

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter, name in self._stepped(optimizer):
            before = self._before.pop(parameter, None)
            if before is None:
                continue
            old, new = values_of(before), values_of(parameter)
            dense = parameter.grad is not None and parameter.grad.layout == torch.strided
            gradient = values_of(parameter.grad) if parameter.grad is not None and dense else None
            if old is not None and new is not None:
                row = self._row(TensorKind.WEIGHT_UPDATE, name, self._owners[name], parameter)
                self._counts.add_update(row, old, new, gradient)

    def _stepped(self, optimizer: torch.optim.Optimizer) -> list[tuple[torch.nn.Parameter, str]]:
        """The named parameters this optimizer is about to move."""
        found = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                name = self._parameters.get(parameter)
                if name is not None and parameter.grad is not None and self._wanted(name):
                    found.append((parameter, name))
        return found


def _parameter_names(model: torch.nn.Module) -> dict[torch.nn.Parameter, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _owner_types(model: torch.nn.Module) -> dict[str, str]:
    """The class of the module that holds each parameter."""
    owners = dict(model.named_modules())
    return {name: type(owners[name.rpartition(".")[0]]).__name__ for name, _ in model.named_parameters()}
