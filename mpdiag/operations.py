"""What the second pass saw between the modules: every operator of one FP32 training step, by place and by role.

Saved with the capture (`capture.operations` in the JSON). Numbers alone: nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mpdiag.histogram import ExponentHistogram

NOT_OBSERVED = "operations between the modules were not observed (--depth ops does)"
OUTSIDE = "code outside the model"
"""Stands for the module where an operator runs in the loss function rather than in a module."""


class OpRole(StrEnum):
    """What a value is to its operator.

    output: what it gives. logits: what goes into a softmax, and the product of queries and keys that it stems from.
    square: elements squared; sum: what they add up to (for a mean, before the division), each also inside torch's
    norms. constant: a number in the call (eps, mask, factor). probability: a softmax's result as a logarithm takes it.
    integers: whole numbers that became floating-point ones.
    """

    OUTPUT = "output"
    LOGITS = "logits"
    SQUARE = "square"
    SUM = "sum"
    CONSTANT = "constant"
    PROBABILITY = "probability"
    INTEGERS = "integers"


@dataclass(frozen=True)
class OpTable:
    """The exponents of one value of one operator over all its calls in one FP32 training step.

    op: aten name ("softmax"). module: the innermost module that was running, or OUTSIDE. direction: forward or
    backward. source: the user's file:line, for a backward operator that of its forward call. amp_dtype: the type that
    the value takes under CUDA FP16 autocast (None: not known). elements: over all calls; abs_max, abs_min: largest and
    smallest non-zero finite magnitude. module_output: a module returns this very value, so it has a tensor table.
    masked: a large negative constant was filled in or added, so abs_max is not what the code computes.

    amp_result: what an FP16 iteration gave, at worst: finite, inf or nan (None: not seen). amp_error: why the call
    failed in it. sampled: not everything was read, but rows_read of `rows` rows of logits.

    Constants: argument is its name in the call, value the number, amp_value the number under FP16 autocast where it
    differs from run to run (a finfo.min), in_fp16 what FP16 makes of that.
    """

    op: str
    module: str
    direction: str
    role: OpRole
    dtype: str
    elements: int
    calls: int
    histogram: ExponentHistogram
    abs_max: float | None = None
    abs_min: float | None = None
    amp_dtype: str | None = None
    amp_result: str | None = None
    amp_error: str | None = None
    module_output: bool = False
    masked: bool = False
    source: str | None = None
    sampled: bool = False
    rows_read: int | None = None
    rows: int | None = None
    argument: str | None = None
    value: float | None = None
    amp_value: float | None = None
    in_fp16: float | None = None

    @property
    def in_half(self) -> bool:
        """Whether the value is FP16 under autocast, for certain."""
        return self.amp_dtype == "float16"

    @property
    def place(self) -> str:
        """Where it happens, for people: "blocks.0 (model.py:31)"."""
        return f"{self.module} ({self.source})" if self.source else self.module
