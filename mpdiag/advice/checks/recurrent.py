"""MP309: recurrent layers have no BF16 under autocast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import Check, island
from mpdiag.diagnosis import Advice, Capture, Finding, LossScaleAdvice, TensorKind
from mpdiag.finding import Certainty

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})  # torch's modules over whole sequences; cells follow autocast's type
NAMED = 3


class RecurrentInFp16(Check):
    """nn.LSTM, nn.GRU and nn.RNN compute in FP16 on a GPU under BF16 autocast too.

    Why it is bad: torch hands these layers to cuDNN in FP16, whatever type autocast is opened with. So BF16 is no way
    out of FP16's range in them, and as BF16 trains without a loss scale, their gradients underflow as FP16's do without
    one. Measured on an H100 with torch 2.11, on an LSTM language model under BF16 autocast: 94 % of the kernel time is
    in FP16, and the first gradients are 5.5 % off FP32's, as FP16's without a loss scale are; with one they are 0.04 %
    off.

    Threshold: information: such a module gives FP16 under autocast. nn.LSTMCell and the like follow autocast's type.
    With a cuDNN before 9.13, or a torch from before pytorch#164411, so do all of them where their input is BF16
    already; an embedding's is FP32.

    Remedy: train in FP16 with its loss scale, or in BF16 with an FP32 island around the module: torch computes it in
    TF32 there, unless it is told otherwise.

    Source: torch's ATen/cudnn/AutocastRNN.cpp (the casts to kHalf) and ATen/native/RNN.cpp (what goes to cuDNN);
    pytorch#42385, pytorch#164411; reports/paper/lstm_lm.json.
    """

    code: ClassVar[str] = "MP309"
    name: ClassVar[str] = "recurrent-in-fp16"
    certainty: ClassVar[Certainty] = Certainty.READ
    has_limit: ClassVar[bool] = False

    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """At most one, for all such modules."""
        found = [t for t in capture.of_kind(TensorKind.ACTIVATION) if t.module_type in RECURRENT]
        half = [t for t in found if t.amp_dtype in ("float16", None)]  # None: the FP16 iteration raised before it
        if not half:
            return
        names = [t.name for t in half]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        each = "computes" if len(names) == 1 else "compute"
        yield self.finding(
            "info",
            names[0],
            f"{', '.join(names[:NAMED])}{more} {each} in FP16 under BF16 autocast too, and there without a loss scale",
            "train in FP16 with its loss scale, or keep the recurrent layers in FP32 under BF16",
            {"modules": len(names), "module_type": half[0].module_type},
            island(names[0]),
            half[0].source,
        )


def recurrent_in_fp16(advice: Advice) -> str | None:
    """What BF16 does not cure, "lstm and 2 more compute in FP16": the modules of MP309; None where there are none."""
    found = next((f for f in advice.findings if f.code == RecurrentInFp16.code), None)
    if found is None:
        return None
    more = found.evidence.get("modules")
    others = f" and {more - 1} more compute" if isinstance(more, int) and more > 1 else " computes"
    return f"{found.subject}{others} in FP16"
