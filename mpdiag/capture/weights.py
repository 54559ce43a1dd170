"""Hooks on parameters and optimizers: weight gradients, weights and updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from mpdiag.capture.layout import flat, layout_of, real_part
from mpdiag.capture.ledger import Change, Ledger, Site
from mpdiag.capture.old_weights import Kept, OldWeights
from mpdiag.capture.transforms import batched
from mpdiag.diagnosis import TensorKind

UPDATE_BYTES = 48 * 2**20
"""Memory for weights as they were before a step, all optimizers together: with the tables it stays below 64 MiB, the
bound that issue "Capture" sets. Parameters that don't fit are watched in turns, a different part each step."""


class WeightWatch:
    """Counts what backward delivers to each parameter, and weights and updates at each optimizer step.

    A weight gradient is counted before it is added to `.grad`, so every micro-batch is seen as it came, before
    anyone clips or unscales. Where it becomes `.grad` itself, it waits until the backward pass ends, and all of a pass
    share a launch. `on_gradient` is called at each of them, `on_step` at each optimizer step.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        ledger: Ledger,
        updates: bool,
        on_gradient: Callable[[], None],
        on_step: Callable[[], None],
    ) -> None:
        self.on = True
        self._ledger = ledger
        self._on_gradient, self._on_step = on_gradient, on_step
        self._sites = _sites(model, ledger)
        self._arriving: set[torch.nn.Parameter] = set()
        self._task: int | None = None  # the backward pass that runs, and whether it fills .grad
        self._fills_grad = False
        self._handles: list[RemovableHandle] = []
        for parameter in self._sites:
            if parameter.requires_grad and parameter.is_leaf:
                self._handles.append(parameter.register_hook(self._arrives(parameter)))
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._arrived))
        optimizers = list(optimizers)
        for optimizer in optimizers:
            self._watch_steps(optimizer, UPDATE_BYTES // len(optimizers) if updates else 0)

    def remove(self) -> None:
        """Take every hook off again."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _arrives(self, parameter: torch.nn.Parameter) -> Callable[[torch.Tensor], None]:
        site = self._sites[parameter][TensorKind.WEIGHT_GRADIENT]

        def hook(gradient: torch.Tensor) -> None:
            if not self.on or batched(gradient):
                return
            self._on_gradient()
            if parameter.grad is None and self._becomes_grad(parameter):
                self._arriving.add(parameter)  # no reference to the gradient: autograd would copy instead of keeping it
            else:
                self._ledger.count(site, gradient)

        return hook

    def _arrived(self, parameter: Any) -> None:
        if parameter in self._arriving and parameter.grad is not None:
            self._arriving.discard(parameter)
            site = self._sites[parameter][TensorKind.WEIGHT_GRADIENT]
            self._ledger.count(site, parameter.grad, later=True)

    def _becomes_grad(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the running pass is a `backward()`, which fills .grad, not a `torch.autograd.grad`.

        Asked once a pass; then its end is also awaited. torch's own answer is an error for `torch.autograd.grad`.
        """
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task = task
            self._arriving.clear()  # of a pass that raised between a gradient's arrival and its place in .grad
            node = torch.autograd.graph.get_gradient_edge(parameter).node
            try:
                self._fills_grad = bool(torch._C._will_engine_execute_node(node))
                engine = torch.autograd.Variable._execution_engine
                engine.queue_callback(self._ledger.count_waiting)
            except (RuntimeError, AttributeError):
                self._fills_grad = False
        return self._fills_grad

    def _watch_steps(self, optimizer: torch.optim.Optimizer, limit_bytes: int) -> None:
        old = OldWeights(limit_bytes)
        moving: list[torch.nn.Parameter] = []
        kept: list[Kept] = []

        @torch.no_grad()
        def before(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept.clear()
            if not self.on:
                return
            self._on_step()
            closure = any(value is not None for value in (*args[1:], *kwargs.values()))  # gradients come later
            moving[:] = self._moving(optimizer, closure)
            sites = [self._sites[parameter] for parameter in moving]
            for parameter, site in zip(moving, sites, strict=True):
                self._ledger.count(site[TensorKind.WEIGHT], parameter, later=True)
            self._ledger.count_waiting()
            kept.extend(old.keep([_run(parameter) for parameter in moving]))
            found_inf = getattr(optimizer, "found_inf", None)
            if isinstance(found_inf, torch.Tensor):  # a fused optimizer is called by GradScaler even to skip a step
                kinds = (TensorKind.WEIGHT, TensorKind.WEIGHT_UPDATE)
                self._ledger.note_found_inf(found_inf, [site[kind] for site in sites for kind in kinds])

        @torch.no_grad()
        def after(*_: Any) -> None:
            moved = [k for k in kept if moving[k.slice.index].grad is not None]
            self._ledger.count_updates([self._change(moving[k.slice.index], k) for k in moved])
            kept.clear()
            moving.clear()

        self._handles.append(optimizer.register_step_pre_hook(before))
        self._handles.append(optimizer.register_step_post_hook(after))

    def _change(self, parameter: torch.nn.Parameter, kept: Kept) -> Change:
        run, part = _run(parameter), slice(kept.slice.start, kept.slice.stop)
        gradient = _gradient(parameter)
        return Change(
            self._sites[parameter][TensorKind.WEIGHT_UPDATE],
            kept.values,
            run[part],
            gradient[part] if gradient is not None else None,
            run.numel(),
            parameter.dtype,
        )

    def _moving(self, optimizer: torch.optim.Optimizer, closure: bool) -> list[torch.nn.Parameter]:
        """The named parameters this optimizer is about to move; with a closure, those it may move."""
        named = (p for group in optimizer.param_groups for p in group["params"] if p in self._sites)
        wanted = (p for p in named if self._sites[p][TensorKind.WEIGHT].wanted)
        real = (p for p in wanted if p.is_floating_point() or p.is_complex())
        return [p for p in real if p.grad is not None or (closure and p.requires_grad)]


def _sites(model: torch.nn.Module, ledger: Ledger) -> dict[torch.nn.Parameter, dict[TensorKind, Site]]:
    """Each parameter's sites, under its first name and the class of the module that holds it."""
    kinds = (TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE)
    owners = dict(model.named_modules())
    found: dict[torch.nn.Parameter, dict[TensorKind, Site]] = {}
    for name, parameter in model.named_parameters():
        owner = type(owners[name.rpartition(".")[0]]).__name__
        found[parameter] = {kind: ledger.site(kind, name, owner) for kind in kinds}
    return found


def _run(parameter: torch.nn.Parameter) -> torch.Tensor:
    """A parameter's numbers in one dimension."""
    real = real_part(parameter)
    assert real is not None  # only floating and complex parameters are moved
    return flat(real)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The gradient's elements in the order of the parameter's own; only 16-bit weights are judged by it."""
    gradient = parameter.grad
    if parameter.dtype not in (torch.float16, torch.bfloat16) or gradient is None or gradient.layout != torch.strided:
        return None
    if gradient.stride() != parameter.stride() or not layout_of(gradient).flat:
        gradient = torch.empty_like(parameter).copy_(gradient)
    return flat(gradient)
