"""MP701 to MP704: what stands in the way of FP8. Nobody asked for it, so it is information."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, RunCheck, number
from mpdiag.advice.checks.performance import FP16_TILE, misaligned, widened
from mpdiag.advice.other_formats import PER_TENSOR, what_if
from mpdiag.diagnosis import Capture, Diagnosis, Finding, LossScaleAdvice, TensorKind
from mpdiag.finding import Certainty
from mpdiag.formats import E4M3, E5M2

_FP8_TILE = 16  # channels: torch._scaled_mm demands it
_NOTICED = 0.1  # of the products' FLOPs
_HISTORY = 4  # steps before a spike can be called one; Transformer Engine's own history is 1024
_TORCHAO = """\
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
convert_to_float8_training(model, config=Float8LinearConfig.from_recipe_name("{}"))  # {}
"""
_SATURATES_FROM = (2, 12)  # torch's E4M3 cast: pytorch#178817


class Fp8Underflow(Check):
    """With a scale for each tensor, FP8 makes a noticeable share of some tensors zero.

    Why it is bad: E4M3 spans 17.8 octaves and E5M2 31.8, from the smallest subnormal to the largest number. What lies
    lower, below a tensor's largest magnitude, is lost.

    Threshold: information: more than 1 % of a tensor's non-zero elements become zero, E4M3 forward or E5M2 backward.

    Remedy: finer scales: by row, by block of 128, or MXFP8's blocks of 32; or BF16 for these layers.

    Source: Micikevicius et al., arXiv 2209.05433; the recipes of Transformer Engine and torchao.
    """

    code: ClassVar[str] = "MP701"
    name: ClassVar[str] = "fp8-underflow"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the half of the step that loses most."""
        fp8 = (E4M3.name, E5M2.name)
        losing = [f for f in what_if(capture) if f.format in fp8 and f.scaling == PER_TENSOR and f.losing]
        if losing:
            worst = max(losing, key=lambda forecast: forecast.worst_underflow)
            yield self.finding(
                "info",
                f"FP8 {worst.part}",
                f"in {worst.format} with a scale for each tensor, {worst.losing} of {worst.tensors} tensors of the "
                f"{worst.part} pass lose more than 1 %; {worst.worst} loses {worst.worst_underflow * 100:.1f} %",
                "scale by row or by block, or keep these layers in BF16",
                {"tensors": worst.losing, "of": worst.tensors, "worst": worst.worst_underflow, "limit": 0.01},
                _TORCHAO.format("rowwise", "a scale for each row"),
            )


class Fp8DelayedSpike(Check):
    """A tensor's largest magnitude doubles from one step to the next.

    Why it is bad: delayed scaling takes the scale from the steps before, so what is larger than ever is clipped at
    FP8's largest number.

    Threshold: information: more than twice the largest magnitude of all steps before, after at least 4.

    Remedy: current scaling: the scale from the tensor itself.

    Source: Transformer Engine's recipes (delayed: the largest of 1024 steps).
    """

    code: ClassVar[str] = "MP702"
    name: ClassVar[str] = "fp8-delayed-spike"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the tensor with the largest jump; the others are counted."""
        jumps = []
        for table in capture.of_kind(TensorKind.ACTIVATION, TensorKind.WEIGHT, TensorKind.ACTIVATION_GRADIENT):
            seen = table.abs_max_by_step
            for step in range(_HISTORY, len(seen)):
                before = max(seen[:step])
                if before > 0 and seen[step] > 2 * before and table.amp_dtype == "float16" and not table.noise_level:
                    jumps.append((seen[step] / before, table, step))
        if jumps:
            ratio, table, step = max(jumps, key=lambda jump: jump[0])
            others = len({(t.kind, t.name) for _, t, _ in jumps}) - 1
            yield self.finding(
                "info",
                table.name,
                f"the {table.kind.replace('_', ' ')} of {table.name} is {number(ratio)} times as large at observed "
                f"step {step} as before: FP8 with delayed scaling would clip it"
                + (f", and {others} more" if others else ""),
                "for FP8, take current scaling",
                {"ratio": ratio, "step": step, "limit": 2, "tensors": others + 1},
                _TORCHAO.format("tensorwise", "from the tensor itself, in each step"),
                table.source,
            )


class Fp8CastOldTorch(RunCheck):
    """The job casts to E4M3 with a torch whose cast does not saturate.

    Why it is bad: before torch 2.12 a magnitude above 464 becomes NaN in float8_e4m3fn, and saturates at 448 since.

    Threshold: information: an operation gives float8_e4m3fn (seen with `--depth ops`) under torch older than 2.12.

    Remedy: clamp first, or a newer torch.

    Source: pytorch#178817; measured with torch.
    """

    code: ClassVar[str] = "MP703"
    name: ClassVar[str] = "fp8-cast-old-torch"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one."""
        version = re.match(r"(\d+)\.(\d+)", diagnosis.environment.torch)
        if version is None or tuple(map(int, version.groups())) >= _SATURATES_FROM or diagnosis.capture is None:
            return
        casts = [t for t in diagnosis.capture.operations or () if t.dtype == "float8_e4m3fn"]
        if casts:
            yield self.finding(
                "info",
                casts[0].module,
                f"{casts[0].place} casts to E4M3 under torch {diagnosis.environment.torch}: NaN above 464",
                "clamp to 448 before the cast",
                {"torch": diagnosis.environment.torch, "limit": 464},
                "y = x.clamp(-448, 448).to(torch.float8_e4m3fn)\n",
                casts[0].source,
            )


class Fp8Alignment(Check):
    """Channels that are no multiples of 16 cannot be multiplied in FP8.

    Why it is bad: FP8 products demand it; torchao leaves such layers in 16 bits, Transformer Engine raises.

    Threshold: information: layers with such channels do more than a tenth of the products' FLOPs, while FP16's
    multiples of 8 are kept (MP402 says otherwise). How small a product must be to gain nothing from FP8 takes a
    measurement.

    Remedy: pad to a multiple of 16.

    Source: torch._scaled_mm; torchao's float8 documentation.
    """

    code: ClassVar[str] = "MP704"
    name: ClassVar[str] = "fp8-alignment"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the layer with most FLOPs; the others are counted."""
        share, layers = misaligned(capture, _FP8_TILE)
        if share > _NOTICED and misaligned(capture, FP16_TILE)[0] <= _NOTICED:
            others = f", and {len(layers) - 1} more" if len(layers) > 1 else ""
            yield self.finding(
                "info",
                layers[0].name,
                f"{share * 100:.0f} % of the products' FLOPs cannot run in FP8, as channels are no multiples of 16: "
                f"{layers[0].name} ({layers[0].features_in} to {layers[0].features_out}){others}",
                "for FP8, pad to multiples of 16",
                {"flop_share": share, "limit": _NOTICED, "layers": len(layers)},
                widened(layers[0], _FP8_TILE),
            )
