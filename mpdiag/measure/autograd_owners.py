"""Which module an operator belongs to, forward and backward: for counting, away from any timing.

Forward: a stack of the modules that are running. Backward: when a module ends, the autograd nodes that its forward
made are marked with its name, and each node says so before it runs. Hooks on tensors would not do: the gradients of
three layers that share an input come complete only after all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from mpdiag.target.batches import tensors_in

_MARK = "mpdiag.module"


class Owners:
    """Follows a model through its steps. `now(in_backward)` is the name of the module at work, "" outside all."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._names = {id(m): name for name, m in model.named_modules()}
        self._running: list[str] = []
        self._node = ""

    def now(self, in_backward: bool) -> str:
        """The innermost module running; in the backward pass that of the node, unless it computes a forward again."""
        if self._running:
            return self._running[-1]
        return self._node if in_backward else ""

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Hooks on all modules within it."""
        hooks = [
            torch_module.register_module_forward_pre_hook(
                self._enter,
            ),
            torch_module.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def claim(self, value: Any, name: str) -> None:
        """Mark the nodes that lead to a value and belong to no one yet."""
        pending: list[Any] = [t.grad_fn for t in tensors_in(value)]  # Any: torch's stub takes metadata for a method
        while pending:
            node = pending.pop()
            if node is None or _MARK in node.metadata:
                continue
            node.metadata[_MARK] = name
            node.register_prehook(lambda _, name=name: self._at(name))
            pending += [before for before, _ in node.next_functions]

    def _at(self, name: str) -> None:
        self._node = name

    def _enter(self, module: torch.nn.Module, inputs: Any) -> None:
        if id(module) in self._names:
            self.claim(inputs, self._running[-1] if self._running else "")
            self._running.append(self._names[id(module)])

    def _leave(self, module: torch.nn.Module, _: Any, output: Any) -> None:
        if id(module) in self._names and self._running:
            self.claim(output, self._running.pop())
