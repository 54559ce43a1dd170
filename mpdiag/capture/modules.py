"""Forward hooks on every module, with their traps dealt with in one place."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook

from mpdiag.capture.source_line import users_line
from mpdiag.capture.transforms import transforming
from mpdiag.target.batches import tensors_in


class ModuleWatch:
    """Calls `on_output(name, module, tensor)` for each floating tensor a module returns, once per tensor.

    A container that returns its last child's tensor is not counted again. An in-place operation makes the same
    tensor a new value, which is. Calls made during backward (recomputation by activation checkpointing) are told
    apart: `recomputing()` is true in them. While `on` is False nothing is looked at, and never inside torch.func:
    `transformed` fills with the modules called there. `sources` fills with the user's file:line of each module's first
    call.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        on_output: Callable[[str, torch.nn.Module, torch.Tensor], None],
        on_input: Callable[[str, torch.Tensor], None] | None = None,
    ) -> None:
        self.on = True
        self._on_output = on_output
        self._on_input = on_input
        self._seen: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._names: dict[torch.nn.Module, str] = {}
        for name, module in model.named_modules():
            self._names.setdefault(module, name or type(module).__name__)
        self.called: set[str] = set()
        self.transformed: set[str] = set()
        self.sources: dict[str, str] = {}
        # A hook of torch, not of each module: nn.TransformerEncoderLayer takes another path, with other bits, when
        # it or a module inside it has a hook of its own. Inside that path, and in TorchScript, no module is called.
        self._handle = register_module_forward_hook(self._forward)

    @property
    def names(self) -> dict[torch.nn.Module, str]:
        """The name each module is known by: its first qualified name, the class name for the model itself."""
        return self._names

    def remove(self) -> None:
        """Take every hook off again."""
        self._handle.remove()
        self._seen.clear()

    def step_done(self) -> None:
        """Forget which tensors were seen; called between iterations."""
        self._seen.clear()

    def _forward(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not self.on or torch.compiler.is_compiling():  # traced with the model, a hook would change what is compiled
            return
        name = self._names.get(module)
        if name is None:
            return
        if transforming():
            self.transformed.add(name)
            return
        if name not in self.called:
            self.called.add(name)
            place = users_line()
            if place:
                self.sources[name] = place
        for tensor in tensors_in(inputs) if self._on_input is not None else ():
            if tensor.is_floating_point() and self._on_input is not None:
                self._on_input(name, tensor)
        for tensor in tensors_in(output):
            if not (tensor.is_floating_point() or tensor.is_complex()) or self._known(tensor):
                continue
            self._on_output(name, module, tensor)

    def _known(self, tensor: torch.Tensor) -> bool:
        version = 0 if tensor.is_inference() else tensor._version  # inference tensors keep none
        seen = self._seen.get(id(tensor))
        if seen is not None and seen[0]() is tensor and seen[1] == version:
            return True
        self._seen[id(tensor)] = (weakref.ref(tensor), version)
        return False


def recomputing() -> bool:
    """Whether this code runs inside a backward pass."""
    return bool(torch._C._current_graph_task_id() != -1)
