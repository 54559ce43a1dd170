"""MP3xx: operators that have to compute in FP32."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, island, number
from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice, TensorKind
from mpdiag.finding import Certainty
from mpdiag.formats import FP16

_SENSITIVE = re.compile(r"softmax|norm|loss", re.IGNORECASE)
_FP32_INSIDE = re.compile(r"(Batch|Instance|SyncBatch)Norm\dd?|SyncBatchNorm|Normalize")
# torch's batch and instance norms keep FP32 statistics whatever the type of their input
_TORCH_NORM = re.compile(r"(Batch|Instance|Layer|Group|RMS)Norm(\dd)?|LocalResponseNorm")
_LINE = re.compile(r", at (\S.*:\d+)$")  # as MpdiagError.placed ends
_TOO_LARGE = "cannot be converted to type c10::Half without overflow"  # torch's words for a constant beyond FP16
_MASK = "for a mask torch.finfo(scores.dtype).min (MP305, which `--depth ops` shows)"
_NO_HALF_HERE = ("not implemented for 'Half'", "Unsupported dtype Half")


class MustStayFp32(Check):
    """A softmax, norm or loss module gives FP16 under autocast.

    Why it is bad: torch's own versions of these run in FP32 under autocast because they sum squares or exponentials:
    exp overflows FP16 above 11.09, a square above 255.9, and tiny probabilities become zero. A module of this kind
    whose output is FP16 was written by hand from operators autocast leaves in FP16.

    Threshold: class name says softmax, norm or loss; output FP16 under autocast; not torch's batch or instance norm,
    which keep FP32 statistics, nor a block that has one of torch's norms inside.

    Remedy: torch's functional version, or an FP32 island.

    Source: torch's CUDA autocast lists; Micikevicius et al., arXiv 1710.03740, section 3.3.
    """

    code: ClassVar[str] = "MP301"
    name: ClassVar[str] = "must-stay-fp32"
    certainty: ClassVar[Certainty] = Certainty.SUSPECTED
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """One per module."""
        tables = capture.of_kind(TensorKind.ACTIVATION)
        norms = [table.name for table in tables if _TORCH_NORM.fullmatch(table.module_type)]
        for table in tables:
            kind = table.module_type
            by_hand = _SENSITIVE.search(kind) and not _FP32_INSIDE.search(kind)
            block = any(name.startswith(f"{table.name}.") for name in norms)
            if table.amp_dtype == "float16" and by_hand and not block:
                yield self.finding(
                    "warning",
                    table.name,
                    f"{table.name} ({kind}) computes in FP16 under autocast",
                    "use torch's own function, or keep this module in FP32",
                    {"amp_dtype": table.amp_dtype, "abs_max": table.abs_max},
                    island(table.name),
                    table.source,
                )


class LossInHalf(Check):
    """The loss itself is FP16 under autocast.

    Why it is bad: scaled by 2^16, every loss of 1 or more is infinite in FP16, so every step is skipped.

    Threshold: error when the largest loss seen times the recommended scale (2^16 where there is none) reaches 65520;
    warning otherwise.

    Remedy: compute the loss in FP32: `loss_fn(output.float(), target)`.

    Source: FP16 limits; measured with torch.amp.GradScaler.
    """

    code: ClassVar[str] = "MP302"
    name: ClassVar[str] = "loss-in-fp16"
    certainty: ClassVar[Certainty] = Certainty.FORETOLD

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        if capture.loss_amp_dtype != "float16":
            return
        largest = max((abs(v) for v in capture.losses if math.isfinite(v)), default=0.0)
        k = 16 if loss_scale.log2_scale is None else loss_scale.log2_scale
        over = largest * 2.0**k >= FP16.overflows_at
        yield self.finding(
            "error" if over else "warning",
            "the loss",
            f"the loss is FP16 under autocast; its largest value {number(largest)} times 2^{k} "
            + ("overflows" if over else "still fits"),
            "compute the loss from FP32 outputs",
            {"loss": largest, "log2_scale": k, "limit": FP16.overflows_at},
            "loss = loss_fn(output.float(), target)",
        )


class BceUnsafe(Check):
    """binary_cross_entropy on probabilities, which CUDA autocast refuses to run.

    Why it is bad: the first forward pass under autocast raises. The gradient of log(p) near 0 and 1 has a range FP16
    cannot hold.

    Threshold: none; autocast raises.

    Remedy: take logits: BCEWithLogitsLoss, and no sigmoid before it.

    Source: torch's AMP documentation, "Prefer binary_cross_entropy_with_logits over binary_cross_entropy".
    """

    code: ClassVar[str] = "MP303"
    name: ClassVar[str] = "bce-unsafe"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        if capture.amp_error and "binary_cross_entropy" in capture.amp_error:
            yield self.finding(
                "error",
                "the loss",
                "binary_cross_entropy raises under CUDA autocast",
                "use binary_cross_entropy_with_logits on the output before its sigmoid",
                {"error": capture.amp_error},
                "loss = F.binary_cross_entropy_with_logits(logits, target)",
            )


class AutocastFails(Check):
    """One iteration under FP16 autocast raises, though FP32 runs.

    Why it is bad: the job cannot train in mixed precision as it stands. Usual causes: an operator without an FP16
    kernel, a custom function that mixes types, a tensor written in place with another type.

    Threshold: none; it raised.

    Remedy: an FP32 island around the line that is named, or `torch.amp.custom_fwd` on a custom function. `--depth ops`
    names the operator and the types it was given; a constant beyond FP16, such as a mask's -1e9, is MP305.

    Source: the run itself; its error is the evidence.
    """

    code: ClassVar[str] = "MP304"
    name: ClassVar[str] = "autocast-fails"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one."""
        no_half = any(words in (capture.amp_error or "") for words in _NO_HALF_HERE)
        if capture.amp_error and no_half and capture.device == "cpu":
            yield self.finding(
                "info",
                "the emulation",
                f"this CPU has no FP16 version of an operator, so FP16 could not be emulated: {capture.amp_error}",
                "scan on a CUDA GPU, which may well have one",
                {"error": capture.amp_error},
                "mpdiag scan model.py --device cuda\n",
            )
        elif capture.amp_error and "binary_cross_entropy" not in capture.amp_error:
            line = _LINE.search(capture.amp_error)
            remedy = f"mend {line[1] if line else 'what the error names'}, or put an FP32 island around it"
            if capture.operations is None:
                remedy += "; `--depth ops` names the operator and its types"
            if _TOO_LARGE in capture.amp_error:
                remedy = f"write a smaller constant at {line[1] if line else 'the line that raises'}; " + _MASK
            yield self.finding(
                "error",
                "the forward pass",
                f"an FP16 autocast iteration fails: {capture.amp_error}",
                remedy,
                {"error": capture.amp_error},
                'with torch.autocast("cuda", enabled=False):\n    y = op(x.float())\n'
                if _TOO_LARGE not in capture.amp_error
                else "scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)\n",
                line[1] if line else None,
            )
