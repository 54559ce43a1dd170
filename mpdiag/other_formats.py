"""What other formats than FP16 would make of the same tensors; saved as advice.other_formats."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FormatForecast:
    """One format for one half of the training step, foretold from the exponents counted in FP32.

    part: "forward" (activations and weights) or "backward" (activation gradients, the operands of its products).
    scaling: "none", or "per tensor": each tensor times the power of two that takes its largest magnitude
    just below the format's. tensors: how many were looked at; underflow: share of their finite non-zero elements that
    become zero; energy_lost: the share of its squared norm that the worst tensor loses; overflow: share that overflows.
    losing: tensors of which more than 1 % becomes zero; worst: the one that loses most, None where none does.
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
