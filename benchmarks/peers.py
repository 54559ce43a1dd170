"""What others do to the tensors of a training step, each as a class with attach, step_done and remove.

`seen` is (tensors, elements) of a step that is observed, so that a cost can be read beside what it bought.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

BINS = 64


class Observer:
    """Hooks on a model, from `attach` until `remove`; `step_done` follows every optimizer step."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []
        self.kept: dict[str, Any] = {}  # the last statistics by name, as a logger would hold them
        self.counted_by: str | None = None
        self.readings = self.elements = self.steps = 0

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        pass

    def step_done(self) -> None:
        self.steps += 1

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()

    @property
    def seen(self) -> tuple[int, int] | None:
        if not self.readings:
            return None
        return self.readings // self.steps, self.elements // self.steps

    def saw(self, tensor: torch.Tensor) -> None:
        self.readings += 1
        self.elements += tensor.numel()

    def on_outputs(self, model: torch.nn.Module, read: Any) -> None:
        """`read(name, tensor)` for every leaf module's output and for its gradient."""

        def outputs(name: str, output: Any) -> None:
            for index, tensor in enumerate(output if isinstance(output, tuple | list) else (output,)):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    read(f"activation/{name}/{index}", tensor.detach())
                    if tensor.requires_grad:
                        tensor.register_hook(lambda grad, i=index: read(f"gradient/{name}/{i}", grad))

        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                self.handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: outputs(name, out)))


class HfDebug(Observer):
    """transformers' own DebugUnderflowOverflow (transformers.debug_utils), which keeps no handles: we keep them.

    For every module's weights, inputs and output: abs, min, max, isnan and isinf, with four synchronizations a tensor.
    It reads no gradients.
    """

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        from transformers.debug_utils import DebugUnderflowOverflow

        observer = self

        class Removable(DebugUnderflowOverflow):
            def _register_forward_hook(self, module: torch.nn.Module) -> None:
                observer.handles.append(module.register_forward_hook(self.forward_hook))

            def analyse_variable(self, var: Any, ctx: str) -> None:
                if torch.is_tensor(var):
                    observer.saw(var)
                super().analyse_variable(var, ctx)

        Removable(model)


class HistcLog2(Observer):
    """histc of log2|x| per tensor, one bin a binade, copied to the CPU: the histogram one writes first."""

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.on_outputs(model, self._read)
        for name, p in model.named_parameters():
            read = lambda parameter, name=name: self._read(f"weight_gradient/{name}", parameter.grad)
            self.handles.append(p.register_post_accumulate_grad_hook(read))

    @torch.no_grad()
    def _read(self, name: str, tensor: torch.Tensor) -> None:
        self.saw(tensor)
        self.kept[name] = torch.histc(tensor.float().abs().log2(), bins=BINS, min=-48, max=16).cpu()


class WandbStyle(Observer):
    """What `wandb.watch(log="all", log_freq=1)` does to weights and weight gradients, re-stated without wandb.

    A forward hook on the model copies each parameter to the CPU and a hook on each parameter takes its gradient where
    it is; both get a copy, two tests for inf and NaN, min and max as Python numbers, a linear histc of 64 bins between
    them, and the bins as lists. After TorchHistory in wandb/integration/torch/wandb_torch.py (commit 2a6a131a). wandb
    reads no activations, and its log_freq is 1000 unless told. `activations` gives them and their gradients, of leaf
    modules, the same treatment.
    """

    def __init__(self, activations: bool = False) -> None:
        super().__init__()
        self._activations = activations

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.handles.append(model.register_forward_hook(self._weights))
        for name, p in model.named_parameters():
            if p.requires_grad:
                read = lambda grad, name=name: self._read(f"gradients/{name}", grad)
                self.handles.append(p.register_hook(read))
        if self._activations:
            self.on_outputs(model, self._read)

    def _weights(self, model: torch.nn.Module, *_: Any) -> None:
        for name, parameter in model.named_parameters():
            self._read(f"parameters/{name}", parameter.detach().cpu())

    @torch.no_grad()
    def _read(self, name: str, tensor: torch.Tensor) -> None:
        self.saw(tensor)
        flat = tensor.detach().clone().reshape(-1).float()
        if not flat.numel() or not torch.isfinite(flat).any().item():
            return
        finite = torch.isfinite(flat)
        if not finite.all().item():
            flat = flat[finite]
        low, high = flat.min().item(), flat.max().item()
        if low == high:
            self.kept[name] = ([float(flat.numel())], [low, high])
            return
        counts = torch.histc(flat, bins=BINS, min=low, max=high).cpu()
        self.kept[name] = (counts.tolist(), torch.linspace(low, high, BINS + 1).tolist())
