"""An optimizer's settings, and the types of what it keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mpdiag.loop import OptimizerGroup

_DECOUPLED = ("AdamW", "Lion")  # by their names, with what follows: not all of them have torch's flag
_STOCHASTIC = ("bf16_stochastic_round", "stochastic_rounding")


def optimizer_groups(
    model: torch.nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]
) -> tuple[OptimizerGroup, ...]:
    """One record for each type of trainable parameter in each param group; after a step, when there is state."""
    names = {id(p): name for name, p in model.named_parameters()}
    return tuple(
        _group(name, optimizer, group, [p for p in _trained(group) if p.dtype == dtype], names)
        for name, optimizer in optimizers.items()
        for group in optimizer.param_groups
        for dtype in dict.fromkeys(p.dtype for p in _trained(group))
    )


def _trained(group: dict[str, Any]) -> list[torch.nn.Parameter]:
    """Without frozen ones, which many jobs hand over with the rest and no optimizer steps."""
    return [p for p in group["params"] if p.requires_grad]


def _group(
    name: str,
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    parameters: list[torch.nn.Parameter],
    names: dict[int, str],
) -> OptimizerGroup:
    betas = group.get("betas")
    stepped = next((p for p in parameters if optimizer.state.get(p)), None)
    state = _like(optimizer.state[stepped], stepped) if stepped is not None else None
    first = parameters[0]
    return OptimizerGroup(
        optimizer=name,
        kind=type(optimizer).__name__,
        dtype=short(first.dtype),
        elements=sum(p.numel() for p in parameters),
        example=names.get(id(first), "a tensor outside the model"),
        lr=_number(group.get("lr")),
        eps=_number(group.get("eps")),
        betas=tuple(float(b) for b in betas) if isinstance(betas, tuple | list) else None,
        betas_dtype=next((short(b.dtype) for b in betas or () if isinstance(b, torch.Tensor)), None),
        weight_decay=_number(group.get("weight_decay")),
        decoupled=bool(group.get("decoupled_weight_decay")) or type(optimizer).__name__.startswith(_DECOUPLED),
        fused=bool(group.get("fused")),
        state={key: short(t.dtype) for key, t in state.items()} if state is not None else None,
        whole_updates=_whole_updates(optimizer, group, state or {}, stepped),
    )


def _like(state: Mapping[str, Any], parameter: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The state's tensors of the parameter's shape: momenta and copies, not counters."""
    shape = parameter.shape if parameter is not None else None
    return {
        str(key): value
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == shape and key != "step"
    }


def _whole_updates(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    state: dict[str, torch.Tensor],
    parameter: torch.Tensor | None,
) -> bool:
    """Whether an update is kept that the weight's own type would round away."""
    if any(group.get(key) or getattr(optimizer, key, None) for key in _STOCHASTIC):
        return True
    if getattr(optimizer, "master_weights", None):  # apex's fused optimizers, Transformer Engine's
        return True
    return parameter is not None and any(
        value.dtype == torch.float32 and value.dtype != parameter.dtype and _rounds_to(value, parameter)
        for value in state.values()
    )


def _rounds_to(copy: torch.Tensor, parameter: torch.Tensor) -> bool:
    return bool(torch.equal(copy.detach().to(parameter.dtype), parameter.detach()))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | torch.Tensor) else None


def short(dtype: torch.dtype) -> str:
    """float16 for torch.float16."""
    return str(dtype).removeprefix("torch.")
