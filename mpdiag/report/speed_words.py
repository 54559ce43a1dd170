"""The speed section in sentences: what the baseline is, and what stands behind the figures. Plain text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

from mpdiag.arm_names import FP32_CONFIGURED
from mpdiag.costs.timing import Timing
from mpdiag.diagnosis import Comparison, Diagnosis, Verification
from mpdiag.report.cost_words import CONTROL, REFERENCES, STEP_TIME, launch_bound, ratio_of, speed_words
from mpdiag.report.html_numbers import share
from mpdiag.report.read_again import second_reading

STALLS = 1.1  # the wall clock over the step time: more is the host's doing, and a sentence
BATCH_CUT = ("costs:", "every arm trains on")  # how the verification says that batches were cut in half


def baseline_words(diagnosis: Diagnosis) -> str:
    """What the arms are held against, and how far that is from what the user's settings compute now."""
    run = diagnosis.verification
    text = "The baseline is FP32 in IEEE arithmetic, without TF32."
    own = ratio_of(run, STEP_TIME, FP32_CONFIGURED) if run else None
    if run is not None and own is not None:
        arms = run.costs.timing.arms if run.costs.timing else ()
        precision = next((t.precision for t in arms if t.arm == FP32_CONFIGURED), FP32_CONFIGURED)
        return f"{text} Your present settings, {precision}: {speed_words(own)}."
    if _settings_are_ieee(diagnosis):
        return f"{text} Your settings compute the same now, so a ratio to it is one to what you have."
    return text


def lead_words(run: Verification, arm: str) -> str | None:
    """What the arm to train with gains over each possible baseline; None where it was not timed."""
    told = [c for name in REFERENCES if (c := ratio_of(run, STEP_TIME, arm, name)) is not None]
    if not told:
        return None
    text = f"{', '.join(speed_words(c) for c in told)}."
    part = any(_parted(one, other) for one, other in combinations(told, 2))
    return f"{text} The baseline chosen is most of the story." if part else text


def _parted(one: Comparison, other: Comparison) -> bool:
    """Whether two ratios of one arm are told apart: by their verdicts, where both have one, or by their intervals.

    Not where neither has a verdict: on a machine as noisy as that no ratio is to be trusted.
    """
    undecided = (one.verdict, other.verdict).count("inconclusive")
    if not undecided and one.verdict != other.verdict:
        return True
    if undecided == 2 or one.interval is None or other.interval is None:
        return False
    return one.interval[1] < other.interval[0] or other.interval[1] < one.interval[0]


def _settings_are_ieee(diagnosis: Diagnosis) -> bool:
    values = [value for name, value in diagnosis.environment.fp32_precision.items() if not name.startswith("mkldnn")]
    return bool(values) and all(value in ("ieee", "none") for value in values)


def speed_notes(run: Verification) -> list[str]:
    """What to know before one trusts the figures, one sentence each, without its full stop."""
    timing = run.costs.timing
    if timing is None:
        return []
    arms = tuple(f"{each.arm}:" for each in timing.arms)
    return [note if note.startswith(arms) else note[:1].upper() + note[1:] for note in _notes(run, timing)]


def _notes(run: Verification, timing: Timing) -> Iterator[str]:
    yield from _noise(run)
    sharing = run.costs.sharing
    if run.costs.shared:
        yield run.costs.shared
    elif sharing is not None and sharing.reason:
        yield f"whether others used the GPU is not fully known: {sharing.reason}"
    yield from _clocks(timing)
    yield from (line for line in run.cut if line.startswith(BATCH_CUT))
    yield from timing.notes
    for each in timing.arms:
        if each.skipped_blocks:
            blocks = f"{each.skipped_blocks} block{'' if each.skipped_blocks == 1 else 's'}"
            yield f"{each.arm}: {blocks} not counted, for the GradScaler skipped a step in them: such a step is shorter"
        if each.wall_ms and each.step_time_ms and each.wall_ms > STALLS * each.step_time_ms:
            times = each.wall_ms / each.step_time_ms
            yield (
                f"{each.arm}: by the wall clock a step takes {each.wall_ms:.4g} ms, {times:.2f} times as long: the "
                "host stalls now and then"
            )
        ratio = ratio_of(run, STEP_TIME, each.arm)
        if ratio is not None and (words := second_reading(run, ratio)):
            yield f"{each.arm}: {words}"
    waiting = [each.arm for each in run.costs.kernels if launch_bound(run.costs.kernels, each.arm)]
    if waiting:
        busy = [share(each.time.busy_share) for each in run.costs.kernels if each.time and each.arm in waiting]
        told = "the GPU waits for the host, so that the step is mostly the host's"
        yield f"{told}: it is busy {_each(waiting, busy)} of it"


def _each(arms: list[str], shares: list[str]) -> str:
    return ", ".join(f"{part} ({arm})" for arm, part in zip(arms, shares, strict=True))


def _noise(run: Verification) -> Iterator[str]:
    """The comparison of the baseline with itself."""
    control = ratio_of(run, STEP_TIME, CONTROL)
    if control is None or control.difference is None:
        return
    if control.verdict == "inconclusive" and control.reason:
        judged = any(c.quantity == STEP_TIME and c.verdict in ("better", "worse") for c in run.comparisons)
        told = "only what is clear of that is called faster or slower"
        yield f"{control.reason}; {told if judged else 'every ratio of times is undecided for it'}"
        return
    low, high = control.interval or (control.difference, control.difference)
    read = f"FP32 against itself reads x{control.difference:.3f} ({low:.3f} to {high:.3f})"
    yield f"{read}: that is the machine's noise, and faster or slower is only what lies beyond it and beyond 3 %"


def _clocks(timing: Timing) -> Iterator[str]:
    """What held the clock down in the timed blocks, and where the clock was then."""
    held = [each for each in timing.arms if each.throttled]
    if not held:
        return
    why = ", ".join(sorted({limit for each in held for limit in each.limited_by}))
    ranges = ((each.arm, each.clocks_mhz) for each in held)
    clocks = (f"{arm} at {low:,} to {high:,} MHz" for arm, (low, high) in ((a, c) for a, c in ranges if c))
    yield f"the clock was held down ({why}) while steps were timed: {', '.join(clocks) or 'NVML does not say where to'}"
