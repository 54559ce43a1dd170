"""Memory in words: why mixed precision does not halve it. Plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.arm_names import BASELINE
from mpdiag.costs.memory import HALF_TYPES, MemorySplit, MemoryUse, NotHalf, grouped, why_not_half
from mpdiag.report.html_numbers import size

HALVED = 0.505  # a ratio up to this prints as 0.50
NOTABLE = 0.01  # of FP32's peak: less does not move the ratio's second digit
OF_THE_GAP = 0.1  # a small gap has small reasons
KEPT = 0.99  # of FP32's bytes: a part this large did not change its type
BESIDE = 0.1  # of the largest part of the state: 0.5 MiB of gradients beside 53 MiB of weights is not what stays
FAR = 0.25  # of FP32's bytes: a change of type leaves half; a part with a quarter or less shrank for another reason
BELOW_HALF = 0.495  # a ratio below this prints as less than 0.50
NEXT_TO_NOTHING = 100.0  # times as much as FP32 has is no multiple, it is a part that FP32 hardly has
ONE = {
    "batch": "the batch takes",
    "workspace": "workspace takes",
    "optimizer state": "optimizer state takes",
    "allocator's rounding": "the allocator's rounding takes",
}
FP32 = "float32"
WHY_FP32 = " (norms, softmax, loss)"
STATE = ("weights", "gradients", "optimizer state")


@dataclass(frozen=True)
class Excess:
    """What an arm has in some parts beyond half of FP32's bytes; negative: it has less than half. brief: for a line."""

    text: str
    brief: str
    excess_bytes: float


@dataclass(frozen=True)
class HalfWords:
    """Why one arm's peak is not half of FP32's. rest_bytes: what the reasons leave of the gap, too small to tell.

    below: why it is less than half, where a part shrank by far more than a change of type does.
    """

    arm: str
    found: NotHalf
    gap_bytes: float
    reasons: tuple[Excess, ...]
    rest_bytes: float
    moments: str | None
    below: str | None = None

    @property
    def halved(self) -> bool:
        """Whether the peak is half, or less."""
        return self.found.ratio <= HALVED


def baseline_of(uses: Sequence[MemoryUse]) -> MemoryUse | None:
    """The arm that the others are held against: FP32's, where it was measured."""
    return next((use for use in uses if use.arm == BASELINE and use.peak_allocated_bytes), None)


def in_sixteen_bits(use: MemoryUse) -> bool:
    """Whether an arm computes in a 16-bit type, so that half of FP32's memory can be hoped for."""
    if use.precision.upper().startswith(("FP16", "BF16")):
        return True
    return use.split is not None and any(use.split.activations_bytes.get(dtype) for dtype in HALF_TYPES)


def half_words(uses: Sequence[MemoryUse]) -> list[HalfWords]:
    """For each 16-bit arm with a split of its own, beside FP32's."""
    baseline = baseline_of(uses)
    if baseline is None:
        return []
    made = [half_words_of(baseline, use) for use in uses if use is not baseline and in_sixteen_bits(use)]
    return [each for each in made if each is not None]


def half_words_of(baseline: MemoryUse, arm: MemoryUse) -> HalfWords | None:
    """For one arm; None where a split is missing."""
    found = why_not_half(baseline, arm)
    if found is None:
        return None
    assert baseline.split is not None
    assert arm.split is not None
    gap = arm.split.total - baseline.split.total / 2
    notable = min(NOTABLE * baseline.split.total, OF_THE_GAP * abs(gap))
    reasons = [each for each in _reasons(found, baseline.split, arm) if abs(each.excess_bytes) >= notable]
    reasons.sort(key=lambda each: -each.excess_bytes)
    told = sum(each.excess_bytes for each in reasons)
    below = _below_half(baseline.split, arm.split)
    return HalfWords(arm.arm, found, gap, tuple(reasons), gap - told, _moments(baseline, arm), below)


def lies(use: MemoryUse) -> str | None:
    """Where in the step the peak lies: "in backward, near layer4.2"."""
    if use.peak_phase is None:
        return None
    phase = use.peak_phase if use.peak_phase.startswith("before") else f"in {_the(use.peak_phase)}"
    return phase + (f", near {use.peak_near}" if use.peak_near else "")


def joined(names: Sequence[str]) -> str:
    """Names as people list them: a, b and c."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def times(mine: float | None, theirs: float | None) -> str | None:
    """A multiple of FP32's figure; None where FP32 has next to nothing: 1 MiB is ×687 of 1.5 KiB of rounding."""
    return None if mine is None or not theirs or mine >= NEXT_TO_NOTHING * theirs else f"×{mine / theirs:.2f}"


def grouped_remarks(told: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """(arm, text) with the arms of one text together."""
    found: dict[str, list[str]] = {}
    for arm, text in told:
        if arm not in found.setdefault(text, []):
            found[text].append(arm)
    return tuple((joined(arms), text) for text, arms in found.items())


def _the(phase: str) -> str:
    return f"the {phase}" if " " in phase else phase


def _reasons(found: NotHalf, theirs: MemorySplit, arm: MemoryUse) -> list[Excess]:
    assert arm.split is not None
    mine, had, excess = grouped(arm.split), grouped(theirs), dict(found.excess_bytes)
    whole = [name for name in STATE if excess.get(name, 0.0) > 0 and mine[name] >= KEPT * had[name]]
    kept = [name for name in whole if mine[name] >= BESIDE * max(mine[each] for each in whole)]
    made = []
    if kept:
        taken = sum(mine[name] for name in kept)
        stay = f"{joined(kept)} {'stays' if kept == ['optimizer state'] else 'stay'} in FP32"
        each = f"{taken / arm.parameters:.1f} bytes a parameter" if arm.parameters else None
        beyond = sum(excess.pop(name) for name in kept)
        text = ", ".join(filter(None, (size(taken), each)))
        made.append(Excess(f"{stay}: {text}", f"{stay} ({each or size(taken)})", beyond))
    for name, beyond in excess.items():
        half = f" where half is {size(had[name] / 2)}" if had[name] else ""
        made.append(Excess(*_told(name, size(mine[name]) + half, arm), beyond))
    return made


def _below_half(theirs: MemorySplit, mine: MemorySplit) -> str | None:
    """The part that shrank by far more than half, and what the ratio is without it; None where the peak is not below.

    Mostly the workspace: in FP32 cuDNN takes algorithms that need much of it, in FP16 others.
    """
    had, have = grouped(theirs), grouped(mine)
    if mine.total >= BELOW_HALF * theirs.total:
        return None
    shrunk = [n for n in had if have[n] <= FAR * had[n] and had[n] / 2 - have[n] >= NOTABLE * theirs.total]
    if not shrunk:
        return None
    name = max(shrunk, key=lambda n: had[n] / 2 - have[n])
    rest = (mine.total - have[name]) / (theirs.total - had[name]) if theirs.total > had[name] else 0.0
    what = "workspace, which kernels take to work in," if name == "workspace" else name
    left = size(have[name]) if have[name] else "nothing"
    return f"it is below half because {what} fell from {size(had[name])} to {left}; without that it is x{rest:.2f}"


def _told(name: str, amount: str, arm: MemoryUse) -> tuple[str, str]:
    """(text, brief) on one part. amount: its bytes, beside half of FP32's where FP32 has any."""
    split = arm.split
    assert split is not None
    if name == "autocast copies of weights":
        each = f", {split.autocast_copies_bytes / arm.parameters:.1f} bytes a parameter" if arm.parameters else ""
        kept = "16-bit copies of weights"
        return f"{kept}, held by autocast: {amount}{each}", f"{kept} take {amount}"
    if name == "activations":
        wide = _not_shrunk(split)
        brief = f"{size(wide[0][1])} of activations {_are(wide[0][0])}" if wide else f"activations take {amount}"
        told = [f"{size(taken)} of them {_are(dtype)}{WHY_FP32 if dtype == FP32 else ''}" for dtype, taken in wide]
        return "; ".join([f"activations: {amount}", *told]), brief
    if name == "other":
        born = f" from {joined(list(split.other_bytes))}" if split.other_bytes else ""
        return f"other tensors{born}: {amount}", f"other tensors{born} take {amount}"
    whose = ", cuBLAS's own and what an operator at work needs" if name == "workspace" else ""
    return f"{name}{whose}: {amount}", f"{ONE.get(name, f'{name} take')} {amount}"


def _not_shrunk(split: MemorySplit) -> list[tuple[str, int]]:
    """(dtype, bytes) of the activations that autocast left as large as they were, where that is worth a word; the
    largest first. Indices and masks (int64, bool) are as large in every precision.
    """
    wide = [each for each in split.activations_bytes.items() if each[0] not in HALF_TYPES]
    return sorted((each for each in wide if each[1] >= NOTABLE * split.total), key=lambda each: -each[1])


def _are(dtype: str) -> str:
    return "stay in FP32" if dtype == FP32 else f"are {dtype}"


def _moments(baseline: MemoryUse, arm: MemoryUse) -> str | None:
    """That the peaks lie at different moments: then parts that come and go cannot be compared one by one."""
    theirs, mine = lies(baseline), lies(arm)
    if baseline.peak_phase == arm.peak_phase or theirs is None or mine is None:
        return None
    return f"the peaks lie at different moments, {baseline.arm}'s {theirs}, this one {mine}"
