"""The probe: counts the exponents of activations, their gradients, weights, weight gradients and updates.

Observes only. Activation gradients come from `Tensor.register_hook` set inside forward hooks; module backward hooks
are never used (they break in-place operations, miss nested outputs and change gradients by an ulp).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.utils.hooks import RemovableHandle

from mpdiag.capture.ledger import Ledger, Site
from mpdiag.capture.modules import ModuleWatch, recomputing
from mpdiag.capture.transforms import batched, not_counted
from mpdiag.capture.weights import WeightWatch
from mpdiag.diagnosis import TensorKind, TensorTable


class Probe:
    """Attached to a model and its optimizers from construction until `remove()`.

    Call `step_done()` after each iteration: it sends the step's counts to the host without waiting for them.
    include and exclude are shell patterns on qualified names; a tensor is counted if any include matches (or
    none is given) and no exclude does. `scaler`: the job's own GradScaler; gradients are then counted as they are
    without its scale. `every`: only iterations 0, every, 2 * every ... are counted. `updates=False` leaves out
    weight updates, which take memory for a copy of weights. `blocks=True` also counts inside blocks in the first step
    of each part, for MXFP8 and NVFP4.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        optimizers: Iterable[torch.optim.Optimizer],
        device: torch.device,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        *,
        scaler: torch.amp.GradScaler | None = None,
        every: int = 1,
        updates: bool = True,
        blocks: bool = False,
    ) -> None:
        self._scaler = scaler
        self._every, self._iteration = every, 0
        self._gradients_came, self._optimizer_steps = False, 0
        rows = 3 * sum(1 for _ in model.parameters()) + 2 * sum(1 for _ in model.modules())
        self._ledger = Ledger(device, include, exclude, rows, blocks)
        self._sites: dict[str, tuple[Site, Site]] = {}
        self._on_leaves: list[RemovableHandle] = []
        self._modules = ModuleWatch(model, self._output)
        self._weights = WeightWatch(model, optimizers, self._ledger, updates, self._gradient_came, self._step_came)

    def remove(self) -> None:
        """Take every hook off again."""
        self._modules.remove()
        self._weights.remove()
        self._take_off_leaves()

    @property
    def counted_by(self) -> str:
        """Which path counts: the CUDA kernel, or torch (and why not the kernel)."""
        return self._ledger.counted_by

    @property
    def skipped_steps(self) -> int:
        """Iterations, of those counted, in which gradients came and no optimizer stepped; waits for the device."""
        return self._ledger.skipped_steps()

    def step_done(self) -> None:
        """Add the iteration's counts to the totals."""
        if self._modules.on:
            self._modules.step_done()
            self._take_off_leaves()
            self._ledger.step_done(self._optimizer_steps, self._gradients_came)
        self._gradients_came, self._optimizer_steps = False, 0
        self._iteration += 1
        if self._every > 1:
            self.observe(self._iteration % self._every == 0)

    def tables(self) -> tuple[TensorTable, ...]:
        """The totals so far, in the order first seen."""
        return self._ledger.tables(self._modules.sources)

    def end_part(self) -> tuple[TensorTable, ...]:
        """The counts since the last call of this, or since the beginning."""
        return self._ledger.end_part(self._modules.sources)

    def observe(self, on: bool) -> None:
        """Count from the next iteration on, or don't; called between iterations."""
        self._modules.on = self._weights.on = on

    def not_seen(self) -> tuple[str, ...]:
        """Modules that were never called, though they hold parameters of their own."""
        called = self._modules.called | self._modules.transformed
        return tuple(
            name
            for module, name in self._modules.names.items()
            if name not in called and any(True for _ in module.parameters(recurse=False))
        )

    def not_counted(self) -> str | None:
        """What was not counted because it ran inside torch.func, in words; None where nothing did."""
        return not_counted(self._modules.transformed, next(iter(self._modules.names.values())))

    def _take_off_leaves(self) -> None:
        for handle in self._on_leaves:
            handle.remove()
        self._on_leaves.clear()

    def _step_came(self) -> None:
        self._optimizer_steps += 1

    def _gradient_came(self) -> None:
        if self._gradients_came:
            return
        self._gradients_came = True
        scale = self._scaler._scale if self._scaler is not None else None  # the tensor: get_scale() would synchronize
        if scale is not None:
            self._ledger.note_scale(scale)

    def _output(self, name: str, module: torch.nn.Module, tensor: torch.Tensor) -> None:
        sites = self._sites.get(name)
        if sites is None:
            kinds = (TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT)
            activation, gradient = (self._ledger.site(kind, name, type(module).__name__) for kind in kinds)
            sites = self._sites[name] = (activation, gradient)
        if not sites[0].wanted:
            return
        if not recomputing():
            self._ledger.count(sites[0], tensor)
        if not tensor.requires_grad:
            return

        def hook(gradient: torch.Tensor | None) -> None:
            if gradient is None:  # an output nothing was computed from, as cuDNN's last hidden state
                return
            if batched(gradient):
                self._modules.transformed.add(name)
                return
            self._gradient_came()
            self._ledger.count(sites[1], gradient)

        handle = tensor.register_hook(hook)
        if tensor.is_leaf:  # a parameter returned as it is outlives the step, and the hook with it
            self._on_leaves.append(handle)
