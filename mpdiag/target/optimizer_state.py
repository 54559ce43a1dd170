"""Whether an optimizer can step with a state that was saved: what torch's load_state_dict takes over unlooked at."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from mpdiag.errors import safe_text
from mpdiag.target.optimizer_kind import HOW, KEEPS

RATE = "lr"  # schedulers may take it where no constructor does, to a negative rounding error of zero
SHORT = 30  # characters of a value that should have been a number


def is_state_dict(saved: Any) -> bool:
    """Whether this has the form of an optimizer's state_dict."""
    if not isinstance(saved, Mapping) or not isinstance(saved.get("state", {}), Mapping):
        return False
    groups = saved.get("param_groups")
    return isinstance(groups, list | tuple) and all(isinstance(g, Mapping) and "params" in g for g in groups)


def why_unsound(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> str | None:
    """What in a saved state this optimizer cannot step with, in words; None where it can.

    Of torch's own optimizers the whole state is known; of others only the hyper-parameters, by those they are built
    with.
    """
    return next(_faults(optimizer, saved), None)


def _faults(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Iterator[str]:
    torchs = type(optimizer).__module__.startswith("torch.optim")
    for group in saved["param_groups"]:
        for name, own in optimizer.defaults.items():
            if name in group and name not in HOW and (wrong := _wrong_number(own, group[name])):
                yield f"{name} is {wrong} there"
        if torchs and (refused := _refused(optimizer, group)):
            yield refused
    keeps = KEEPS.get(type(optimizer).__name__, ()) if torchs else ()
    for index, state in saved.get("state", {}).items():
        for name, value in state.items() if isinstance(state, Mapping) else ():
            what = _wrong_state(value, kept=name in keeps, torchs=torchs)
            if what is not None:
                yield f"{name} of parameter {index} is {what} there"


def _wrong_number(own: Any, there: Any) -> str | None:
    """What a saved hyper-parameter is where the optimizer was built with a number, or numbers; None where it fits."""
    if isinstance(own, list | tuple) and own and all(map(_is_number, own)):
        if not isinstance(there, list | tuple) or len(there) != len(own):
            return _shown(there)
        return next((f"{_shown(t)} in a part" for o, t in zip(own, there, strict=True) if _wrong_number(o, t)), None)
    if not _is_number(own):
        return None
    if isinstance(there, torch.Tensor) and there.numel() == 1 and not there.is_meta and not there.is_complex():
        there = there.item()
    if not _is_number(there):
        return _shown(there)
    finite = math.isfinite(there) or (math.isinf(there) and not math.isfinite(own))
    return None if finite else f"{there}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refused(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> str | None:
    """What torch's own constructor says to saved hyper-parameters: it knows their ranges."""
    make: Any = type(optimizer)
    known = inspect.signature(make).parameters
    given = {n: group[n] for n in optimizer.defaults if n in group and n in known and n not in HOW and n != RATE}
    try:
        make([torch.nn.Parameter(torch.zeros(1, 1))], **given)
    except ValueError as error:
        return safe_text(error)
    return None


def _wrong_state(value: Any, kept: bool, torchs: bool) -> str | None:
    """What a value of a parameter's state is where no step can be made with it. kept: it has to be a tensor."""
    if isinstance(value, torch.Tensor):
        if value.is_meta:
            return "a tensor without numbers (of the meta device)"
        return f"a {_layout(value)} tensor" if kept and value.layout is not torch.strided else None
    if kept or (torchs and not isinstance(value, int | float | list | tuple | Mapping | None)):
        return _shown(value)
    return None


def _layout(tensor: torch.Tensor) -> str:
    return str(tensor.layout).removeprefix("torch.")


def _shown(value: Any) -> str:
    """A value as it is, where that is short."""
    text = repr(value) if value is None or isinstance(value, int | float | complex | str) else ""
    return text if 0 < len(text) <= SHORT else f"of type {type(value).__name__}"
