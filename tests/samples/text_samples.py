"""Diagnoses for the text reports, and what a test reads of a report's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import report_samples as samples
from mpdiag.diagnosis import Diagnosis, Trial, Verification
from mpdiag.report import terminal
from mpdiag.report.digest import digest_of
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.verdict import decide

COSTS = ("step_time_ms", "peak_memory_bytes", "energy_joules_per_sample")


def full() -> Diagnosis:
    """The whole sample; its costs are ratios."""
    diagnosis = samples.full()
    assert diagnosis.verification is not None
    comparisons = tuple(replace(c, is_ratio=c.quantity in COSTS) for c in diagnosis.verification.comparisons)
    return replace(diagnosis, verification=replace(diagnosis.verification, comparisons=comparisons))


def trial(arm: str, seed: int, losses: tuple[float, ...], **more: Any) -> Trial:
    reasons = dict.fromkeys(("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample"), NO_GPU)
    fields = {"metric": {"accuracy": 0.9 + seed / 100}, "not_measured": reasons} | more
    return Trial(arm, arm.upper(), arm != "fp32", seed, len(losses), losses, **fields)


NO_GPU = "needs a CUDA GPU; this run was on the CPU"


def on_a_laptop(**fp16: Any) -> Diagnosis:
    """Verified on a CPU with three seeds; `fp16` changes that arm's last trial."""
    trials = [trial("fp32", s, (2.0, 1.0 + s / 10)) for s in range(3)]
    hits = [{"accuracy": 0.9 + s / 100 + (0.001 if s == 1 else 0.0)} for s in range(3)]
    trials += [trial("fp16", s, (2.0, 1.001 + s / 10), skipped_steps=1, metric=hits[s]) for s in range(3)]
    trials[-1] = replace(trials[-1], **fp16)
    diagnosis = replace(full(), environment=samples.environment(gpu=None), target=samples.minimal().target)
    comparisons = compare_arms(trials, True)
    made = Verification(tuple(trials), comparisons, *decide(diagnosis.advice, trials, comparisons), train_with="fp16")
    return replace(diagnosis, verification=made)


SAMPLES: dict[str, Callable[[], Diagnosis]] = {
    "full": full,
    "minimal": samples.minimal,
    "laptop": on_a_laptop,
    "gpu": samples.on_gpu,
}


def text(diagnosis: Diagnosis, width: int = 100) -> str:
    return terminal.render(diagnosis, width=width)


def flat(rendered: str) -> str:
    """Rendered text without its line breaks."""
    return " ".join(rendered.split())


def topics(diagnosis: Diagnosis) -> list[str]:
    return [topic for topic, _ in digest_of(diagnosis).why]


SCALE = samples.full().advice.loss_scale
