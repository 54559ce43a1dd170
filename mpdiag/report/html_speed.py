"""The speed section: one row an arm with its step time, its rounds drawn, and the ratio to each possible baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from mpdiag.arm_names import BASELINE, FP32_CONFIGURED, TF32
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Comparison, Diagnosis, Verification
from mpdiag.report import forest
from mpdiag.report.cost_words import CONTROL, STEP_TIME, lead_arm, ratio_of
from mpdiag.report.html_energy import cost_css
from mpdiag.report.html_numbers import value, with_unit
from mpdiag.report.speed_words import baseline_words, lead_words, speed_notes

HEADINGS = {BASELINE: "IEEE FP32", FP32_CONFIGURED: "your settings", TF32: "TF32"}
VERDICTS = {"better": "faster", "worse": "slower", "equivalent": "no difference", "inconclusive": "undecided"}


@dataclass(frozen=True)
class RatioCell:
    """A ratio to one baseline. shown None: there is none, and `reason` says why. words: its verdict, of class css."""

    shown: str | None
    between: str | None = None
    words: str = ""
    css: str = ""
    reason: str = ""


@dataclass(frozen=True)
class SpeedRow:
    """One arm, ready to print. step None: it was not timed, and `reason` says why. control: FP32 against itself."""

    arm: str
    precision: str
    control: bool
    step: Markup | None
    middle_half: str
    samples_per_second: Markup | None
    drawing: Markup | None
    ratios: tuple[RatioCell, ...]
    reason: str


@dataclass(frozen=True)
class SpeedView:
    """The section. lead: the arm to train with; gains: in words, what it gains. headings: of the ratios.

    style: where the drawings' background has its line and its band.
    """

    setup: str
    baseline: str
    lead: str
    gains: str | None
    headings: tuple[str, ...]
    axis: Markup
    style: Markup
    rows: tuple[SpeedRow, ...]
    notes: tuple[str, ...]


def speed_view(diagnosis: Diagnosis) -> SpeedView | None:
    """The view of all arms that were to be timed; None where nothing was."""
    run = diagnosis.verification
    timing = run.costs.timing if run is not None else None
    if run is None or timing is None:
        return None
    timed = [each.arm for each in timing.arms if each.step_time_ms is not None]
    references = [name for name in HEADINGS if name in timed]
    every = [*timing.arms, timing.control]
    rounds = {each.arm: _rounds(each, timing.arms[0]) for each in every if each.arm != BASELINE}
    axis = forest.axis_for(_reach(run, rounds), [dot for dots in rounds.values() for dot in dots])
    ordered = sorted(every, key=lambda each: each.arm not in (BASELINE, timing.control.arm))
    return SpeedView(
        setup=_setup(timing),
        baseline=baseline_words(diagnosis),
        lead=lead_arm(run),
        gains=lead_words(run, lead_arm(run)),
        headings=tuple(HEADINGS[name] for name in references),
        axis=forest.header(axis),
        style=axis.style,
        rows=tuple(_row(run, timing, each, references, axis, rounds.get(each.arm, [])) for each in ordered),
        notes=tuple(speed_notes(run)),
    )


def _rounds(arm: ArmTime, baseline: ArmTime) -> list[float]:
    """The ratio of each round in which both had a block."""
    pairs = zip(arm.block_medians_ms, baseline.block_medians_ms, strict=False)
    return [mine / theirs for mine, theirs in pairs if mine and theirs]


def _reach(run: Verification, rounds: dict[str, list[float]]) -> list[float]:
    """Every mean and every end of an interval that is drawn."""
    found = [c for arm in rounds if (c := ratio_of(run, STEP_TIME, arm)) is not None]
    return [x for c in found for x in (c.difference, *(c.interval or ())) if x]


def _setup(timing: Timing) -> str:
    where = "all arms in memory at once" if timing.resident else "each block with a fresh model"
    rounds = "1 round" if timing.rounds == 1 else f"{timing.rounds} rounds"
    text = f"{rounds} in which every arm has one block, in turns{_batches(timing)}, {where}."
    if timing.batch_sizes:
        text += (
            f" Samples/s are the mean batch of {timing.samples:.4g} over the mean step by the wall clock: the median "
            "step is that of one size."
        )
    return text


def _batches(timing: Timing) -> str:
    if timing.batch_sizes:
        return f", batches of {min(timing.batch_sizes)} to {max(timing.batch_sizes)} samples"
    return f", batches of {timing.samples} sample{'' if timing.samples == 1 else 's'}" if timing.samples else ""


def _row(
    run: Verification,
    timing: Timing,
    arm: ArmTime,
    references: Sequence[str],
    axis: forest.ForestAxis,
    dots: Sequence[float],
) -> SpeedRow:
    control = arm.arm == CONTROL
    found = ratio_of(run, STEP_TIME, arm.arm)
    drawing = None
    if found is not None and found.difference is not None:
        css = "" if control else cost_css(found)
        drawing = forest.row(
            axis, "FP32 against itself" if control else arm.arm, found.difference, found.interval, dots, css
        )
    step = arm.step_time_ms
    whole = arm.wall_ms if timing.batch_sizes else step
    rate = 1e3 * timing.samples / whole if whole and timing.samples else None
    return SpeedRow(
        arm=f"{BASELINE} again" if control else arm.arm,
        precision="FP32 against itself: the machine's noise" if control else arm.precision,
        control=control,
        step=None if step is None else with_unit(step, "ms"),
        middle_half=f"{arm.iqr_ms[0]:.4g} to {arm.iqr_ms[1]:.4g}" if arm.iqr_ms else "",
        samples_per_second=None if rate is None else value(rate, 3) if rate < 100 else Markup(f"{rate:,.0f}"),
        drawing=drawing,
        ratios=tuple(_ratio(run, arm, name) for name in references),
        reason=arm.reason or "no block of it was timed",
    )


def _ratio(run: Verification, arm: ArmTime, baseline: str) -> RatioCell:
    if arm.arm == baseline:
        return RatioCell("×1", reason="the baseline itself")
    c = ratio_of(run, STEP_TIME, arm.arm, baseline) or _turned(ratio_of(run, STEP_TIME, baseline, arm.arm))
    if c is None or c.difference is None:
        return RatioCell(None, reason="not compared")
    words, css = VERDICTS.get(c.verdict, c.verdict), cost_css(c)
    if arm.arm == CONTROL:
        words, css = ("too noisy", "bad") if c.verdict == "inconclusive" and c.reason else ("quiet enough", "")
    between = f"{c.interval[0]:.3f} to {c.interval[1]:.3f}" if c.interval else None
    return RatioCell(f"×{c.difference:.3f}", between, words, css, c.reason or "")


def _turned(c: Comparison | None) -> Comparison | None:
    """The same comparison from the other side."""
    if c is None or not c.difference:
        return None
    verdict = {"better": "worse", "worse": "better"}.get(c.verdict, c.verdict)
    interval = c.interval and (1 / c.interval[1], 1 / c.interval[0])
    return replace(c, difference=1 / c.difference, interval=interval, verdict=verdict)
