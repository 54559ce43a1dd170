"""Runs of a verification made by hand, and what the checks find in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capture_samples import HEALTHY, capture
from mpdiag.advice import advise
from mpdiag.advice.checks import BY_CODE
from mpdiag.diagnosis import Advice, Finding, Trial, Verification

ADVICE = advise(capture(*HEALTHY))


def trial(arm: str = "fp16", scales: tuple[float, ...] | None = None, **more: Any) -> Trial:
    fields: dict[str, Any] = {"losses": (1.0, 0.5), "steps": 100, "seed": 0, "emulated": True, "precision": arm} | more
    return Trial(arm=arm, loss_scales_log2=scales, final_log2_scale=scales[-1] if scales else None, **fields)


def verification(*trials: Trial, **more: Any) -> Verification:
    return Verification((trial("fp32"), *trials), (), "go", "r", **more)


def found(code: str, *trials: Trial, advice: Advice = ADVICE, **more: Any) -> list[Finding]:
    return list(BY_CODE[code].find(verification(*trials, **more), advice))


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


def said(code: str) -> Advice:
    return replace(ADVICE, findings=(Finding(code, "n", "error", "s", "m", {}, "r"),))


def skipping(steps: int, skips: int, growths: int = 0) -> tuple[float, ...]:
    """A scale after each step: 20 of warm-up, then the growths, the skips, and nothing."""
    scales = [30.0] * 21
    for change in [1.0] * growths + [-1.0] * skips + [0.0] * (steps - skips - growths):
        scales.append(scales[-1] + change)
    return tuple(scales)
