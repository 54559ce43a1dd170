"""The numbers written into operator calls: eps, masks, factors, and the type each acts in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch

from mpdiag.capture.op_names import CONSTANT_ARGUMENTS
from mpdiag.capture.op_watch import OpCall


def constants_in(
    call: OpCall, known: Callable[[torch.Tensor], float | None]
) -> Iterator[tuple[str, float, torch.dtype]]:
    """(argument, number, type it acts in) of a call's numbers; `known` tells the number of a scalar tensor."""
    named = (argument.name for argument in call.func._schema.arguments)
    for argument, given in (*zip(named, call.args, strict=False), *call.kwargs.items()):
        if isinstance(given, torch.Tensor):
            number = known(given) if given.dim() == 0 else None
        else:
            number = _number(given) if argument in CONSTANT_ARGUMENTS else None
        if number is None:
            continue
        # the eps of torch's norms is added in FP32, whatever the type of their input
        dtype = torch.float32 if argument.startswith("eps") else _operand_type(call, given)
        if dtype.is_floating_point:
            yield argument, number, dtype


def _number(given: Any) -> float | None:
    return float(given) if isinstance(given, int | float) and not isinstance(given, bool) else None


def _operand_type(call: OpCall, given: Any) -> torch.dtype:
    """The type a number meets in a call: the one asked for, else that of the tensors, those with dimensions first."""
    asked = call.kwargs.get("dtype")
    if isinstance(asked, torch.dtype):
        return asked
    tensors = [a for a in call.args if isinstance(a, torch.Tensor) and a.is_floating_point()]
    types = [t.dtype for t in tensors if t.dim()] or [t.dtype for t in tensors]
    if not types:
        return torch.int64 if isinstance(given, int) else torch.get_default_dtype()
    return reduce(torch.promote_types, types)
