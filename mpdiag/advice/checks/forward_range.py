"""MP1xx: values of the forward pass that FP16 cannot hold. No loss scale helps here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, island, number
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice, TensorKind, TensorTable
from mpdiag.formats import FP16, FP32


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
            )


class NonfiniteInHalf(Check):
    """Under FP16 autocast a module's output is infinite, NaN or all zero although its FP32 output fits FP16.

    Why it is bad: something inside overflows: a square in a hand-written norm (from 256 on), an attention product
    before its scaling, a sum over many elements, an additive mask of -1e9. Divided by, an infinity leaves zeros.

    Threshold: one non-finite element in the first batch and none in FP32, or nothing but zeros where FP32 has others.
    Only the first module is named: what follows inherits it. The loss, where only the loss is not finite.

    Remedy: compute that part in FP32, or use torch's own layer_norm, rms_norm or scaled_dot_product_attention.

    Source: transformers#17437, pytorch#40497; measured by running one iteration under the CUDA policy.
    """

    code: ClassVar[str] = "MP102"
    name: ClassVar[str] = "nonfinite-in-fp16"

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
        if capture.amp_loss_finite is False:
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
    """The inputs are large numbers, such as pixels left in 0..255.

    Why it is bad: activations start two to three orders of magnitude too high, which wastes FP16's range upwards and
    its precision (integers above 2048 are not exact), and slows training in any precision.

    Threshold: 200 for inputs that stop at 255 (8-bit images), 1000 for others.

    Remedy: divide by 255, or standardise to mean 0 and variance 1.

    Source: NVIDIA's mixed-precision guide, "check that inputs are normalised"; FP16 spacing.
    """

    code: ClassVar[str] = "MP103"
    name: ClassVar[str] = "input-range"

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        largest = capture.input_abs_max
        if largest is None or not (200 <= largest <= 255 or largest >= 1000):
            return
        image = largest <= 255
        yield self.finding(
            "warning",
            "the input batch",
            f"the inputs reach {number(largest)}" + (": pixels left in 0..255" if image else ""),
            "divide by 255" if image else "standardise the inputs",
            {"abs_max": largest},
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
                    source=table.source,
                )


class ActivationUnderflow(Check):
    """A noticeable share of an activation's non-zero elements rounds to zero in FP16.

    Why it is bad: information is lost in the forward pass, where no loss scale acts.

    Threshold: 1 % of the non-zero elements and more than FP16's own rounding error in energy (2^-22 of the squared
    norm); exact zeros (ReLU, dropout, padding) do not count.

    Remedy: BF16, or scale inputs and weights so that activations lie near 1.

    Source: proposed by mpdiag, anchored on the paper's 5 % for gradients (arXiv 1710.03740, figure 2b).
    """

    code: ClassVar[str] = "MP105"
    name: ClassVar[str] = "activation-underflow"

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per activation."""
        for table in capture.of_kind(TensorKind.ACTIVATION):
            share = table.histogram.usage(FP16).underflow
            energy = table.histogram.energy_lost(FP16)
            if table.amp_dtype == "float16" and share > 0.01 and energy > 2.0**-22:
                yield self.finding(
                    "warning",
                    table.name,
                    f"{share * 100:.1f} % of the non-zero elements of {table.name}'s output become zero in FP16",
                    "train in BF16, or bring the activations nearer to 1",
                    {"underflow": share, "energy_lost": energy, "limit": 0.01},
                    source=table.source,
                )
