"""What other formats than FP16 would make of the same tensors, and which one to train in; saved in the advice."""

from __future__ import annotations

from dataclasses import dataclass, field

FP16, FP16_ISLANDS, BF16, TF32, FP32 = "FP16", "FP16 with FP32 islands", "BF16", "TF32", "FP32"
"""What a choice may say."""

BF16_SNIPPET = """\
with torch.autocast("cuda", dtype=torch.bfloat16):
    loss = compute_loss(model, batch)
loss.backward()  # BF16 has FP32's range: no loss scale
optimizer.step()
optimizer.zero_grad()
"""
TF32_SNIPPET = """\
torch.set_float32_matmul_precision("high")  # TF32 products; convolutions have them by default
loss = compute_loss(model, batch)
loss.backward()
optimizer.step()
optimizer.zero_grad()
"""


@dataclass(frozen=True)
class FormatForecast:
    """One format for one half of the training step, foretold from the exponents counted in FP32.

    part: "forward" (activations and weights) or "backward" (activation gradients, the operands of its products).
    scaling: "none"; "per tensor", each tensor times the power of two that takes its largest magnitude just below the
    format's; or "per block of" 32 or 16 elements. tensors: how many were looked at; underflow: share of their finite
    non-zero elements that become zero; energy_lost: the share of its squared norm that the worst tensor loses;
    overflow: share that overflows. losing: tensors of which more becomes zero than the format's recipes bear (1 %; of
    NVFP4 15 %); worst: the one that loses most, None where none does. lost: the share that becomes zero of each tensor
    that loses any, by "name (kind)", worst first. Several stretches of training are judged each for itself, with
    scales of their own: a tensor's worst counts, worst_step is the first step of its stretch (None where there was
    one). steps: how many were counted, all of a stretch or, in blocks, its first; along: what blocks run along.
    noise_db: about how far rounding noise lies below the signal, in the tensor where it is nearest; None where
    nothing was left to compare. energy_lost is an estimate too.
    """

    format: str
    part: str
    scaling: str
    tensors: int
    significant_bits: int
    underflow: float
    energy_lost: float
    overflow: float
    losing: int
    worst: str | None
    worst_underflow: float
    verdict: str
    lost: dict[str, float] = field(default_factory=dict)
    noise_db: float | None = None
    steps: int | None = None
    along: str | None = None
    worst_step: int | None = None

    @property
    def fits(self) -> bool:
        """Whether no tensor overflows or loses more than the recipes bear."""
        return not self.losing and not self.overflow


@dataclass(frozen=True)
class FormatOption:
    """One format, and why it is or is not the one to train in.

    on_this_gpu: whether its tensor cores multiply in it; None where no GPU was seen, or not one of NVIDIA's.
    """

    format: str
    on_this_gpu: bool | None
    why: str


@dataclass(frozen=True)
class FormatChoice:
    """The format to train this job in on this GPU.

    chosen: "FP16", "FP16 with FP32 islands", "BF16", "TF32" or "FP32". verified: whether it was trained beside FP32
    here and kept up; else it is only foretold. options: each format with its own line.
    """

    chosen: str
    verified: bool
    reason: str
    options: tuple[FormatOption, ...] = ()
