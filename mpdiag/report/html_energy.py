"""The energy table of the speed section: joules a sample of each arm, what an idle GPU takes of it, and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.arm_names import FP32_CONFIGURED, TF32
from mpdiag.costs.energy import EnergyUse
from mpdiag.diagnosis import Comparison, Verification
from mpdiag.report.cost_words import ENERGY, ratio_of
from mpdiag.report.html_numbers import joules, share, value

VERDICTS = {"better": "less", "worse": "more", "equivalent": "no difference", "inconclusive": "undecided"}


@dataclass(frozen=True)
class EnergyRow:
    """One arm, ready to print; a text that is None was not measured. shown None: no figure at all, for `reason`."""

    arm: str
    shown: Markup | None
    between: Markup | None
    ratio: str | None
    ratio_between: str | None
    verdict: str
    css: str
    above_idle: Markup | None
    idle_share: str | None
    watts: str | None
    clock: str | None
    temperature: str | None
    held_down: str | None
    reason: str
    above_idle_reason: str


@dataclass(frozen=True)
class EnergyView:
    """The table. setup: how it was read. notes: (arm, text)."""

    setup: str
    rows: tuple[EnergyRow, ...]
    notes: tuple[tuple[str, str], ...]


def energy_view(run: Verification | None) -> EnergyView | None:
    """The view of all arms; None where no arm has a figure."""
    uses = run.costs.energy if run is not None else ()
    measured = [use for use in uses if use.joules_per_sample is not None]
    if run is None or not measured:
        return None
    windows, seconds = max(use.windows for use in measured), sum(use.seconds for use in measured)
    idle = next((use.idle_watts for use in measured if use.idle_watts is not None), None)
    setup = f"{windows} window{'' if windows == 1 else 's'} an arm in turns, {seconds:.0f} s in all"
    if idle is not None:
        setup += f"; the idle GPU draws {idle:.0f} W"
    setup += _against(run, measured)
    reasons = {use.arm: c.reason for use in measured if (c := ratio_of(run, ENERGY, use.arm)) and c.reason}
    notes = [(use.arm, use.note) for use in measured if use.note]
    untold: dict[str, list[str]] = {}
    for use in measured:
        if use.joules_per_sample_above_idle is None and use.above_idle_reason:
            untold.setdefault(use.above_idle_reason, []).append(use.arm)
    notes += [(", ".join(arms), f"energy above idle is not told: {why}") for why, arms in untold.items()]
    if reasons:
        notes.append((", ".join(reasons), "; ".join(dict.fromkeys(reasons.values()))))
    return EnergyView(setup, tuple(_row(run, use) for use in uses), tuple(notes))


def _against(run: Verification, measured: Sequence[EnergyUse]) -> str:
    """That the ratios are to IEEE FP32 alone, where its cheaper kin were timed and have no window."""
    timed = {each.arm for each in (run.costs.timing.arms if run.costs.timing else ()) if each.step_time_ms is not None}
    without = timed - {use.arm for use in measured}
    told = [words for arm, words in ((TF32, "TF32"), (FP32_CONFIGURED, "your present settings")) if arm in without]
    if not told or len(measured) < 2:
        return ""
    have = "have" if told[-1] != "TF32" else "has"
    return f"; ratios are to IEEE FP32 alone, for {' and '.join(told)} {have} no window"


def cost_css(c: Comparison) -> str:
    """The class of a cost's verdict: good, bad, or dim where nothing is decided."""
    return {"better": "good", "worse": "bad", "equivalent": ""}.get(c.verdict, "dim")


def _row(run: Verification, use: EnergyUse) -> EnergyRow:
    c = ratio_of(run, ENERGY, use.arm)
    held = None
    if use.throttled is not None:
        held = ", ".join(use.limited_by) if use.throttled else "no"
    return EnergyRow(
        arm=use.arm,
        shown=None if use.joules_per_sample is None else joules(use.joules_per_sample),
        between=None if use.interval is None else joules(use.interval[0]) + " to " + joules(use.interval[1]),
        ratio=f"×{c.difference:.3f}" if c and c.difference else None,
        ratio_between=f"{c.interval[0]:.3f} to {c.interval[1]:.3f}" if c and c.interval else None,
        verdict=VERDICTS.get(c.verdict, c.verdict) if c else "",
        css=cost_css(c) if c else "",
        above_idle=None if use.joules_per_sample_above_idle is None else joules(use.joules_per_sample_above_idle),
        idle_share=None if use.idle_share is None else share(use.idle_share),
        watts=None if use.watts is None else str(value(use.watts, 3)),
        clock=_range(use.clocks_mhz),
        temperature=_range(use.temperatures_c),
        held_down=held,
        reason=use.reason or "no reason was recorded",
        above_idle_reason=use.above_idle_reason or "what the GPU draws at rest was not measured",
    )


def _range(found: tuple[int, int] | None) -> str | None:
    if found is None:
        return None
    low, high = found
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
