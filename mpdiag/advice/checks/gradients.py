"""MP201, MP202, MP204 and MP206: gradients and the loss scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

from mpdiag.advice.checks.check import Check
from mpdiag.advice.loss_scale import DEFAULT_INIT_LOG2
from mpdiag.advice.scale_window import NEGLIGIBLE_ENERGY, fp16_gradients
from mpdiag.diagnosis import BF16_SNIPPET, Capture, Finding, LossScaleAdvice, TensorTable
from mpdiag.finding import Certainty
from mpdiag.formats import FP16

_POOLED = 0.01  # of all FP16 gradient elements: the rule catalogue's R01
_WORST = 0.05  # of one tensor's: the paper's figure 2b, the least it calls relevant
CURED = "cured_by_the_scale"  # in MP201's evidence; what the runs show may contradict it
_SUBNORMAL_OCTAVES = FP16.min_exponent - FP16.min_subnormal_exponent + 1  # 11: from 2^-14 to what rounds to zero


class GradientUnderflow(Check):
    """Without a loss scale, gradients round to zero in FP16.

    Why it is bad: a parameter whose gradient is zero does not learn, and nothing is printed. In the paper's SSD, 31 %
    of the values lost this way made training diverge.

    Threshold: more than 1 % of all FP16 gradient elements, or 5 % of one tensor's, become zero at scale 1. Exact zeros
    and noise-level gradients (mathematically zero: a bias before a norm) do not count. Information where the
    recommended scale, which the code to paste has, leaves less than that: FP16 is trained with a scale as a rule, and
    nothing else has to change. Warning where no scale does, or where the runs find a gradient dead (MP604) or the scale
    collapsed (MP602) all the same.

    Remedy: the recommended loss scale; `GradScaler` multiplies the loss and divides the gradients.

    Source: Micikevicius et al., arXiv 1710.03740, figures 2b and 3.
    """

    code: ClassVar[str] = "MP201"
    name: ClassVar[str] = "gradient-underflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the tensor that loses most."""
        tables = fp16_gradients(capture)
        share = loss_scale.underflow_before
        if not tables or share is None:
            return
        worst = max(tables, key=lambda t: t.signal.usage(FP16).underflow)
        worst_share = worst.signal.usage(FP16).underflow
        if share <= _POOLED and worst_share <= _WORST:
            return
        cure = loss_scale.log2_scale
        after = "" if cure is None else f"; at 2^{cure} it is {_percent(loss_scale.underflow_after)}"
        cured = cure is not None and _cured(tables, loss_scale, cure)
        yield self.finding(
            "info" if cured else "warning",
            worst.name,
            f"at scale 1, {_at_least(share)} of all FP16 gradient elements become zero "
            f"({_percent(worst_share)} of {worst.name}'s {worst.kind.replace('_', ' ')}){after}",
            "no global scale cures this: see MP204" if cure is None else f"scale the loss by 2^{cure}",
            {
                "underflow": share,
                "worst_underflow": worst_share,
                "energy_lost": loss_scale.energy_lost_before,
                "worst_energy_lost": None if loss_scale.most_lost_before is None else loss_scale.most_lost_before.share,
                "underflow_at_recommended": loss_scale.underflow_after,
                "limit": _POOLED,
                "worst_limit": _WORST,
                CURED: cured,
            },
            loss_scale.snippet or BF16_SNIPPET,
            worst.source,
        )


def _cured(tables: Sequence[TensorTable], loss_scale: LossScaleAdvice, k: int) -> bool:
    """Whether at 2^k no gradient loses what would be found at scale 1, or only less than FP16's own rounding."""
    few = (loss_scale.underflow_after or 0.0) <= _POOLED
    few = few and all(table.signal.usage(FP16, k).underflow <= _WORST for table in tables)
    most = loss_scale.most_lost_after
    return few or (most is not None and most.share <= NEGLIGIBLE_ENERGY)


class DefaultScaleOverflows(Check):
    """GradScaler's default start, 2^16, overflows on this job.

    Why it is bad: the first steps are skipped while the scale comes down, and a schedule or a warm-up that counts
    steps runs ahead of the weights.

    Threshold: the largest FP16 gradient seen times 2^16 reaches 65520. Each halving takes one skipped step.

    Remedy: `init_scale` from the window.

    Source: torch.amp.GradScaler's defaults; pytorch#44511 (schedulers and skipped steps).
    """

    code: ClassVar[str] = "MP202"
    name: ClassVar[str] = "default-scale-overflows"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        scale = loss_scale.log2_scale
        largest = max((t.abs_max or 0.0 for t in fp16_gradients(capture)), default=0.0)
        if scale is None or loss_scale.mode == "none" or largest * 2.0**DEFAULT_INIT_LOG2 < FP16.overflows_at:
            return
        skips = math.floor(math.log2(largest / FP16.overflows_at) + DEFAULT_INIT_LOG2) + 1
        yield self.finding(
            "info",
            "GradScaler",
            f"at GradScaler's default start 2^16 the largest gradient overflows; {skips} step(s) would be skipped",
            f"start at 2^{scale}",
            {
                "default_log2": DEFAULT_INIT_LOG2,
                "abs_max": largest,
                "limit": FP16.overflows_at / 2.0**DEFAULT_INIT_LOG2,
                "upper_log2": loss_scale.upper_log2,
            },
            f"init_scale=2.0**{scale}",
        )


class RangeConflict(Check):
    """No single loss scale serves all gradients: some need more than others can bear.

    Why it is bad: whatever the scale, one part of the model overflows (steps are skipped) or another stops learning.

    Threshold: lower end of the window above its upper end.

    Remedy: BF16; or the tensors at one end in FP32; or a scale per layer (AdaLoss, arXiv 1910.12385).

    Source: the window's two ends are computed from the counts; the tensors that bind them are the proof.
    """

    code: ClassVar[str] = "MP204"
    name: ClassVar[str] = "range-conflict"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        lower, upper = loss_scale.lower_log2, loss_scale.upper_log2
        if lower is None or upper is None or lower <= upper:
            return
        small = ", ".join(loss_scale.limited_by.get("lower", ())) or "small gradients"
        large = ", ".join(loss_scale.limited_by.get("upper", ())) or "large gradients"
        yield self.finding(
            "error",
            "loss scale",
            f"a scale of 2^{lower} or more is needed for {small}, and 2^{upper} is the most for {large}",
            f"train in BF16, keep the modules at one end in FP32, or give each end a scale of its own, 2^{lower} and "
            f"2^{upper}: a hook between them multiplies the gradient by 2^{lower - upper}, or divides it where the "
            "small gradients are nearer the loss; unscale each by its own",
            {"lower_log2": lower, "upper_log2": upper, "limit": 2.0**upper},
            'with torch.autocast("cuda", dtype=torch.bfloat16):\n    loss = compute_loss(model, batch)\n',
        )


class GradientSubnormal(Check):
    """At the recommended loss scale, most of a gradient is subnormal in FP16.

    Why it is bad: below 2^-14 FP16 has 10 significant bits and one less for each octave further down. Nothing is lost,
    but it is coarse.

    Threshold: information: more than 50 % of a tensor's non-zero elements lie between 2^-25 and 2^-14, and more than
    half of its squared norm lies below 2^-14.

    Remedy: a higher loss scale where the window allows one; BF16 has 8 significant bits throughout.

    Source: FP16's subnormals, IEEE 754; the 50 % are proposed by mpdiag.
    """

    code: ClassVar[str] = "MP206"
    name: ClassVar[str] = "gradient-subnormal"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the tensor with the largest share; the others are counted."""
        k = loss_scale.log2_scale
        if k is None:
            return
        coarse = [
            (t.signal.usage(FP16, k).subnormal, t)
            for t in fp16_gradients(capture)
            if t.signal.energy_lost(FP16, k - _SUBNORMAL_OCTAVES) > 0.5
        ]
        coarse = [(share, table) for share, table in coarse if share > 0.5]
        if coarse:
            share, worst = max(coarse, key=lambda pair: pair[0])
            others = f"; so are {len(coarse) - 1} more tensors" if len(coarse) > 1 else ""
            yield self.finding(
                "info",
                worst.name,
                f"at 2^{k}, {_percent(share)} of the {worst.kind.replace('_', ' ')} of {worst.name} is subnormal in "
                f"FP16 and keeps fewer bits{others}",
                "raise the loss scale if the window allows it, or train in BF16",
                {"subnormal": share, "limit": 0.5, "tensors": len(coarse), "log2_scale": k},
                loss_scale.snippet,
                worst.source,
            )


def _at_least(share: float) -> str:
    """Each tensor is counted for itself: what is zero in one is missing in those before it too."""
    return f"at least {_percent(share)}" if share >= 0.001 else _percent(share)


def _percent(share: float | None) -> str:
    if share is None:
        return "not known"
    if share == 0:
        return "0 %"
    return f"{share * 100:.1f} %" if share >= 0.001 else "<0.1 %"
