"""The table "Arms against FP32": one row an arm, its figures beside those of the baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.costs.record import NOT_MEASURED
from mpdiag.diagnosis import Trial, Verification
from mpdiag.report.accuracy_words import CONTROLS
from mpdiag.report.html_cells import Cell, Column, Notes, cost, final_scale, measured, quality, settle, skipped
from mpdiag.report.html_numbers import share, value
from mpdiag.report.html_verification import COSTS

FIRST = ("fp32", "fp16", "fp16-plan", "bf16", "fp32-configured")


@dataclass(frozen=True)
class ArmRow:
    """One arm, ready to print. seeds: in words, where they are not the baseline's."""

    arm: str
    precision: str
    how: str
    control: bool
    seeds: str
    errors: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ArmTable:
    """The whole table; its footnotes are in the notes given. has_costs: it has columns for them."""

    columns: tuple[Column, ...] = ()
    rows: tuple[ArmRow, ...] = ()
    has_costs: bool = True


def by_arm(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with the baseline's first, then the candidates', then the controls'; by seed within an arm."""
    others = sorted({t.arm for t in trials} - {*FIRST, *CONTROLS})
    rank = {name: i for i, name in enumerate((*FIRST, *others, *CONTROLS))}
    return sorted(trials, key=lambda t: (rank[t.arm], t.seed))


def margin_of(run: Verification | None, name: str) -> float | None:
    """What counted as equal in a quantity, if that is the same for every arm."""
    margins = {c.margin for c in run.comparisons if c.quantity == name} if run else set()
    return margins.pop() if len(margins) == 1 else None


def setup(run: Verification | None) -> str:
    """How the arms were run, in a sentence."""
    trials = by_arm(run.trials) if run else []
    if not trials:
        return ""
    arms, own = dict.fromkeys(t.arm for t in trials), [t for t in trials if t.arm == trials[0].arm]
    count = f"{len(arms)} arms" if len(arms) > 1 else "one arm"
    return f"{count} of {max(t.steps for t in own)} steps, each with {_seeds(own)}"


def arm_table(run: Verification | None, notes: Notes) -> ArmTable:
    """The columns and the rows: baseline, candidates, controls."""
    if run is None or not run.trials:
        return ArmTable()
    trials = by_arm(run.trials)
    baseline = [t for t in trials if t.arm == trials[0].arm]
    arms = [[t for t in trials if t.arm == arm] for arm in dict.fromkeys(t.arm for t in trials)]
    made = [
        (Column(heading, under), [cell(own) for own in arms]) for heading, under, cell in _columns(run, baseline[0].arm)
    ]
    columns, cells = settle([c for c, _ in made], [row for _, row in made], notes)
    rows = [
        ArmRow(
            arm=own[0].arm,
            precision=own[0].precision,
            how="emulated" if own[0].emulated else "real",
            control=own[0].arm in CONTROLS,
            seeds="" if _seeds(own) == _seeds(baseline) else _seeds(own),
            errors=tuple(dict.fromkeys(t.error for t in own if t.error)),
            cells=tuple(column[i] for column in cells),
        )
        for i, own in enumerate(arms)
    ]
    return ArmTable(tuple(columns), tuple(rows), not _told_below(run))


Filler = Callable[[Sequence[Trial]], Cell]


def _columns(run: Verification, baseline: str) -> list[tuple[str, tuple[Markup, ...], Filler]]:
    """(heading, lines under it, how to fill it from the trials of an arm), from left to right."""
    measures = dict.fromkeys(c.quantity for c in run.comparisons if not c.is_ratio and c.quantity != "loss")
    measures |= dict.fromkeys(name for t in run.trials for name in t.metric or {})
    found: list[tuple[str, tuple[Markup, ...], Filler]] = []
    for name in ("loss", *measures):
        under = [Markup("mean of the second half")] if name == "loss" else []
        found.append((_title(name), (*under, *_equal_within(run, name)), quality(name, run, baseline)))
    if not measures:
        found.append(("Metric", (), lambda own: measured(own, "metric")))
    found += [("Skipped steps", (Markup("all seeds"),), skipped), ("Final scale", (), final_scale)]
    if _told_below(run):
        return found
    for field in ("step_time_ms", "peak_memory_bytes"):
        found.append((_title(COSTS[field][0]), _equal_within(run, field), cost(field, run)))
    found.append(("Tensor pipe", (Markup("time active"),), lambda own: measured(own, "tensor_core")))
    field = "energy_joules_per_sample"
    found.append((_title(COSTS[field][0]), _equal_within(run, field), cost(field, run)))
    return found


def _told_below(run: Verification) -> bool:
    """Whether no arm has any cost and the page's line on costs says why: no column needs to say it again."""
    fields = (*COSTS, "tensor_core")
    return run.costs != NOT_MEASURED and all(getattr(t, field) is None for t in run.trials for field in fields)


def _title(name: str) -> str:
    words = name.replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}"


def _equal_within(run: Verification, name: str) -> tuple[Markup, ...]:
    margins = sorted({c.margin for c in run.comparisons if c.quantity == name and c.margin is not None})
    if not margins:
        return ()
    ratio = any(c.is_ratio for c in run.comparisons if c.quantity == name)
    shown = [Markup(share(m)) if ratio else value(m, 2) for m in dict.fromkeys((margins[0], margins[-1]))]
    return (Markup("equal within ±{}").format(Markup(" to ±").join(dict.fromkeys(shown))),)


def _seeds(trials: Sequence[Trial]) -> str:
    seeds = [str(t.seed) for t in trials]
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {', '.join(seeds[:-1])} and {seeds[-1]}"
