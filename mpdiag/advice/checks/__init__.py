"""Every finding that can be made from a capture, one small class each, in code order.

MP1xx forward range, MP2xx gradients and scale, MP3xx operators. The docstring of a class is its page in
`mpdiag explain CODE`.
"""

from mpdiag.advice.checks.check import Check
from mpdiag.advice.checks.constants import EpsUnderflow, IntegersInHalf, LogOfSoftmax, MaskConstant
from mpdiag.advice.checks.forward_range import (
    ActivationOverflow,
    ActivationUnderflow,
    InputRange,
    NonfiniteInHalf,
    WeightOverflow,
)
from mpdiag.advice.checks.gradients import (
    DefaultScaleOverflows,
    GradientOverflow,
    GradientUnderflow,
    RangeConflict,
    UpdateStagnation,
)
from mpdiag.advice.checks.operations import (
    AttentionLogitsOverflow,
    OperationOverflow,
    SquareOverflow,
    SquareUnderflow,
    SumOverflow,
)
from mpdiag.advice.checks.operators import AutocastFails, BceUnsafe, LossInHalf, MustStayFp32

ALL: tuple[Check, ...] = (
    ActivationOverflow(),
    NonfiniteInHalf(),
    InputRange(),
    WeightOverflow(),
    ActivationUnderflow(),
    AttentionLogitsOverflow(),
    SquareOverflow(),
    SquareUnderflow(),
    SumOverflow(),
    OperationOverflow(),
    GradientUnderflow(),
    DefaultScaleOverflows(),
    GradientOverflow(),
    RangeConflict(),
    UpdateStagnation(),
    MustStayFp32(),
    LossInHalf(),
    BceUnsafe(),
    AutocastFails(),
    MaskConstant(),
    EpsUnderflow(),
    LogOfSoftmax(),
    IntegersInHalf(),
)

BY_CODE = {check.code: check for check in ALL}
