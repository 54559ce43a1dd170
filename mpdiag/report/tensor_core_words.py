"""Tensor cores in words: one line for the terminal, and what the page says of an arm. Plain text."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.costs.kernels import LAUNCH_BOUND, WAITING, ArmKernels, KernelTime, Ladder, LayerUse, WhyNot
from mpdiag.report.html_numbers import share

NOTABLE_GAIN = 0.01  # of the kernel time: a smaller gain is not worth a line
APART = 1.05  # of one time over another that should be the same or less: beyond it the two are not the same
TILES = 1.06  # counted over formula, of a product of 256 rows of 1024 on an H100: it is computed in whole tiles


def tensor_core_line(kernels: Sequence[ArmKernels]) -> str | None:
    """One line on all arms: each one's share of kernel time on tensor cores; None where nothing was traced."""
    parts = [f"{each.arm} {_of(each)}" for each in kernels if each.time is not None]
    if not parts:
        return None
    doubts = sum(len(each.ladder.disagreements) for each in kernels if each.ladder)
    tail = f"; {doubts} contradiction{'s' if doubts > 1 else ''} between the evidence" if doubts else ""
    return f"GPU kernel time on tensor cores: {', '.join(parts)}{tail}"


def _of(arm: ArmKernels) -> str:
    assert arm.time is not None
    told = share(arm.time.by_class.get("yes", 0.0))
    unclear = arm.time.by_class.get("ambiguous", 0.0) + arm.time.by_class.get("unknown", 0.0)
    proof = f" ({arm.ladder.reached})" if arm.ladder and arm.ladder.reached else ""
    return told + (f" + {share(unclear)} not known" if unclear >= 0.0005 else "") + proof  # what prints as 0.1 %


def kernel_time_words(time: KernelTime) -> str:
    """All kernels of a step added up, and how long that was by the clock where they overlap."""
    text = f"{time.total_ms:.3g} ms of kernels a step"
    if time.total_ms <= APART * time.busy_ms:
        return text
    return f"{text}, which overlap on several streams and take {time.busy_ms:.3g} ms by the clock"


def busy_words(time: KernelTime) -> str:
    """How much of the step the GPU works, or that the trace and the step are not of one length."""
    step = "traced step" if time.step_traced else "step"
    if time.busy_share <= APART:
        return f"the GPU is busy {share(min(1.0, time.busy_share))} of the {step}"
    return (
        f"the GPU's work took {time.busy_share:.2f} times the step that was timed: the trace and the timed step "
        "disagree, so that neither is sure"
    )


def counted_words(ladder: Ladder | None) -> str | None:
    """What is known of a count of the hardware that is not what formulas give; None where both are one, or missing."""
    ratio = ladder.of_formulas if ladder is not None else None
    if ratio is None or f"{ratio:.2f}" == "1.00":
        return None
    if ratio < 1:
        return "Less than by formula: what runs on CUDA cores or is skipped, as masked attention, is not in the count"
    known = "More than by formula: products are padded to tiles, and small ones count up to 6 % more"
    return known if ratio <= TILES else f"{known}; the rest is not explained"


def missed(arm: ArmKernels) -> list[tuple[LayerUse, WhyNot]]:
    """The layers with a gain worth naming, largest first; none in a step that waits for the host."""
    if waits(arm):
        return []
    total = arm.time.total_ms if arm.time else 0.0
    found = [(layer, why) for layer in arm.layers or () for why in layer.why_not]
    worth = [(layer, why) for layer, why in found if (why.gain_ms or 0.0) >= NOTABLE_GAIN * total > 0]
    return sorted(worth, key=lambda pair: -(pair[1].gain_ms or 0.0))


def answer_in_words(answer: bool | None) -> str:
    """A level's answer: yes, no, cannot tell."""
    return {True: "yes", False: "no", None: "cannot tell"}[answer]


def waits(arm: ArmKernels) -> bool:
    """Whether the arm's GPU waits for the host, so that shorter kernels shorten its step little or not at all."""
    return any(each.code in WAITING for each in arm.findings)


def waiting_words(arm: ArmKernels) -> str | None:
    """That the GPU waits for the host, and whether that is for want of launches; None where it does not."""
    if arm.time is None or not waits(arm):
        return None
    launches = any(each.code == LAUNCH_BOUND for each in arm.findings)
    who = "launch bound, the GPU is" if launches else "the GPU waits for the host, it is"
    return f"{who} busy {share(arm.time.busy_share)} of the step"


def gain_in_words(why: WhyNot, waiting: bool = False) -> str:
    """A gain with what it is of and how it is known, or why there is none. waiting: the step waits for the host."""
    if why.gain_ms is None:
        return why.gain_from
    if why.gain_ms == 0:
        return "nothing to gain"
    amount = f"{why.gain_ms:.3g} ms" if why.gain_ms >= 0.01 else "<0.01 ms"
    if why.gain_from == "arm":
        return f"{amount} of a step, measured with an arm of its own"
    text = {
        "bound": f"at most {amount} of kernel time a step",
        "formula": f"at most {amount} of kernel time a step, by formula",
    }.get(why.gain_from, f"{amount} of kernel time a step, {why.gain_from}")
    return f"{text}, and little or none of the step, whose GPU waits for the host" if waiting else text
