"""MP205: updates that 16 bits swallow. MP506 to MP508: an optimizer's state in 16 bits. MP518: nothing moves at all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.advice.checks.stored_types import KEEP_FP32, half_groups
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice, TensorKind
from mpdiag.finding import Certainty
from mpdiag.formats import FP16
from mpdiag.loop import HALF

_LOST_BY_FEW = 0.05  # of the gradients' elements: the 5 % of the paper's figure 2b, the least it calls relevant

NOTHING_TRAINS = "MP518"  # the verdict asks for it by its code


class UpdateStagnation(Check):
    """Updates too small to move a weight stored in 16 bits.

    Why it is bad: w + dw rounds back to w when |dw| is below half a unit in w's last place, so a model stored in
    FP16 stops learning; in the paper that cost 80 % of the accuracy.

    Threshold: 10 % of the updates. For FP32 weights this is information: keep them FP32 (autocast does).
    For weights that are 16-bit already: warning, from 50 % on an error.

    Remedy: FP32 master weights: do not call `model.half()`; let autocast cast.

    Source: Micikevicius et al., arXiv 1710.03740, section 3.1 and figure 2a.
    """

    code: ClassVar[str] = "MP205"
    name: ClassVar[str] = "update-stagnation"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one for each type the weights are stored in."""
        updates = [t for t in capture.of_kind(TensorKind.WEIGHT_UPDATE) if t.stagnant]
        for dtype, fmt in (("float32", "FP16"), ("float16", "FP16"), ("bfloat16", "BF16")):
            tables = [t for t in updates if t.dtype == dtype]
            elements = sum(t.elements for t in tables)
            if not elements:
                continue
            lost = sum((t.stagnant or {})[fmt] * t.elements for t in tables) / elements
            if lost <= 0.1:
                continue
            already = dtype != "float32"
            worst = max(tables, key=lambda t: (t.stagnant or {})[fmt])
            yield self.finding(
                ("error" if lost > 0.5 else "warning") if already else "info",
                worst.name,
                f"{lost * 100:.0f} % of the updates {'vanish in the' if already else 'would vanish in'} {fmt} weights"
                f" ({(worst.stagnant or {})[fmt] * 100:.0f} % of {worst.name}'s)",
                "store the weights in FP32 and let autocast cast them"
                if already
                else "keep FP32 master weights: use autocast, not model.half()",
                {"stagnant": lost, "limit": 0.1},
                KEEP_FP32,
                worst.source,
                Certainty.MEASURED if already else None,
            )


class EpsOfOptimizer(Check):
    """The optimizer's eps is zero in the type of its state.

    Why it is bad: Adam divides by sqrt(v) + eps. In FP16 an eps of 1e-8 is zero, so a weight without a gradient gives
    0/0 = NaN at its first step, one with a small gradient infinity.

    Threshold: eps of 2^-25 = 2.98e-8 or less beside FP16 state. Not for fused kernels, which compute in FP32.

    Remedy: FP32 state (FP32 weights), else an eps of 1e-4 or more.

    Source: google-deepmind/optax#1754, chainer#6299; measured with torch.
    """

    code: ClassVar[str] = "MP506"
    name: ClassVar[str] = "optimizer-eps-is-zero"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per param group."""
        for group, _ in half_groups(capture):
            in_half = "float16" in (group.state or {}).values()
            if in_half and not group.fused and group.eps is not None and group.eps <= FP16.rounds_to_zero:
                yield self.finding(
                    "error",
                    group.example,
                    f"{group.kind}'s eps {number(group.eps)} is zero beside its FP16 state: a zero gradient gives NaN",
                    "keep weights and state FP32, or raise eps to 1e-4",
                    {"eps": group.eps, "limit": FP16.rounds_to_zero},
                    f"torch.optim.{group.kind}(parameters, eps=1e-4)\n",
                )


class SecondMomentUnderflow(Check):
    """Adam's second moment underflows in FP16 state.

    Why it is bad: v is the mean of (1 - beta2) * g^2. Where that is zero, the step is m / eps, of any size.

    Threshold: an error where more than 5 % of the weight gradients' non-zero elements have (1 - beta2) * g^2 at 2^-25
    or less: |g| <= 5.5e-3 for a beta2 of 0.999.

    Remedy: FP32 state.

    Source: FP16 limits; measured with torch. The 5 % as for gradients (arXiv 1710.03740, figure 2b).
    """

    code: ClassVar[str] = "MP507"
    name: ClassVar[str] = "second-moment-underflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the weight that loses most."""
        groups = [
            group
            for group, _ in half_groups(capture)
            if group.betas and len(group.betas) > 1 and "float16" in (group.state or {}).values() and not group.fused
        ]
        tables = [t for t in capture.of_kind(TensorKind.WEIGHT_GRADIENT) if t.dtype == "float16"]
        elements = sum(t.histogram.finite_nonzero for t in tables)
        if not groups or not elements:
            return
        beta = min((group.betas or (0.0, 0.0))[1] for group in groups)
        limit = math.sqrt(FP16.rounds_to_zero / max(1 - beta, 1e-12))
        lowest = math.floor(math.log2(limit))  # the binade that holds the limit is not counted: a share at the least
        share = sum(t.histogram.below(lowest) for t in tables) / elements
        if share > _LOST_BY_FEW:
            worst = max(tables, key=lambda t: t.histogram.below(lowest) / (t.histogram.finite_nonzero or 1))
            yield self.finding(
                "error",
                worst.name,
                f"{share * 100:.0f} % of the gradients' elements are too small for the FP16 second moment: "
                f"(1 - {beta:g}) * g^2 is zero below {number(limit)}",
                "keep the optimizer's state FP32",
                {"share": share, "limit": limit, "beta2": beta},
                KEEP_FP32,
                worst.source,
            )


class BetaRoundsToOne(Check):
    """A beta is kept in a 16-bit tensor in which it is 1.

    Why it is bad: BF16 has 8 significant bits, so 0.999 becomes 1.0: the moment never forgets, and the bias correction
    divides by zero.

    Threshold: betas in a 16-bit tensor, one of which is 1 there.

    Remedy: betas as Python numbers or FP32 tensors.

    Source: BF16 limits; measured with torch.
    """

    code: ClassVar[str] = "MP508"
    name: ClassVar[str] = "beta-rounds-to-one"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per param group."""
        for group in capture.loop.groups if capture.loop else ():
            if group.betas_dtype in HALF and 1.0 in (group.betas or ()):
                yield self.finding(
                    "warning",
                    group.optimizer,
                    f"{group.kind}'s betas are {group.betas_dtype} tensors, in which one is 1",
                    "give betas as Python numbers",
                    {"largest_beta": max(group.betas or ()), "limit": 1.0, "dtype": group.betas_dtype},
                    f"torch.optim.{group.kind}(parameters, betas=(0.9, 0.999))\n",
                )


class NothingTrains(Check):
    """No weight changes in any FP32 step that was observed.

    Why it is bad: a job that does not train gives the same losses in every precision, so its verification shows
    nothing. The verdict is then inconclusive.

    Threshold: every element of every weight update is zero.

    Remedy: a learning rate above zero. A schedule with a warm-up sets it to 0 when it is built, and only the job's own
    loop would raise it again.

    Source: how `mpdiag scan` trains (README, "A target file").
    """

    code: ClassVar[str] = NOTHING_TRAINS
    name: ClassVar[str] = "nothing-trains"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        updates = [t for t in capture.of_kind(TensorKind.WEIGHT_UPDATE) if t.elements]
        if not updates or any(t.histogram.finite_nonzero + t.histogram.infs + t.histogram.nans for t in updates):
            return
        rates = {group.lr for group in (capture.loop.groups if capture.loop else ())}
        stopped = rates == {0.0}
        yield self.finding(
            "warning",
            "the optimizer",
            f"no weight changed in {capture.steps} FP32 steps{', for the learning rate is 0' if stopped else ''}: "
            "equal losses say nothing of a precision",
            "give the optimizer a learning rate above zero; a warm-up schedule that is built with it sets it to 0",
            {"steps": capture.steps, "weights": len(updates), "changed": 0, "limit": 0, "lr": 0.0 if stopped else None},
            "return torch.optim.AdamW(model.parameters(), lr=1e-3)  # without a scheduler\n",
        )
