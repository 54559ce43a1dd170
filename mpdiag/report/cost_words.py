"""What an arm costs beside FP32, in lines for the terminal: time, memory, tensor cores, energy. Plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mpdiag.arm_names import BASELINE, FP32_CONFIGURED, TF32
from mpdiag.costs.kernels import ArmKernels
from mpdiag.diagnosis import Comparison, Verification
from mpdiag.report.html_numbers import share, size
from mpdiag.report.memory_line import memory_words
from mpdiag.report.read_again import second_reading
from mpdiag.report.tensor_core_words import tensor_core_line, waiting_words

REFERENCES = {BASELINE: "IEEE FP32", FP32_CONFIGURED: "your present settings", TF32: "TF32"}
"""What a step time is held against, and its words."""

CONTROL = "again"
"""The arm of the comparison of the baseline with itself."""

STEP_TIME, PEAK_MEMORY, ENERGY = "step_time_ms", "peak_memory_bytes", "energy_joules_per_sample"
MOSTLY_IDLE = 0.5  # of the energy: the ratio then says more about the time than about the arithmetic


def lead_arm(run: Verification) -> str:
    """The arm whose gains are told: the one to train with, FP16 where none is shown."""
    return run.train_with or "fp16"


def ratio_of(run: Verification, quantity: str, arm: str, baseline: str = BASELINE) -> Comparison | None:
    """An arm's ratio to a baseline; None where it was not measured."""
    found = (c for c in run.comparisons if (c.quantity, c.candidate, c.baseline) == (quantity, arm, baseline))
    return next((c for c in found if c.difference is not None and c.verdict != "not-measured"), None)


def cost_lines(run: Verification) -> list[tuple[str, str]]:
    """(topic, text) of what was measured of the arm to train with; empty on a CPU."""
    arm = lead_arm(run)
    lines = (
        ("time", _time(run, arm)),
        ("memory", memory_words(run.costs) or _memory(run, arm)),
        ("tensor", tensor_words(run.costs.kernels, arm)),
        ("energy", _energy(run, arm)),
    )
    return [(topic, text) for topic, text in lines if text is not None]


def speed_words(c: Comparison) -> str:
    """A ratio of step times as people say it; undecided ones without the reason."""
    against = REFERENCES.get(c.baseline, c.baseline)
    ratio = c.difference or 1.0
    if c.verdict == "equivalent":
        return f"as fast as {against} within 3 %"
    if c.verdict == "inconclusive":
        return f"undecided against {against}, x{ratio:.2f} its time{between(c)}"
    if ratio > 1:
        return f"{ratio:.2f} times as long as {against}{between(c)}"
    faster = replace(c, interval=c.interval and (1 / c.interval[1], 1 / c.interval[0]))
    return f"{1 / ratio:.2f} times as fast as {against}{between(faster)}"


def between(c: Comparison) -> str:
    """A cost's interval in brackets, empty where it has none."""
    if not c.interval:
        return ""
    digits = 2 if f"{c.interval[0]:.2f}" != f"{c.interval[1]:.2f}" else 3  # 2.16..2.16 reads like a slip
    return f" (95 % within {c.interval[0]:.{digits}f}..{c.interval[1]:.{digits}f})"


def tensor_words(kernels: Sequence[ArmKernels], arm: str) -> str | None:
    """What the evidence allows to claim of an arm; of all arms where this one has no ladder."""
    ladder = next((each.ladder for each in kernels if each.arm == arm), None)
    if ladder is None:
        return tensor_core_line(kernels)
    doubts = len(ladder.disagreements)
    told = f"{arm}: {ladder.claim}" + (f" ({ladder.reached})" if ladder.reached else "")
    return told + (f"; {doubts} contradiction{'s' if doubts > 1 else ''} between the evidence" if doubts else "")


def _time(run: Verification, arm: str) -> str | None:
    first = ratio_of(run, STEP_TIME, arm)
    if first is None:
        return None
    present = ratio_of(run, STEP_TIME, arm, FP32_CONFIGURED) or ratio_of(run, STEP_TIME, arm, TF32)
    told = [c for c in (first, present) if c is not None]
    text = f"{_named(arm)}{first.baseline_value:.4g} -> {first.candidate_value:.4g} ms a step: "
    text += ", ".join(speed_words(c) for c in told)
    reasons = dict.fromkeys(c.reason for c in told if c.verdict == "inconclusive" and c.reason)
    again, host = second_reading(run, first), launch_bound(run.costs.kernels, arm)
    tail = [*reasons, *(words for words in (again, host) if words)]
    return "; ".join((text, *tail))


def launch_bound(kernels: Sequence[ArmKernels], arm: str) -> str | None:
    """That the GPU waits for the host, where the trace found that."""
    return next((waiting_words(each) for each in kernels if each.arm == arm), None)


def _memory(run: Verification, arm: str) -> str | None:
    c = ratio_of(run, PEAK_MEMORY, arm)
    if c is None or c.baseline_value is None or c.candidate_value is None:
        return None
    return f"{_named(arm)}{size(c.baseline_value)} -> {size(c.candidate_value)}, x{c.difference:.2f}"


def _energy(run: Verification, arm: str) -> str | None:
    c = ratio_of(run, ENERGY, arm)
    if c is None:
        return None
    text = f"{_named(arm)}{c.baseline_value:.3g} -> {c.candidate_value:.3g} J a sample, "
    text += f"x{c.difference:.2f} of {REFERENCES[BASELINE]}'s{between(c)}"
    idle = next((use.idle_share for use in run.costs.energy if use.arm == arm), None)
    tail = [c.reason] if c.verdict == "inconclusive" and c.reason else []
    if idle is not None and idle >= MOSTLY_IDLE:
        tail.append(f"{share(idle)} of it is drawn by an idle GPU too")
    return "; ".join((text, *tail))


def _named(arm: str) -> str:
    return "" if arm == "fp16" else f"{arm}: "
