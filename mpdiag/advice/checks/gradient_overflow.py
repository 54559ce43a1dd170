"""MP203: gradients beyond FP16's range without a loss scale, and what on this job makes them smaller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.advice.scale_window import fp16_gradients
from mpdiag.diagnosis import BF16_SNIPPET, Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.formats import FP16

_LARGE = 1000  # as for inputs (MP103): a squared error's gradient is as large as its targets
_MEAN = "loss = F.mse_loss(output, target, reduction='mean')  # whichever loss it is: the mean, not the sum\n"
_TARGETS = "target = (target - mean) / std  # of the training set; undone on the model's output\n"
_INPUTS = "x = (x - mean) / std  # of the training set, for each input by itself\n"


class GradientOverflow(Check):
    """A gradient is beyond FP16's range even without a loss scale.

    Why it is bad: GradScaler halves its scale at every step it skips, below 1 and without end.

    Threshold: 65520 at scale 1.

    Remedy: average instead of summing in the loss; standardise targets and inputs where the loss is a mean already;
    or train in BF16. Which of them it is, is said as far as the first iteration shows it.

    Source: FP16 limits; pytorch#99640 (scale below 1).
    """

    code: ClassVar[str] = "MP203"
    name: ClassVar[str] = "gradient-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the largest gradient; the others are counted."""
        over = [t for t in fp16_gradients(capture) if (t.abs_max or 0.0) >= FP16.overflows_at]
        if not over:
            return
        worst = max(over, key=lambda t: t.abs_max or 0.0)
        others = f"; so do {len(over) - 1} more" if len(over) > 1 else ""
        remedy, snippet = _smaller_gradients(capture)
        yield self.finding(
            "error",
            worst.name,
            f"the {worst.kind.replace('_', ' ')} of {worst.name} reaches {number(worst.abs_max or 0.0)} at scale 1, "
            f"beyond FP16's 65504{others}",
            f"{remedy}, or train in BF16",
            {"abs_max": worst.abs_max, "limit": FP16.overflows_at, "tensors": len(over), **_known(capture)},
            snippet,
            worst.source,
        )


def _known(capture: Capture) -> dict[str, float | str]:
    """What the first iteration showed of the loss, for the evidence."""
    loop = capture.loop
    found = {"loss_reduction": loop.loss_reduction, "target_abs_max": loop.target_abs_max} if loop else {}
    return {name: value for name, value in found.items() if value is not None}


def _smaller_gradients(capture: Capture) -> tuple[str, str]:
    """(what makes gradients smaller on this job, the code), as far as the loss and what it compares are known."""
    reduction = capture.loop.loss_reduction if capture.loop else None
    target = (capture.loop.target_abs_max if capture.loop else None) or 0.0
    told = {"targets": target, "inputs": capture.input_abs_max or 0.0}
    beyond = f", beyond FP16's {FP16.max:.0f}: an output that has learnt them overflows"
    large = [
        f"the {name} (they reach {number(value)}{beyond if name == 'targets' and value >= FP16.overflows_at else ''})"
        for name, value in told.items()
        if value >= _LARGE
    ]
    standardise = f"standardise {' and '.join(large)}" if large else ""
    standardised = _TARGETS if target >= _LARGE else _INPUTS
    if reduction == "sum":
        return " and ".join(filter(None, ("use a mean instead of a sum in the loss", standardise))), _MEAN
    if reduction == "mean":
        cure = standardise or "normalise the activations that the gradient comes from"
        return f"the loss is a mean already: {cure}", standardised if large else BF16_SNIPPET
    if large:
        return f"{standardise}, and if the loss is a sum use a mean", standardised
    return "if the loss is a sum use a mean, if it is a mean already standardise targets and inputs", _MEAN
