"""Whether a saved optimizer's state is of the kind of another optimizer, and what it changes in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

ADDED_LATER = frozenset(
    "amsgrad nesterov maximize foreach capturable differentiable fused centered decoupled_weight_decay".split()
)
"""What torch added to its optimizers one by one: older checkpoints lack it, and load_state_dict fills it in."""

HOW = frozenset(("foreach", "fused", "capturable", "differentiable", "params", "param_names", "initial_lr"))
"""Of a param group: how it is computed, or for whom, not what."""

NADAM = "momentum_decay"  # the one hyper-parameter by which NAdam's groups differ from Adam's, which lack nothing

KEEPS = {
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "RMSprop": ("square_avg",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
}
"""What torch's own optimizers keep of every parameter once they have stepped. SGD may keep nothing."""


def why_another_kind(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> str | None:
    """What a saved state lacks that this optimizer cannot step without, in words; None where it fits.

    The hyper-parameters are the constructor's own (`defaults`), so this works for optimizers that are not torch's.
    """
    kind = type(optimizer).__name__
    for group in saved["param_groups"]:
        lacking = [name for name in optimizer.defaults if name not in group and name not in ADDED_LATER]
        if lacking:
            return f"its param groups have no {', '.join(lacking)}, which {kind} is built with"
        if NADAM in group and NADAM not in optimizer.defaults:
            return f"its param groups have {NADAM}, which {kind} has not"
    keeps = KEEPS.get(kind, ()) if type(optimizer).__module__.startswith("torch.optim") else ()
    states = saved.get("state") or {}
    for state in states.values():
        if isinstance(state, Mapping) and state and any(name not in state for name in keeps):
            return f"its state has {', '.join(map(str, state))}, {kind} keeps {', '.join(keeps)}"
    return None


def changed_by(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> dict[str, str]:
    """The hyper-parameters that a saved state changes: name -> "lr 0.1 (0.5 in the file)", the first group's."""
    found: dict[str, str] = {}
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        for name, value in own.items():
            there = group.get(name, value)
            if name not in HOW and name not in found and _plain(there) != _plain(value):
                found[name] = f"{name} {_plain(there)} ({_plain(value)} in the file)"
    return found


def _plain(value: Any) -> str:
    """A hyper-parameter for people; a tensor of one number is that number."""
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
