"""MP501 to MP505 and MP509: a loop that keeps in 16 bits what has to be FP32. Silent on FP32 jobs under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.formats import BF16, FP16, FloatFormat
from mpdiag.loop import HALF, LoopEvent, OptimizerGroup

_FORMATS = {"float16": FP16, "bfloat16": BF16}
KEEP_FP32 = """\
model = model.float()  # autocast makes the 16-bit copies
with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
"""


def half_groups(capture: Capture) -> Iterator[tuple[OptimizerGroup, FloatFormat]]:
    """The param groups that step 16-bit weights, with their format."""
    for group in capture.loop.groups if capture.loop else ():
        if group.dtype in HALF:
            yield group, _FORMATS[group.dtype]


def half_ulp(fmt: FloatFormat) -> float:
    """Below this factor's distance from 1 a product rounds back to what it was: 2^-12 in FP16, 2^-9 in BF16."""
    return 2.0 ** -(fmt.mantissa_bits + 2)


class NoMasterWeights(Check):
    """The optimizer steps 16-bit weights and keeps no FP32 copy of them.

    Why it is bad: an update below half a unit in the weight's last place is lost; in the paper that cost 80 % of the
    accuracy. MP205 says how many of this job's updates are.

    Threshold: a trainable parameter in FP16 (error) or BF16 (warning), and neither an FP32 tensor in the optimizer's
    state that rounds to the weight, nor stochastic rounding.

    Remedy: keep the parameters FP32 and use autocast.

    Source: Micikevicius et al., arXiv 1710.03740, section 3.1 and figure 2a.
    """

    code: ClassVar[str] = "MP501"
    name: ClassVar[str] = "no-master-weights"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per param group and type."""
        for group, fmt in half_groups(capture):
            if not group.whole_updates:
                yield self.finding(
                    "error" if fmt is FP16 else "warning",
                    group.example,
                    f"{group.kind} steps {group.elements:,} weights in {fmt.name} ({group.example} and so on) "
                    "and keeps no FP32 copy",
                    "keep the parameters FP32 and use autocast, instead of model.half() or model.bfloat16()",
                    {"dtype": group.dtype, "elements": group.elements, "optimizer": group.kind},
                    KEEP_FP32,
                )


class HalfAndAutocast(Check):
    """FP16 weights meet a GradScaler or an autocast region.

    Why it is bad: GradScaler refuses FP16 gradients: "Attempting to unscale FP16 gradients." Autocast is made for FP32
    weights, which it copies.

    Threshold: a trainable FP16 parameter, and a region or a scaler of the job's own, or a loss scale that is advised.

    Remedy: drop `model.half()`; autocast is enough.

    Source: torch.amp.GradScaler; measured with torch.
    """

    code: ClassVar[str] = "MP502"
    name: ClassVar[str] = "half-and-autocast"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        loop = capture.loop
        if loop is None or not loop.trainable.get("float16"):
            return
        own = (*loop.of(LoopEvent.SCALER), *loop.of(LoopEvent.AUTOCAST))
        scaled = loss_scale.log2_scale is not None and loss_scale.mode != "none"
        if own or scaled:
            met = "a GradScaler" if loop.of(LoopEvent.SCALER) else "an autocast region"
            yield self.finding(
                "error",
                "the model",
                f"{loop.trainable['float16']:,} trainable weights are FP16, "
                + (f"and the job uses {met}" if own else "and FP16 gradients need a loss scale")
                + ": GradScaler raises on FP16 gradients",
                "keep the parameters FP32: no model.half() beside autocast and GradScaler",
                {"elements": loop.trainable["float16"], "own_autocast": len(own)},
                KEEP_FP32,
                own[0].source if own else None,
            )


class BatchNormInHalf(Check):
    """A batch norm keeps its statistics or weights in 16 bits.

    Why it is bad: the running variance overflows for a standard deviation beyond 256 (FP16), and a tenth of a small
    difference, which each step adds, rounds away, so the statistics stop following.

    Threshold: any buffer or parameter of a BatchNorm in FP16 or BF16.

    Remedy: `model.float()`, or the norm alone in FP32; torch's batch norm takes 16-bit inputs beside FP32 statistics.

    Source: Micikevicius et al., arXiv 1710.03740, section 3.3; measured with torch.
    """

    code: ClassVar[str] = "MP503"
    name: ClassVar[str] = "batch-norm-in-half"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the first norm; the others are counted."""
        norms = capture.loop.half_norms if capture.loop else ()
        if norms:
            others = f", and so do {len(norms) - 1} more" if len(norms) > 1 else ""
            yield self.finding(
                "warning",
                norms[0],
                f"{norms[0]} keeps its weights or running statistics in 16 bits{others}",
                "keep batch norms in FP32",
                {"modules": len(norms)},
                "for m in model.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        m.float()\n",
            )


class DecayLost(Check):
    """The weight decay of 16-bit weights rounds to nothing.

    Why it is bad: AdamW multiplies a weight by 1 - lr * weight_decay. Where that rounds back to the weight, nothing
    decays, and nothing is printed.

    Threshold: lr * weight_decay of 2^-12 = 2.4e-4 or less for FP16 weights, 2^-9 = 2.0e-3 for BF16, with a decay that
    multiplies the weights. Not for fused kernels, which round once.

    Remedy: FP32 weights.

    Source: OneTrainer#996; measured with torch.
    """

    code: ClassVar[str] = "MP504"
    name: ClassVar[str] = "decay-lost"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per param group."""
        for group, fmt in half_groups(capture):
            decay = (group.lr or 0.0) * (group.weight_decay or 0.0)
            if group.decoupled and not group.fused and not group.whole_updates and 0 < decay <= half_ulp(fmt):
                yield self.finding(
                    "warning",
                    group.example,
                    f"lr * weight_decay is {number(decay)}: 1 minus that is 1 in {fmt.name}, so {group.example} "
                    "and the rest of its group do not decay",
                    "keep the weights FP32",
                    {"decay": decay, "limit": half_ulp(fmt)},
                    KEEP_FP32,
                )


class AverageInHalf(Check):
    """A moving average of weights is kept in 16 bits and never moves.

    Why it is bad: with a decay of 0.9999 a step adds a ten-thousandth of the difference, which an FP16 average rounds
    away; BF16 does so from 0.999 on. What is evaluated or saved is then the start.

    Threshold: 1 - decay below 2^-11 in FP16 or 2^-8 in BF16.

    Remedy: keep the average in FP32.

    Source: half a unit in the last place, relative; measured with torch.
    """

    code: ClassVar[str] = "MP505"
    name: ClassVar[str] = "average-in-half"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place that updates an average."""
        for event in capture.loop.of(LoopEvent.AVERAGE) if capture.loop else ():
            fmt = _FORMATS[event.dtype or "float16"]
            if event.value is not None and event.value < 2 * half_ulp(fmt):
                yield self.finding(
                    "warning",
                    event.name,
                    f"{event.name} is a moving average in {fmt.name} with a decay of {1 - event.value:g}: its steps "
                    "round to nothing",
                    "keep the average in FP32",
                    {"one_minus_decay": event.value, "limit": 2 * half_ulp(fmt)},
                    "average = copy.deepcopy(model).float()\n",
                    event.source,
                )


class CounterInHalf(Check):
    """Something is added up in a 16-bit buffer, step by step.

    Why it is bad: a counter in FP16 stands still at 2048, in BF16 at 256, as the next whole number is no longer held;
    a running mean stops long before.

    Threshold: a buffer of the model in FP16 or BF16 that the job adds to in place. Batch norms are MP503.

    Remedy: keep counters and running figures in FP32 or int64.

    Source: the formats' significant bits; measured with torch.
    """

    code: ClassVar[str] = "MP509"
    name: ClassVar[str] = "counter-in-half"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per buffer and place."""
        for event in capture.loop.of(LoopEvent.COUNTER) if capture.loop else ():
            fmt = _FORMATS[event.dtype or "float16"]
            stalls = 2 ** (fmt.mantissa_bits + 1)
            yield self.finding(
                "warning",
                event.name,
                f"{event.name} adds up in {fmt.name}, where a count of ones stands still at {stalls}",
                "keep it in FP32 or int64",
                {"limit": stalls, "dtype": event.dtype},
                "self.register_buffer('total', torch.zeros(()))  # FP32; model.half() would change it\n",
                event.source,
            )
