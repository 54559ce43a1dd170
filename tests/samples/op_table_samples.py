"""Tables of operators written by hand."""

from __future__ import annotations

import math
from typing import Any

from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable

OUTPUT, CONSTANT = OpRole.OUTPUT, OpRole.CONSTANT


def operation(op: str, role: OpRole = OUTPUT, abs_max: float | None = 1.0, **more: Any) -> OpTable:
    exponent = math.frexp(abs_max)[1] - 1 if abs_max else 0
    fields: dict[str, Any] = {
        "module": "block", "direction": "forward", "dtype": "float32", "elements": 1, "calls": 1,
        "histogram": ExponentHistogram.from_bins({exponent: 1}), "amp_dtype": "float16", "amp_result": "finite",
        "source": "model.py:7", "abs_min": abs_max,
    }  # fmt: skip
    return OpTable(op, role=role, abs_max=abs_max, **(fields | more))


def constant(op: str, value: float, in_fp16: float, **more: Any) -> OpTable:
    return operation(op, CONSTANT, abs(value), value=value, in_fp16=in_fp16, argument="value", amp_result=None, **more)
