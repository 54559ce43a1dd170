"""MP510 to MP517: what the job's own code does in a step that autocast and GradScaler have rules for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, number
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice
from mpdiag.finding import Certainty
from mpdiag.loop import Event, LoopEvent


def events(capture: Capture, what: LoopEvent) -> tuple[Event, ...]:
    """What the job was seen to do, of one sort."""
    return capture.loop.of(what) if capture.loop else ()


class CustomAutogradFunction(Check):
    """A torch.autograd.Function is written without torch.amp.custom_fwd and custom_bwd.

    Why it is bad: its forward runs under autocast and its backward outside, so the types that the backward meets depend
    on the caller: FP16 gradients beside FP32 tensors that were saved, say. Some raise, some compute in FP16 unnoticed.

    Threshold: information; a warning where the FP16 iteration failed, as this is the usual cause.

    Remedy: the two decorators, with `cast_inputs=torch.float32` where the function needs FP32.

    Source: torch's AMP documentation, "Autocast and custom autograd functions".
    """

    code: ClassVar[str] = "MP510"
    name: ClassVar[str] = "custom-autograd-function"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per function, where it is called first."""
        seen: set[str] = set()
        for event in events(capture, LoopEvent.FUNCTION):
            if event.name not in seen:
                seen.add(event.name)
                yield self.finding(
                    "warning" if capture.amp_error else "info",
                    event.name,
                    f"{event.name}, a torch.autograd.Function, has no custom_fwd and custom_bwd: its backward runs "
                    "outside autocast",
                    "decorate forward and backward",
                    {"error": capture.amp_error},
                    "@staticmethod\n@torch.amp.custom_fwd(device_type='cuda')\ndef forward(ctx, x): ...\n\n"
                    "@staticmethod\n@torch.amp.custom_bwd(device_type='cuda')\ndef backward(ctx, gradient): ...\n",
                    event.source,
                )


class InPlaceSkipsAutocast(Check):
    """An operator that autocast would cast is called in place or with out=, where autocast leaves it alone.

    Why it is bad: `y.exp_()` of an FP16 tensor computes in FP16, where `y.exp()` would compute in FP32: beyond 11.09 it
    is infinite.

    Threshold: information: an in-place or out= form of an operator that is on autocast's lists, on a floating tensor.

    Remedy: the plain form.

    Source: torch's AMP documentation, "Autocast op reference": only out-of-place operators are eligible.
    """

    code: ClassVar[str] = "MP511"
    name: ClassVar[str] = "in-place-skips-autocast"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place."""
        for event in events(capture, LoopEvent.IN_PLACE):
            plain = event.name.removesuffix("(out=)").removesuffix("_")
            yield self.finding(
                "info",
                event.name,
                f"{event.name} in {event.source} is not cast by autocast, as {plain} would be",
                f"use {plain}, whose result is a new tensor",
                {"operation": event.name},
                f"y = y.{plain}(...)  # not {event.name}\n",
                event.source,
            )


class GradientPenalty(Check):
    """The loss has a gradient in it, which GradScaler does not scale.

    Why it is bad: a gradient that torch.autograd.grad takes inside the loss is computed before the scaler multiplies
    anything: in FP16 it underflows as gradients do. Scaled by hand, it has to be divided again before it is used.

    Threshold: information: torch.autograd.grad with create_graph=True in the loss.

    Remedy: scale the inner loss, divide the gradient by the scale out of place, then scale the whole loss.

    Source: torch's AMP examples, "Gradient penalty".
    """

    code: ClassVar[str] = "MP512"
    name: ClassVar[str] = "gradient-penalty"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place."""
        for event in events(capture, LoopEvent.PENALTY):
            yield self.finding(
                "info",
                "the loss",
                f"the loss takes a gradient at {event.source}, which no loss scale reaches",
                "scale the inner loss, and divide its gradient by the scale before the penalty",
                {"operation": event.name},
                "(scaled,) = torch.autograd.grad(scaler.scale(y.sum()), x, create_graph=True)\n"
                "gradient = scaled / scaler.get_scale()  # out of place\n",
                event.source,
            )


class BackwardInAutocast(Check):
    """A backward pass runs inside an autocast region.

    Why it is bad: torch advises against it. The operators of the backward pass are then cast anew, by lists that were
    made for the forward pass, and loss curves got worse.

    Threshold: backward or torch.autograd.grad within a region that the job opens itself. With create_graph=True the
    result is part of a loss, and it is information.

    Remedy: end the region before the backward pass.

    Source: torch's AMP documentation; pytorch#120376.
    """

    code: ClassVar[str] = "MP513"
    name: ClassVar[str] = "backward-in-autocast"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per place."""
        penalties = {event.source for event in events(capture, LoopEvent.PENALTY)}
        for event in events(capture, LoopEvent.BACKWARD_INSIDE):
            yield self.finding(
                "info" if event.source in penalties else "warning",
                "the loss",
                f"{event.name} at {event.source} runs inside an autocast region",
                "leave the region first",
                {"operation": event.name},
                'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
                "loss.backward()  # outside\n",
                event.source,
            )


class CompiledBackward(Check):
    """The model is compiled, so its backward pass is traced with the autocast state of its forward pass.

    Why it is bad: it is not, but it differs: the operators that torch.compile generates for the backward pass are cast
    as in the region, while eager code runs them outside.

    Threshold: information, where a module is torch.compile'd.

    Remedy: `torch._functorch.config.backward_pass_autocast = "off"` for what the AMP documentation recommends.

    Source: torch's AMP documentation.
    """

    code: ClassVar[str] = "MP514"
    name: ClassVar[str] = "compiled-backward"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        compiled = events(capture, LoopEvent.COMPILED)
        if compiled:
            yield self.finding(
                "info",
                compiled[0].name,
                f"{compiled[0].name} is compiled: its backward pass is traced under the autocast of its forward pass",
                "set backward_pass_autocast to off, so that it runs as in eager mode",
                {"modules": len(compiled)},
                'torch._functorch.config.backward_pass_autocast = "off"\n',
            )


class ScalerWithBf16(Check):
    """A GradScaler beside BF16 autocast.

    Why it is bad: it is not, but nothing needs it: BF16 has FP32's range, so its gradients do not underflow. A scale
    only makes skipped steps possible.

    Threshold: information: the job scales its loss, and all autocast regions it opens are BF16.

    Remedy: `enabled=(dtype == torch.float16)`.

    Source: microsoft/DeepSpeed#2911; the formats' exponents.
    """

    code: ClassVar[str] = "MP515"
    name: ClassVar[str] = "scaler-with-bf16"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        scalers = events(capture, LoopEvent.SCALER)
        if scalers and {event.dtype for event in events(capture, LoopEvent.AUTOCAST)} == {"bfloat16"}:
            yield self.finding(
                "info",
                "GradScaler",
                "the job scales its loss beside BF16 autocast, which needs no loss scale",
                "enable the scaler for FP16 alone",
                {"scale": scalers[0].value},
                'scaler = torch.amp.GradScaler("cuda", enabled=(dtype == torch.float16))\n',
                scalers[0].source,
            )


class LossScaledTwice(Check):
    """The loss function scales the loss itself.

    Why it is bad: in a target file backward and step are mpdiag's, with a scaler of its own. A loss that comes scaled
    makes every gradient larger by that factor, here and in the window, and the FP32 updates too.

    Threshold: GradScaler.scale, enabled, in the code that computes the loss, and no step of that scaler's there.

    Remedy: return the loss as it is.

    Source: how `mpdiag scan` trains (README, "A target file"); torch.amp.GradScaler.
    """

    code: ClassVar[str] = "MP516"
    name: ClassVar[str] = "loss-scaled-twice"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        if events(capture, LoopEvent.SCALER_STEP):
            return  # it scales what it steps itself, not the loss that it returns
        for event in events(capture, LoopEvent.SCALER)[:1]:
            yield self.finding(
                "warning",
                "the loss",
                f"the loss is scaled by {number(event.value or 1.0)} at {event.source}, before mpdiag sees it",
                "return the unscaled loss from compute_loss; the scaler is for your own training loop",
                {"scale": event.value},
                "return loss  # not scaler.scale(loss)\n",
                event.source,
            )


class RowsRepeated(Check):
    """One row of a 16-bit embedding is looked up so often that its gradient stands still.

    Why it is bad: on a CPU the row's gradient is added up in the embedding's type, look-up by look-up: it stalls at
    2048 equal terms in FP16 and at 256 in BF16. CUDA adds up in FP32 on most of its paths.

    Threshold: more look-ups of one row in one call than that, on a CPU; information on a GPU.

    Remedy: keep the embedding in FP32.

    Source: the formats' significant bits; measured with torch on a CPU.
    """

    code: ClassVar[str] = "MP517"
    name: ClassVar[str] = "rows-repeated"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per embedding."""
        for event in events(capture, LoopEvent.REPEATS):
            limit = 2048 if event.dtype == "float16" else 256
            if (event.value or 0.0) > limit:
                yield self.finding(
                    "warning" if capture.device == "cpu" else "info",
                    event.name,
                    f"a row of {event.name} is looked up {number(event.value or 0.0)} times in one call; "
                    f"its {event.dtype} gradient stands still at {limit} equal terms",
                    "keep the embedding in FP32",
                    {"repeats": event.value, "limit": limit},
                    "model.embedding.float()\n",
                    event.source,
                )
