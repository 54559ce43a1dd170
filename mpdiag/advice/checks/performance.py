"""MP401 to MP405: what keeps mixed precision from being faster or smaller. Information, all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, RunCheck
from mpdiag.arm_names import BASELINE, FP16
from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.memory import why_not_half
from mpdiag.costs.timed_arms import as_fast_in_tf32, compiled_step, compiled_words, step_ratio, tf32_words
from mpdiag.diagnosis import Capture, Diagnosis, Finding, LossScaleAdvice, TensorKind
from mpdiag.finding import Certainty
from mpdiag.loop import Layer

_AMPERE = 8.0  # compute capability from which NVIDIA's tensor cores multiply TF32
FP16_TILE = 8  # channels: 16 bytes, NVIDIA's matrix multiplication guide
_DECIDED = ("better", "equivalent", "worse")  # of a ratio; what the machine's noise hides is no speed-up and no loss
_NOTICED = 0.1  # of the products' FLOPs: below a tenth, padding cannot give a tenth


def layer_flops(capture: Capture) -> dict[Layer, int]:
    """FLOPs of the forward pass of one step in each linear layer and convolution that was called."""
    outputs = {t.name: t.elements for t in capture.of_kind(TensorKind.ACTIVATION)}
    layers = capture.loop.layers if capture.loop else ()
    return {layer: 2 * outputs[layer.name] * layer.inner for layer in layers if layer.name in outputs}


def misaligned(capture: Capture, tile: int) -> tuple[float, list[Layer]]:
    """(share of the products' FLOPs, layers) whose channels are no multiples of `tile`, the costliest first.

    Depthwise convolutions do not count: no padding takes them to tensor cores.
    """
    flops = layer_flops(capture)
    odd = [
        layer for layer in flops if layer.features_in > 1 and (layer.features_in % tile or layer.features_out % tile)
    ]
    whole = sum(flops.values())
    share = sum(flops[layer] for layer in odd) / whole if whole else 0.0
    return share, sorted(odd, key=lambda layer: -flops[layer])


def padded(size: int, tile: int) -> int:
    """The next multiple."""
    return -(-size // tile) * tile


def widened(layer: Layer, tile: int) -> str:
    """A layer's sizes in code, as they are and padded."""
    to = (padded(layer.features_in, tile), padded(layer.features_out, tile))
    return f"# {layer.name}: {layer.features_in} -> {to[0]}, {layer.features_out} -> {to[1]}\n"


class Tf32Baseline(RunCheck):
    """The FP32 that this job trains in is TF32 in part.

    Why it is bad: it is not, but a speed-up over "FP32" means two things: 1.3 to 2.6 times over TF32, 2 to 5.5 times
    over IEEE FP32. torch runs convolutions and recurrent layers in TF32 unless it is told otherwise.

    Threshold: information: on a GPU with TF32 (Ampere or later), a setting of "tf32" for layers that this model has.

    Remedy: say which one is meant. mpdiag compares with IEEE FP32 and shows the settings' own as the arm
    fp32-configured.

    Source: torch's numerical accuracy notes; `torch.backends.*.fp32_precision`.
    """

    code: ClassVar[str] = "MP401"
    name: ClassVar[str] = "tf32-baseline"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one."""
        machine = diagnosis.environment
        if diagnosis.capture is None or float(machine.compute_capability or 0) < _AMPERE:
            return
        kinds = {table.module_type for table in diagnosis.capture.of_kind(TensorKind.ACTIVATION)}
        has = {
            "cuda.matmul": bool(kinds),
            "cudnn.conv": any("Conv" in kind for kind in kinds),
            "cudnn.rnn": bool(kinds & {"LSTM", "GRU", "RNN"}),
        }
        tf32 = [name for name, value in machine.fp32_precision.items() if value == "tf32" and has.get(name)]
        if tf32:
            yield self.finding(
                "info",
                "the FP32 baseline",
                f"with your settings {' and '.join(tf32)} compute in TF32 on this GPU, not in FP32",
                "say which of the two a speed-up is over; set fp32_precision to have one",
                dict.fromkeys(tf32, "tf32"),
                'torch.backends.cudnn.conv.fp32_precision = "ieee"  # or "tf32"\n',
            )


class TensorCoreAlignment(Check):
    """Channels that are no multiples of 8 keep products from the best tensor-core kernels.

    Why it is bad: FP16 tiles are 16 bytes wide. cuBLAS and cuDNN pad or copy what does not fit, or take slower kernels.

    Threshold: information: linear layers and convolutions with such channels do more than a tenth of the products'
    FLOPs. The batch's dimensions are not looked at.

    Remedy: pad the vocabulary, the classes or the channels to a multiple of 8; of 64 on an A100 or later.

    Source: NVIDIA's matrix multiplication guide, table of alignment.
    """

    code: ClassVar[str] = "MP402"
    name: ClassVar[str] = "tensor-core-alignment"
    certainty: ClassVar[Certainty] = Certainty.READ

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for the layer with most FLOPs; the others are counted."""
        share, layers = misaligned(capture, FP16_TILE)
        if share <= _NOTICED:
            return
        worst = layers[0]
        to = tuple(padded(size, FP16_TILE) for size in (worst.features_in, worst.features_out))
        others = f", and {len(layers) - 1} more" if len(layers) > 1 else ""
        yield self.finding(
            "info",
            worst.name,
            f"{share * 100:.0f} % of the products' FLOPs are in layers whose channels are no multiples of 8: "
            f"{worst.name} ({worst.features_in} to {worst.features_out}){others}",
            f"pad {worst.name} to {to[0]} and {to[1]}",
            {"flop_share": share, "limit": _NOTICED, "layers": len(layers)},
            widened(worst, FP16_TILE),
        )


class ModelStateMemory(RunCheck):
    """Weights, gradients and optimizer state are most of the memory, and mixed precision does not shrink them.

    Why it is bad: it is not, but it ends the hope for half the memory: autocast halves activations. State is 16 bytes a
    parameter with Adam, in FP32 and in mixed precision, and FP16 copies of the weights come on top.

    Threshold: information: state is more than half of the FP32 run's peak.

    Remedy: a smaller state: SGD, an 8-bit optimizer, sharding; activation checkpointing shrinks the rest.

    Source: measured at the peak of a recorded step; (S + A/2) / (S + A) of state S and activations A.
    """

    code: ClassVar[str] = "MP403"
    name: ClassVar[str] = "model-state-memory"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one."""
        uses = {use.arm: use for use in diagnosis.verification.costs.memory} if diagnosis.verification else {}
        fp32, fp16 = uses.get(BASELINE), uses.get(FP16)
        if fp32 is None or fp32.split is None or not fp32.split.total:
            return
        share = fp32.split.state_bytes / fp32.split.total
        half = why_not_half(fp32, fp16) if fp16 is not None else None
        if share > 0.5:
            so = f": FP16 peaks at {half.ratio:.2f} of FP32's, {half.foretold:.2f} at best" if half else ""
            yield self.finding(
                "info",
                "memory",
                f"{share * 100:.0f} % of FP32's peak is weights, gradients and optimizer state, which stay FP32{so}",
                "shrink the state: another optimizer, or sharding",
                {
                    "state_share": share,
                    "limit": 0.5,
                    "state_bytes": fp32.split.state_bytes,
                    "peak_bytes": fp32.split.total,
                    "ratio": half.ratio if half else None,
                    "foretold": half.foretold if half else None,
                },
            )


class LowProductShare(RunCheck):
    """Less than half of the GPU's time is in matrix products and convolutions, all that tensor cores speed up.

    Why it is bad: it bounds the speed-up (Amdahl): with a share p of the time in products that become r times as fast,
    the step becomes 1 / (1 - p + p/r) times as fast.

    Threshold: information: products are less than 50 % of the kernel time of a traced FP32 step (of an FP16 step where
    only that was traced).

    Remedy: torch.compile fuses the rest; channels_last saves transpositions; a fused optimizer.

    Source: traced kernels; r from the ceilings measured on this GPU.
    """

    code: ClassVar[str] = "MP404"
    name: ClassVar[str] = "low-product-share"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one."""
        arm = _traced(diagnosis, BASELINE) or _traced(diagnosis, FP16)
        if arm is None or arm.time is None or arm.time.matrix_share >= 0.5 or diagnosis.verification is None:
            return
        share, ceilings = arm.time.matrix_share, diagnosis.verification.costs.ceilings
        speeds = ceilings.tflops if ceilings is not None else {}
        faster = speeds["FP16"] / speeds["FP32"] if speeds.get("FP16") and speeds.get("FP32") else None
        bound = 1 / (1 - share + share / faster) if faster and arm.arm == BASELINE else None
        at_best = f": a step can become {bound:.2f} times as fast at best" if bound else ""
        yield self.finding(
            "info",
            "speed",
            f"matrix products and convolutions take {share * 100:.0f} % of the {arm.arm} step's kernel time{at_best}",
            "fuse what is between the products: torch.compile, a fused optimizer",
            {"matrix_share": share, "limit": 0.5, "products_faster": faster, "bound": bound},
            "model = torch.compile(model)\n",
        )


class LatencyBound(RunCheck):
    """FP16 is hardly faster here, or the GPU waits for the host.

    Why it is bad: kernels that are too small for the GPU, or a host that is too slow to launch them, take as long in
    FP16 as in FP32; autocast's casts come on top. TF32 has no casts and no loss scale: where it is as fast, that is
    said.

    Threshold: information: a speed-up below 1.1, or a GPU that is busy less than 60 % of an FP16 step.

    Remedy: a larger batch, CUDA graphs or torch.compile(mode="reduce-overhead"), a quicker loader. Where
    torch.compile was timed, in its default mode, its result stands instead.

    Source: proposed by mpdiag, after NVIDIA's DeepLearningExamples, where small batches gain nothing (ResNet-50 at 1,
    Tacotron 2 at 0.84 times).
    """

    code: ClassVar[str] = "MP405"
    name: ClassVar[str] = "latency-bound"
    certainty: ClassVar[Certainty] = Certainty.MEASURED

    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """At most one."""
        run = diagnosis.verification
        timed = step_ratio(run, FP16)
        ratio = timed.difference if timed is not None and timed.verdict in _DECIDED else None
        traced = _traced(diagnosis, FP16)
        busy = min(1.0, traced.time.busy_share) if traced is not None and traced.time is not None else None
        speedup = 1 / ratio if ratio else None
        idle = busy is not None and busy < 0.6
        if idle or (speedup is not None and speedup < 1.1):
            told = [f"FP16 is {speedup:.2f} times as fast as FP32"] if speedup is not None else []
            whose = "its step" if told else "an FP16 step"
            told += [f"the GPU is busy {busy * 100:.0f} % of {whose}"] if busy is not None else []
            tf32, compiled = as_fast_in_tf32(run, FP16), compiled_step(run)
            beside = [tf32_words(tf32)] if tf32 is not None else []
            beside += [compiled_words(compiled)] if compiled is not None else []
            ways, code = "a larger batch, torch.compile, CUDA graphs", _COMPILE
            if compiled is not None:
                ways = f"{'torch.compile, then ' if compiled.faster else ''}a larger batch, CUDA graphs"
                code = _COMPILE if compiled.faster else _GRAPHS
            yield self.finding(
                "info",
                "speed",
                "; ".join([" and ".join(told), *beside]),
                f"give the GPU more at a time: {ways}",
                {
                    "speedup": speedup,
                    "busy": busy,
                    "limit": 1.1,
                    "over_tf32": tf32.difference if tf32 is not None else None,
                    "compiled_over_fp32": compiled.over_fp32 if compiled is not None else None,
                },
                code,
            )


# the first is what the arm fp16-compile is timed with; the second nobody times
_COMPILE = 'model = torch.compile(model)  # mode="reduce-overhead" adds CUDA graphs\n'
_GRAPHS = 'model = torch.compile(model, mode="reduce-overhead")  # CUDA graphs: not timed, the default mode was\n'


def _traced(diagnosis: Diagnosis, arm: str) -> ArmKernels | None:
    traced = diagnosis.verification.costs.kernels if diagnosis.verification else ()
    return next((kernels for kernels in traced if kernels.arm == arm and kernels.time is not None), None)
