"""MP519 and MP520: a GradScaler that the job's own code steps with, inside what a scan runs of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check
from mpdiag.advice.checks.loop_code import events
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.loop import LoopEvent

_IN_ORDER = """\
scaler.scale(loss).backward()  # of every micro-batch
scaler.unscale_(optimizer)     # once, after the last one
torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
scaler.step(optimizer)
scaler.update()
optimizer.zero_grad()
"""


class ClippedWhileScaled(Check):
    """Gradients are clipped while they carry the loss scale.

    Why it is bad: a norm of 1 is 65536 at a scale of 2^16, so nearly every step is clipped, to a 65536th of the bound
    that was meant, and by more as the scale grows.

    Threshold: torch's clip_grad_norm_ or clip_grad_value_ on gradients of a scaled loss, before `unscale_`. A scan sees
    it in the code that computes the loss, where that trains something itself; it does not run the job's own loop.

    Remedy: `scaler.unscale_(optimizer)` first.

    Source: torch's AMP examples, "Gradient clipping".
    """

    code: ClassVar[str] = "MP519"
    name: ClassVar[str] = "clipped-while-scaled"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place."""
        for event in events(capture, LoopEvent.CLIPPED_SCALED):
            yield self.finding(
                "warning",
                "GradScaler",
                f"gradients are clipped at {event.source} while they still carry the loss scale",
                "unscale them first",
                {"operation": event.name},
                _IN_ORDER,
                event.source,
            )


class MixedScales(Check):
    """A backward pass adds gradients with the loss scale to gradients without it.

    Why it is bad: of an accumulated gradient only the last part counts then: it is larger than the others by the scale,
    and unscaling divides them all.

    Threshold: a scaled loss's backward, while gradients wait for their step that are not zero and that `unscale_` has
    divided already. A scan sees it in the code that computes the loss, where that trains something itself; it does not
    run the job's own loop.

    Remedy: unscale, step and update once, after the last micro-batch.

    Source: torch's AMP examples, "Gradient accumulation".
    """

    code: ClassVar[str] = "MP520"
    name: ClassVar[str] = "mixed-scales"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place."""
        for event in events(capture, LoopEvent.MIXED_SCALES):
            yield self.finding(
                "warning",
                "GradScaler",
                f"{event.name} at {event.source} adds scaled gradients to gradients that are unscaled already",
                "unscale, step and update after the last micro-batch only",
                {"operation": event.name},
                _IN_ORDER,
                event.source,
            )
