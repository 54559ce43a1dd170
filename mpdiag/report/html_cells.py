"""The cells of the table of arms: a figure with what stands under it, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from mpdiag.diagnosis import Comparison, Trial, Verification
from mpdiag.report.accuracy_words import verdict_in_words
from mpdiag.report.html_numbers import power, value
from mpdiag.report.html_verification import DOES_NOT_APPLY, difference, figure, interval, why_missing


@dataclass(frozen=True)
class Cell:
    """One figure. `shown` None: not measured, or (`applies` false) nothing to measure, and `reason` says why.

    remarks: whole sentences, which become the footnotes `marks`. rows, columns: how far it stretches; rows 0 where
    another stands for it.
    """

    shown: Markup | None
    under: tuple[Markup, ...] = ()
    remarks: tuple[str, ...] = ()
    reason: str = ""
    marks: tuple[int, ...] = ()
    rows: int = 1
    columns: int = 1

    @property
    def applies(self) -> bool:
        """False where there is nothing to measure, such as the loss scale of an FP32 run."""
        return not self.reason.startswith(DOES_NOT_APPLY)


@dataclass(frozen=True)
class Column:
    """A heading, the lines under it, and the footnotes of all its cells."""

    heading: str
    under: tuple[Markup, ...] = ()
    marks: tuple[int, ...] = ()


class Notes:
    """Numbered remarks, each told once."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str) -> int:
        """The number of a remark; equal ones share it."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1

    @property
    def missing(self) -> list[str]:
        """Why figures are missing, without the remarks on those that are there."""
        return [r.removeprefix(ABSENT) for r in self.reasons if r.startswith(ABSENT)]


ABSENT = "not measured: "
SHORT = 22  # characters that fit under a figure ("needs about 13 seeds"), and need no footnote


def absent(reason: str) -> Cell:
    """A figure that is not there."""
    if reason.startswith(DOES_NOT_APPLY):
        return Cell(None, reason=reason)
    return Cell(None, remarks=(ABSENT + reason.removeprefix(ABSENT),), reason=reason)


def measured(trials: Sequence[Trial], field: str) -> Cell:
    """The figure of the first run that has it."""
    found = next((t for t in trials if getattr(t, field) not in (None, {})), None)  # {}: evaluate() gave nothing
    if found is None:
        return absent(why_missing(trials[0], field))
    shown = figure(found, field)
    assert shown is not None
    note = found.not_measured.get(f"{field.removesuffix('_ms')}_note")
    return Cell(shown, remarks=(note,) if note else ())


def skipped(trials: Sequence[Trial]) -> Cell:
    """Skipped steps over the steps of all seeds."""
    counted = [t for t in trials if t.skipped_steps is not None]
    if not counted:
        return absent(why_missing(trials[0], "skipped_steps"))
    return Cell(Markup("{} of {}").format(sum(t.skipped_steps or 0 for t in counted), sum(t.steps for t in counted)))


def final_scale(trials: Sequence[Trial]) -> Cell:
    """The loss scale at the end: one power of two, or from the lowest to the highest of the seeds."""
    found = [t.final_log2_scale for t in trials if t.final_log2_scale is not None]
    if not found:
        return absent(why_missing(trials[0], "final_log2_scale"))
    low, high = min(found), max(found)
    return Cell(power(low) if low == high else Markup("{} to {}").format(power(low), power(high)))


def cost(field: str, run: Verification) -> Callable[[Sequence[Trial]], Cell]:
    """A cost of each arm with its ratio to the baseline's."""

    def cell(trials: Sequence[Trial]) -> Cell:
        found = measured(trials, field)
        c = _comparison(run, field, trials[0].arm)
        ratio = difference(c) if c else None
        if c is None or ratio is None or found.shown is None:
            return found
        told = Markup('<span class="cost-{}" title="{}">{}</span>').format(c.verdict, c.verdict, ratio)
        return replace(found, under=(told,), remarks=(*found.remarks, *((c.reason,) if c.reason else ())))

    return cell


def quality(name: str, run: Verification, baseline: str) -> Callable[[Sequence[Trial]], Cell]:
    """The loss or a metric of each arm: value, difference from the baseline, its interval, verdict."""
    compared = [c for c in run.comparisons if c.quantity == name]
    most = max(compared, key=lambda c: c.seeds, default=None)

    def cell(trials: Sequence[Trial]) -> Cell:
        own = _mean(name, trials)
        if trials[0].arm == baseline:
            best = most.baseline_value if most else own
            return _or_absent(best, trials, name)
        c = _comparison(run, name, trials[0].arm)
        if c is None:
            found = _or_absent(own, trials, name)
            return replace(found, remarks=("not compared with FP32",)) if found.shown else found
        shown = own if c.candidate_value is None else c.candidate_value
        found = absent(c.reason) if shown is None and c.reason else _or_absent(shown, trials, name)
        under = [line for line in (difference(c), interval(c)) if line is not None]
        if most and c.baseline_value != most.baseline_value and c.baseline_value is not None:
            under.append(Markup("against {}").format(value(c.baseline_value)))
        under.append(Markup('<span class="c-{}">{}</span>').format(c.verdict, verdict_in_words(c)))
        short = c.verdict == "inconclusive" and 0 < len(c.reason or "") <= SHORT
        under += [Markup("{}").format(c.reason)] if short else []
        remark = (c.reason,) if c.reason and found.shown is not None and not short else ()
        return replace(found, under=tuple(under), remarks=(*found.remarks, *remark))

    return cell


def settle(
    columns: Sequence[Column], cells: Sequence[Sequence[Cell]], notes: Notes
) -> tuple[list[Column], list[list[Cell]]]:
    """Number the remarks, headings first, then row by row. `cells` come column by column, and leave so.

    A remark on every ratio of a column moves up to its heading. One cell stands for a block of neighbouring columns in
    which nothing was measured for one reason.
    """
    shared = [_shared(given) for given in cells]
    heads = [replace(c, marks=tuple(map(notes.number, told))) for c, told in zip(columns, shared, strict=True)]
    filled = _blocks(cells)
    for row in range(len(filled[0])):
        for column, told in zip(filled, shared, strict=True):
            own = column[row]
            if own.rows:
                column[row] = replace(own, marks=tuple(notes.number(r) for r in own.remarks if r not in told))
    return heads, filled


def _blocks(cells: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    made: list[list[Cell]] = []
    first: int | None = None  # the column whose topmost cell stands for the block being gathered
    for given in cells:
        top = given[0]
        if top.shown is not None or not top.applies or any(c != top for c in given):
            first = None
            made.append(list(given))
            continue
        made.append([replace(c, rows=0) for c in given])
        if first is None or made[first][0].reason != top.reason:
            first = len(made) - 1
            made[first][0] = replace(top, rows=len(given))
        else:
            made[first][0] = replace(made[first][0], columns=len(made) - first)
    return made


def _shared(cells: Sequence[Cell]) -> list[str]:
    """The remarks that every compared cell of a column carries, where there are several."""
    compared = [c for c in cells if c.under]
    return [r for r in compared[0].remarks if all(r in c.remarks for c in compared)] if len(compared) > 1 else []


def _comparison(run: Verification, name: str, arm: str) -> Comparison | None:
    return next((c for c in run.comparisons if c.quantity == name and c.candidate == arm), None)


def _or_absent(number: float | None, trials: Sequence[Trial], name: str) -> Cell:
    if number is not None:
        return Cell(value(number))
    failed = next((t for t in trials if t.error), trials[0])
    return absent(why_missing(failed, "losses" if name == "loss" else "metric"))


def _mean(name: str, trials: Sequence[Trial]) -> float | None:
    """The mean over the seeds: NaN where a run's is not finite, None where a run has none."""
    found = [_endpoint(t) if name == "loss" else (t.metric or {}).get(name) for t in trials]
    known = [v for v in found if v is not None]
    if len(known) < len(found) or any(t.error for t in trials):
        return None
    return sum(known) / len(known) if all(map(math.isfinite, known)) else math.nan


def _endpoint(trial: Trial) -> float | None:
    tail = trial.losses[len(trial.losses) // 2 :]
    return sum(tail) / len(tail) if tail else None
