"""torch.func: inside grad, jvp and vmap a tensor stands for others and has no numbers of its own that could be read."""

from __future__ import annotations

from collections.abc import Iterable

import torch

SHOWN = 4  # names in a note


def transforming() -> bool:
    """Whether this code runs inside a transform of torch.func."""
    return torch._C._functorch.maybe_current_level() is not None


def batched(gradient: torch.Tensor) -> bool:
    """Whether a gradient stands for many: inside a transform, or of torch.autograd.grad(..., is_grads_batched=True)."""
    if torch._C._has_storage(gradient):
        return False
    return transforming() or torch._C._dispatch_tls_is_dispatch_key_included("VmapMode")  # microseconds, so asked last


def not_counted(names: Iterable[str], model: str) -> str | None:
    """What to tell of modules that ran inside a transform; None of none. model: the name of the model itself."""
    given = set(names)
    if not given:
        return None
    outermost = [model] if model in given else sorted(n for n in given if not _inside_another(n, given))
    told = ", ".join(outermost[:SHOWN]) + (f" and {len(outermost) - SHOWN} more" if len(outermost) > SHOWN else "")
    return f"inside torch.func (grad, jvp, vmap), and of gradients taken many at once, nothing is counted: {told}"


def _inside_another(name: str, names: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:depth]) in names for depth in range(1, len(parts)))
