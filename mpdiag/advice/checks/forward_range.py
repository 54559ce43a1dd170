"""MP1xx: values of the forward pass that FP16 cannot hold. No loss scale helps here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, island, number, owner
from mpdiag.advice.checks.operations import SQUARES_LOST, forward, share_lost
from mpdiag.diagnosis import BF16_SNIPPET, Capture, Finding, LossScaleAdvice, TensorKind, TensorTable
from mpdiag.finding import Certainty
from mpdiag.formats import FP16, FP32
from mpdiag.operations import OpRole

_SHARE_LOST = 0.01  # of the non-zero elements: the rule catalogue's R27
_ENERGY_LOST = 0.01  # of the squared norm; a layer scale of 1e-6, which its residual stream hides, loses 1e-5
_IMAGE, _LARGE = 200, 1000  # an 8-bit image nearly always has a pixel above 200; FP16 is coarser than 1/2 from 1024 on
_FP16_ROUNDING = 2.0**-22  # of the squared norm: what rounding to 11 bits costs anyway


class ActivationOverflow(Check):
    """An activation that is FP16 under autocast reaches FP16's limit.

    Why it is bad: from 65520 on FP16 rounds to infinity; the next layer makes NaN of it and the loss is lost. A loss
    scale acts on gradients only and cannot help.

    Threshold: error from 65520 (the point that rounds to infinity); warning from 32768, one octave below, because
    activations grow in training.

    Remedy: BF16 (FP32's range), or keep the module in FP32 with `torch.autocast("cuda", enabled=False)` around it.

    Source: FP16 limits, IEEE 754; the classic case is T5's feed-forward output, 66246 > 65504
    (huggingface/transformers#9295).
    """

    code: ClassVar[str] = "MP101"
    name: ClassVar[str] = "activation-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per activation."""
        for table in capture.of_kind(TensorKind.ACTIVATION):
            if table.amp_dtype != "float16" or table.abs_max is None or table.abs_max < FP16.max / 2:
                continue
            if table.abs_max >= 2.0**FP32.max_exponent and table.name not in capture.amp_nonfinite:
                continue  # a finfo(x.dtype).min, which is FP16's own there: the iteration in FP16 was finite
            over = table.abs_max >= FP16.overflows_at
            octaves = math.log2(FP16.max / table.abs_max)
            room = f"{-octaves:.1f} octaves above" if over else f"{octaves:.1f} octaves below"
            yield self.finding(
                "error" if over else "warning",
                table.name,
                f"the output of {table.name} reaches {number(table.abs_max)}, {room} FP16's largest number 65504",
                "keep this module in FP32, or train in BF16",
                {"abs_max": table.abs_max, "limit": FP16.overflows_at, "headroom_log2": octaves},
                island(table.name),
                table.source,
                Certainty.SEEN if over and table.name in capture.amp_nonfinite else None,
            )


class NonfiniteInHalf(Check):
    """Under FP16 autocast a module's output is infinite, NaN or all zero although its FP32 output fits FP16.

    Why it is bad: something inside overflows: a square in a hand-written norm (from 256 on), an attention product
    before its scaling, a sum over many elements, an additive mask of -1e9. Divided by, an infinity leaves zeros.

    Threshold: one non-finite element in the first batch and none in FP32, or nothing but zeros where FP32 has others.
    Only the first module is named: what follows inherits it. The loss, where only the loss is not finite and the
    FP32 loss of that batch is.

    Remedy: compute that part in FP32, or use torch's own layer_norm, rms_norm or scaled_dot_product_attention.

    Source: transformers#17437, pytorch#40497; measured by running one iteration under the CUDA policy.
    """

    code: ClassVar[str] = "MP102"
    name: ClassVar[str] = "nonfinite-in-fp16"
    certainty: ClassVar[Certainty] = Certainty.SEEN

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """The first module only."""
        activations = {t.name: t for t in capture.of_kind(TensorKind.ACTIVATION)}
        broken = {*capture.amp_nonfinite, *capture.amp_vanished}
        fed = set(capture.amp_fed_nonfinite)
        for name, table in activations.items():
            if name not in broken or table.abs_max is None or table.histogram.infs or table.histogram.nans:
                continue
            if table.amp_dtype == "float16" and table.abs_max >= FP16.overflows_at and name not in fed:
                return  # MP101 says it already, and what follows inherits it
            if name in capture.amp_vanished and table.abs_max <= FP16.rounds_to_zero:
                continue  # so small that FP16 has no other number for it: MP105
            if name in fed:
                yield self._before(name, table)
                return
            gives = "nothing but zeros" if name in capture.amp_vanished else "inf or NaN"
            yield self.finding(
                "error",
                name,
                f"{name} gives {gives} under FP16 autocast, though its FP32 output reaches {number(table.abs_max)}",
                "find the square, product or sum inside it and compute that in FP32, or train in BF16",
                {"abs_max_fp32": table.abs_max, "limit": FP16.overflows_at},
                island(name),
                table.source,
            )
            return
        in_fp32 = capture.losses[:1]  # of the batch that the FP16 iteration had
        if capture.amp_loss_finite is False and in_fp32 and math.isfinite(in_fp32[0]):
            yield self.finding(
                "error",
                "the loss",
                "the loss is inf or NaN under FP16 autocast, though every module's output is finite",
                "compute the loss in FP32; `--depth ops` names the operation",
                {"limit": FP16.overflows_at},
                "loss = loss_fn(output.float(), target)",
            )

    def _before(self, name: str, table: TensorTable) -> Finding:
        """The fault lies between modules, in what this one is given."""
        return self.finding(
            "error",
            name,
            f"{name} is given inf or NaN under FP16 autocast: an operation before it, between modules, overflows",
            "compute that operation in FP32 (x.float()) or on smaller numbers, or train in BF16",
            {"abs_max_fp32": table.abs_max, "limit": FP16.overflows_at},
            'with torch.autocast("cuda", enabled=False):\n    x = operation(x.float())  # what makes its input\n',
            table.source,
        )


class InputRange(Check):
    """The inputs are large numbers where they reach the model's weights, such as pixels left in 0..255.

    Why it is bad: activations start two to three orders of magnitude too high, which wastes FP16's range upwards and
    its precision (integers above 2048 are not exact), and slows training in any precision.

    Threshold: 200 for inputs that stop at 255 (8-bit images), 1000 for others. Measured where a linear layer, a
    convolution or another product is given them: targets do not count, nor what is divided or normalised on the way.

    Remedy: divide by 255, or standardise to mean 0 and variance 1.

    Source: NVIDIA's mixed-precision guide, "check that inputs are normalised"; FP16 spacing.
    """

    code: ClassVar[str] = "MP103"
    name: ClassVar[str] = "input-range"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        largest = capture.input_abs_max
        if largest is None or not (_IMAGE <= largest <= 255 or largest >= _LARGE):
            return
        image = largest <= 255
        yield self.finding(
            "warning",
            "the input batch",
            f"the inputs reach {number(largest)}" + (": pixels left in 0..255" if image else ""),
            "divide by 255" if image else "standardise the inputs",
            {"abs_max": largest, "limit": _IMAGE if image else _LARGE},
            "x = x / 255" if image else "x = (x - mean) / std",
        )


class WeightOverflow(Check):
    """A weight that autocast casts to FP16 is beyond FP16's range.

    Why it is bad: its FP16 copy is infinite in every forward pass. Typical for checkpoints trained in BF16.

    Threshold: 65520.

    Remedy: train in BF16, or keep the module in FP32.

    Source: the warning in torch.amp.GradScaler's documentation on BF16-trained models.
    """

    code: ClassVar[str] = "MP104"
    name: ClassVar[str] = "weight-overflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per weight."""
        for table in capture.of_kind(TensorKind.WEIGHT):
            if table.amp_dtype == "float16" and table.abs_max is not None and table.abs_max >= FP16.overflows_at:
                yield self.finding(
                    "error",
                    table.name,
                    f"{table.name} holds {number(table.abs_max)}, beyond FP16's 65504",
                    "train in BF16, or keep this module in FP32",
                    {"abs_max": table.abs_max, "limit": FP16.overflows_at},
                    island(owner(table.name)),
                    table.source,
                )


class ActivationUnderflow(Check):
    """A noticeable share of an activation's non-zero elements rounds to zero in FP16.

    Why it is bad: information is lost in the forward pass, where no loss scale acts.

    Threshold: 1 % of the non-zero elements and more than FP16's own rounding error in energy (2^-22 of the squared
    norm); exact zeros (ReLU, dropout, padding) do not count. Between the modules, where `--depth ops` looks, 1 % of
    the squared norm too: a small product that is added to something larger is no loss.

    Remedy: BF16, or scale inputs and weights so that activations lie near 1.

    Source: proposed by mpdiag, anchored on the paper's 5 % for gradients (arXiv 1710.03740, figure 2b).
    """

    code: ClassVar[str] = "MP105"
    name: ClassVar[str] = "activation-underflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per activation, and the first operation of each module."""
        for table in capture.of_kind(TensorKind.ACTIVATION):
            share = table.histogram.usage(FP16).underflow
            energy = table.histogram.energy_lost(FP16)
            if table.amp_dtype == "float16" and share > _SHARE_LOST and energy > _FP16_ROUNDING:
                yield self._lost(table.name, f"{table.name}'s output", share, energy, table.source, {})
        told = {t.module for t in forward(capture, OpRole.SQUARE) if share_lost(t) > SQUARES_LOST}  # MP108 says it
        for operation in forward(capture, OpRole.OUTPUT):
            share = operation.histogram.usage(FP16).underflow
            energy = operation.histogram.energy_lost(FP16)
            own = operation.module_output or operation.masked or operation.module in told
            if not own and share > _SHARE_LOST and energy > _ENERGY_LOST:
                told.add(operation.module)
                what = f"the result of {operation.op} in {operation.place}"
                op = {"operation": operation.op}
                yield self._lost(operation.module, what, share, energy, operation.source, op)

    def _lost(
        self, subject: str, what: str, share: float, energy: float, source: str | None, more: dict[str, str]
    ) -> Finding:
        return self.finding(
            "warning",
            subject,
            f"{share * 100:.1f} % of the non-zero elements of {what} become zero in FP16",
            "train in BF16, or bring the activations nearer to 1",
            {**more, "underflow": share, "energy_lost": energy, "limit": _SHARE_LOST},
            BF16_SNIPPET,
            source,
        )
