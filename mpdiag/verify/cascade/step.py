"""An FP32 training step whose values and gradients are rounded to FP16 where autocast would have them so.

What a gradient loses is then missing upstream too, and a tanh that FP16 rounds to 1 passes nothing on: counts of
each tensor for itself cannot know either. Rounded are what FP16 modules return, the operands and results of autocast's
lower-precision operators, what the user's code makes of those, and what the FP16 kernels of attention and recurrent
layers keep inside. Not seen: operators inside other functions that torch wrote in Python, in TorchScript and in
autograd functions of the user's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mpdiag.capture.modules import ModuleWatch
from mpdiag.verify.cascade.half_tensors import HalfTensors
from mpdiag.verify.cascade.operators import Operators
from mpdiag.verify.cascade.regions import users_regions
from mpdiag.verify.cascade.rounding import store


@dataclass(frozen=True)
class Rounding:
    """Where (names of modules whose output is FP16) and at which loss scale gradients are rounded."""

    names: frozenset[str]
    log2_scale: int

    @contextmanager
    def on(self, model: torch.nn.Module) -> Iterator[None]:
        """Put it on a model for a pass or more. Hooks set within come after the rounding's: they see what goes on."""
        halves = HalfTensors()
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device

        def output(name: str, _: torch.nn.Module, tensor: torch.Tensor) -> None:
            half = name in self.names and tensor.dtype == torch.float32
            if half:
                store(tensor, self.log2_scale)
            halves.mark(tensor, half)

        watch = ModuleWatch(model, output)
        try:
            with users_regions(device) as wanted, Operators(self.log2_scale, halves, wanted):
                yield
        finally:
            watch.remove()
