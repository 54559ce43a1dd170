"""MP305 to MP308: numbers that the code writes down, or takes over whole, and FP16 does not hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.advice.checks.operations import forward
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.formats import FP16
from mpdiag.operations import OpRole, OpTable

_FILLS = ("masked_fill", "where", "full", "full_like", "new_full", "fill", "index_put", "constant_pad_nd")
_GUARDS = ("add", "sub", "clamp", "clamp_min", "maximum")


class MaskConstant(Check):
    """A mask's constant, such as -1e9, is beyond FP16.

    Why it is bad: `masked_fill` and `full` raise on it in FP16. Elsewhere it becomes minus infinity: a row that is
    masked whole is then NaN, where FP32 gives a uniform softmax.

    Threshold: a constant of 65520 or more, negative or filled in, that meets FP16 under autocast. Error where the FP16
    iteration raised, warning otherwise.

    Remedy: a boolean mask, or `torch.finfo(scores.dtype).min`, and never add it to something.

    Source: huggingface/transformers#17437, keras#17571; measured with torch.
    """

    code: ClassVar[str] = "MP305"
    name: ClassVar[str] = "mask-constant"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per constant."""
        for table in forward(capture, OpRole.CONSTANT):
            value = table.value or 0.0
            if table.in_fp16 is None or math.isfinite(table.in_fp16) or (value > 0 and table.op not in _FILLS):
                continue
            does = f"raises in FP16: {table.amp_error}"
            if table.amp_error is None:
                does = f"becomes {'-' if value < 0 else ''}infinity in FP16, and a row that is masked whole NaN"
            yield self.finding(
                "error" if table.amp_error else "warning",
                table.module,
                f"the constant {number(value)} of {table.op} in {table.place} {does}",
                "use a boolean mask, or torch.finfo(scores.dtype).min, and fill it in instead of adding it",
                {"value": value, "limit": -FP16.max if value < 0 else FP16.max, "error": table.amp_error},
                "scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)\n",
                table.source,
                Certainty.SEEN if table.amp_error else None,
            )


class EpsUnderflow(Check):
    """An eps that guards a division, a root or a logarithm is zero in FP16.

    Why it is bad: 1e-8 is zero in FP16, so nothing is guarded: a zero stays zero, and its reciprocal is infinite.

    Threshold: 2^-25 = 2.98e-8 and below round to zero: an error where a guarded value is that small in this very
    iteration, else a warning. Below 2^-14 = 6.1e-5 an eps keeps fewer bits: information.

    Remedy: an eps of 1e-5 or more, or the guarded expression in FP32.

    Source: FP16 limits; huggingface/diffusers#13316.
    """

    code: ClassVar[str] = "MP306"
    name: ClassVar[str] = "eps-underflow"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per eps."""
        for table in forward(capture, OpRole.CONSTANT):
            kept = table.in_fp16
            if table.op not in _GUARDS or kept is None or not table.value or abs(kept) >= FP16.min_normal:
                continue
            smallest = _guarded(capture, table)
            needed = smallest is not None and smallest <= FP16.rounds_to_zero
            becomes = "zero" if kept == 0 else f"{kept:.3g}, subnormal,"
            yield self.finding(
                "info" if kept else "error" if needed else "warning",
                table.module,
                f"the eps {number(table.value)} of {table.op} in {table.place} becomes {becomes} in FP16",
                "use an eps of 1e-5 or more, or compute what it guards in FP32",
                {"value": table.value, "in_fp16": kept, "limit": FP16.rounds_to_zero, "smallest_guarded": smallest},
                "y = x / (norm.float() + eps)\n",
                table.source,
            )


def _guarded(capture: Capture, constant: OpTable) -> float | None:
    """The smallest magnitude that the call of a constant gives in FP32."""
    place = (constant.op, constant.module, constant.source, constant.direction)
    for table in capture.operations or ():
        if table.role is OpRole.OUTPUT and (table.op, table.module, table.source, table.direction) == place:
            return table.abs_min
    return None


class LogOfSoftmax(Check):
    """A logarithm is taken of a softmax's result.

    Why it is bad: a probability of 2^-25 or less is zero in FP16, at a gap of 17.3 between two logits, and its
    logarithm minus infinity; adding 1e-8 adds nothing there. In FP32, where autocast runs both, it costs precision.

    Threshold: error where the probabilities are FP16 and one is that small in this iteration; warning where they are
    FP16; information in FP32.

    Remedy: F.log_softmax on the logits, or F.cross_entropy.

    Source: NVIDIA/apex#379; measured with torch.
    """

    code: ClassVar[str] = "MP307"
    name: ClassVar[str] = "log-of-softmax"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per logarithm."""
        for table in capture.operations or ():
            if table.role is not OpRole.PROBABILITY or table.amp_dtype is None or table.direction != "forward":
                continue
            smallest = 0.0 if table.histogram.zeros else table.abs_min
            gone = smallest is not None and smallest <= FP16.rounds_to_zero
            yield self.finding(
                ("error" if gone else "warning") if table.in_half else "info",
                table.module,
                f"{table.place} takes the logarithm of a softmax in {'FP16' if table.in_half else 'FP32'}, "
                f"of probabilities down to {number(smallest or 0.0)}",
                "use F.log_softmax, or F.cross_entropy on the logits",
                {"abs_min": smallest, "limit": FP16.rounds_to_zero, "amp_dtype": table.amp_dtype},
                "log_probabilities = F.log_softmax(logits, dim=-1)\n",
                table.source,
            )


class IntegersInHalf(Check):
    """Whole numbers beyond 2048 are held in FP16.

    Why it is bad: FP16 has 11 significant bits, so from 2048 on it holds every second whole number, from 4096 on every
    fourth. Positions, time stamps and ids run into one another.

    Threshold: integers, or an arange, above 2048 that are FP16 under autocast or are cast to it.

    Remedy: keep them in int64 or FP32 until they are normalised; a product with them is FP16 under autocast too.

    Source: FP16 has 10 stored mantissa bits (IEEE 754); rotary positions are the usual case.
    """

    code: ClassVar[str] = "MP308"
    name: ClassVar[str] = "integers-in-fp16"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per tensor of integers."""
        limit = 2.0 ** (FP16.mantissa_bits + 1)
        for table in forward(capture, OpRole.INTEGERS):
            if table.abs_max is not None and table.abs_max > limit:
                yield self.finding(
                    "warning",
                    table.module,
                    f"whole numbers up to {number(table.abs_max)} in {table.place} are held in FP16, "
                    f"which has all of them up to {number(limit)} only",
                    "keep them in FP32, outside autocast, until they are normalised",
                    {"abs_max": table.abs_max, "limit": limit},
                    'with torch.autocast("cuda", enabled=False):\n    angles = positions.float()[:, None] * rates\n',
                    table.source,
                )
