"""The configurations to paste as plain text, one under the other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpdiag.diagnosis import Diagnosis
from mpdiag.other_formats import FP32
from mpdiag.report.html_summary import why_no_advice

if TYPE_CHECKING:
    from mpdiag.advice.configs import Config  # the door asks for them; here they are only drawn

WIDTH = 110  # the terminal report's


def render(diagnosis: Diagnosis, configs: Sequence[Config]) -> str:
    """Each title underlined, its text as it is pasted, its note; one sentence where there is nothing to paste."""
    if not configs:
        return f"No code to paste: {_why_none(diagnosis)}\n"
    return "\n".join(_section(config) for config in configs)


def _section(config: Config) -> str:
    note = textwrap.fill(f"Note: {config.note}", WIDTH, break_on_hyphens=False) + "\n" if config.note else ""
    gap = "\n" if note else ""
    return f"{config.title}\n{'=' * len(config.title)}\n\n{config.text}{gap}{note}"


def _why_none(diagnosis: Diagnosis) -> str:
    advice = diagnosis.advice
    if diagnosis.verification is not None and diagnosis.verification.train_with is None:
        return f"neither FP16 nor BF16 has been shown to train like FP32. {diagnosis.verification.reason}"
    if advice is None:
        return why_no_advice(diagnosis)
    if diagnosis.train_in == FP32 and advice.format_choice is not None:
        return f"the advice is to stay in FP32: {advice.format_choice.reason}"
    return f"no loss scale is known for FP16: {advice.loss_scale.reason}"
