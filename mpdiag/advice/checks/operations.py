"""MP106 to MP110: values between the modules that FP16 cannot hold, as `mpdiag scan --depth ops` sees them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.formats import FP16, FP32
from mpdiag.operations import OpRole, OpTable

_NORM_IN_FP32 = """\
x32 = x.float()
x = (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)  # or F.rms_norm, F.layer_norm
"""
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "einsum", "addbmm", "mv", "addmv")
SQUARES_LOST = 0.05  # of what squares add up to: the 5 % of the paper's figure 2b, the least it calls relevant


def forward(capture: Capture, *roles: OpRole) -> Iterator[OpTable]:
    """What the second pass saw in the forward pass in FP16 under autocast, in some roles."""
    for table in capture.operations or ():
        if table.direction == "forward" and table.role in roles and table.in_half:
            yield table


def largest(table: OpTable) -> float:
    """The largest magnitude in FP32; infinite where the job itself computes in FP16 and overflows."""
    if table.histogram.infs and table.dtype == "float16":
        return math.inf
    return 0.0 if table.masked else table.abs_max or 0.0  # a mask's constant is no measure of what it masks


def share_lost(table: OpTable) -> float:
    """The share of what a value's elements add up to that becomes zero in FP16."""
    whole = table.histogram.abs_sum
    kept = table.histogram.from_exponent(FP16.min_subnormal_exponent - 1).abs_sum
    return (whole - kept) / whole if whole else 0.0


class _Overflow(Check):
    """What all overflows have in common: the limits, the words and the evidence."""

    def judged(self, table: OpTable, what: str, remedy: str, snippet: str) -> Iterator[Finding]:
        """A finding where a table comes within an octave of FP16's largest number: an error beyond it."""
        reached = largest(table)
        if reached < FP16.max / 2:
            return
        if 2.0**FP32.max_exponent <= reached < math.inf and table.amp_result == "finite":
            return  # a finfo(x.dtype).min, which is FP16's own in FP16
        over = reached >= FP16.overflows_at
        octaves = math.log2(FP16.max / reached) if math.isfinite(reached) else -math.inf
        where = f"{-octaves:.1f} octaves above" if over else f"{octaves:.1f} octaves below"
        yield self.finding(
            "error" if over else "warning",
            table.module,
            f"{what} in {table.place} reaches {number(reached)} in FP16, {where} its largest number 65504",
            remedy,
            {
                "operation": table.op,
                "abs_max": reached,
                "limit": FP16.overflows_at,
                "seen_in_fp16": table.amp_result,
            },
            snippet,
            table.source,
            Certainty.SEEN if table.amp_result in ("inf", "nan") else None,
        )


class AttentionLogitsOverflow(_Overflow):
    """The product of queries and keys overflows FP16 before its softmax.

    Why it is bad: a hand-written `q @ k.transpose(-2, -1)` runs in FP16 under autocast and is stored before it is
    scaled, so it overflows long before the scaled logits would. Its softmax is NaN.

    Threshold: error from 65520 (the point that rounds to infinity), warning from 32752, one octave below. Seen in
    FP32; `seen_in_fp16` says what an FP16 iteration gave.

    Remedy: multiply the queries by the scale before the product, or use F.scaled_dot_product_attention, whose kernels
    keep the logits in FP32.

    Source: huggingface/transformers#24638, ultralytics#24990, pytorch#40497.
    """

    code: ClassVar[str] = "MP106"
    name: ClassVar[str] = "attention-logits-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per product."""
        for table in forward(capture, OpRole.LOGITS):
            if "softmax" not in table.op:
                yield from self.judged(
                    table,
                    "the product of queries and keys",
                    "scale the queries before the product, or use F.scaled_dot_product_attention",
                    "scores = (q * scale) @ k.transpose(-2, -1)  # or F.scaled_dot_product_attention(q, k, v)\n",
                )


class SquareOverflow(_Overflow):
    """A square in a hand-written norm overflows FP16.

    Why it is bad: FP16 can square nothing beyond 255.9. The mean of such squares is infinite, and the norm gives zeros
    or NaN. torch's own norms, and `x.pow(2)` under autocast, run in FP32; `x * x` runs in the type of x.

    Threshold: error where a square reaches 65520, warning from 32752.

    Remedy: upcast before squaring, or use F.rms_norm or F.layer_norm.

    Source: pytorch#133085, pytorch#66707; the upcast is LlamaRMSNorm's (huggingface/transformers).
    """

    code: ClassVar[str] = "MP107"
    name: ClassVar[str] = "square-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per square."""
        for table in forward(capture, OpRole.SQUARE):
            yield from self.judged(table, "a square", "square in FP32, or use torch's own norm", _NORM_IN_FP32)


class SquareUnderflow(Check):
    """The squares in a hand-written norm vanish in FP16.

    Why it is bad: a square of anything up to 1.73e-4 is zero in FP16. The norm then divides by its eps alone, or by
    zero.

    Threshold: warning when more than 5 % of what the squares add up to becomes zero. Single small squares do not
    count: they add nothing.

    Remedy: upcast before squaring, or use F.rms_norm or F.layer_norm.

    Source: FP16 limits (2^-25 rounds to zero, so 2^-12.5 squared does); the 5 % as for gradients (arXiv 1710.03740,
    figure 2b).
    """

    code: ClassVar[str] = "MP108"
    name: ClassVar[str] = "square-underflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per square."""
        for table in forward(capture, OpRole.SQUARE):
            lost = share_lost(table)
            if lost > SQUARES_LOST:
                yield self.finding(
                    "warning",
                    table.module,
                    f"{lost * 100:.0f} % of what the squares in {table.place} add up to becomes zero in FP16",
                    "square in FP32, or use torch's own norm",
                    {"share": lost, "limit": SQUARES_LOST, "abs_max": table.abs_max, "seen_in_fp16": table.amp_result},
                    _NORM_IN_FP32,
                    table.source,
                )


class SumOverflow(_Overflow):
    """A sum in FP16 overflows, though its terms are small.

    Why it is bad: 70,000 ones add up to infinity in FP16, while their mean is 1. Autocast runs sums in FP32; those
    with a dtype of their own, in an FP32 island on FP16 tensors, or by index (index_add) stay in FP16.

    Threshold: error where a sum reaches 65520, warning from 32752.

    Remedy: `x.sum(dtype=torch.float32)`, or a mean.

    Source: FP16 limits; measured with torch.
    """

    code: ClassVar[str] = "MP109"
    name: ClassVar[str] = "sum-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per sum."""
        for table in forward(capture, OpRole.SUM):
            yield from self.judged(table, "a sum", "add up in FP32, or take the mean", "x.sum(dtype=torch.float32)\n")


class OperationOverflow(_Overflow):
    """An operation between the modules gives numbers that FP16 cannot hold.

    Why it is bad: from 65520 on FP16 rounds to infinity, and the next layer makes NaN of it. Module hooks do not see
    such a value; a loss scale does not help, as it acts on gradients.

    Threshold: error from 65520, warning from 32752. The first operation of each module is named: what follows inherits
    it. Outputs of modules are MP101's; logits, squares and sums have codes of their own.

    Remedy: compute the operation in FP32, or on smaller numbers, or train in BF16.

    Source: FP16 limits, IEEE 754.
    """

    code: ClassVar[str] = "MP110"
    name: ClassVar[str] = "operation-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one per module."""
        special = forward(capture, OpRole.LOGITS, OpRole.SQUARE, OpRole.SUM)
        told = {table.module for table in special if "softmax" not in table.op and largest(table) >= FP16.max / 2}
        for table in forward(capture, OpRole.OUTPUT):
            if table.module in told or table.module_output:
                continue
            for finding in self.judged(
                table,
                f"the result of {table.op}",
                "compute it in FP32, or on smaller numbers, or train in BF16",
                'with torch.autocast("cuda", enabled=False):\n    y = operation(x.float())\n',
            ):
                told.add(table.module)
                yield finding


class ReducedAccumulation(Check):
    """A product is infinite in FP16 on this GPU, though its FP32 result fits.

    Why it is bad: cuBLAS may add up partial sums of a product in FP16, and one of those overflowed.

    Threshold: warning: seen on a GPU, the first operation of the forward pass that is not finite in FP16 is a product,
    and its largest FP32 value is more than an octave below 65504.

    Remedy: have torch add up in FP32.

    Source: torch's numerical accuracy notes, "Reduced Precision Reduction for FP16 and BF16 GEMMs".
    """

    code: ClassVar[str] = "MP111"
    name: ClassVar[str] = "reduced-accumulation"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        first = next((t for t in forward(capture, OpRole.OUTPUT) if t.amp_result in ("inf", "nan")), None)
        if capture.device != "cuda" or first is None or first.op not in _PRODUCTS:
            return
        if first.amp_result == "inf" and not first.histogram.infs and largest(first) < FP16.max / 2:
            yield self.finding(
                "warning",
                first.module,
                f"{first.op} in {first.place} is infinite in FP16, though FP32 reaches {number(largest(first))} only",
                "add up in FP32",
                {"operation": first.op, "abs_max": first.abs_max, "limit": FP16.max / 2, "seen_in_fp16": "inf"},
                "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False\n",
                first.source,
            )
