"""The table of every run, for whoever wants the figures behind the means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.diagnosis import Trial
from mpdiag.report.html_cells import Cell, Column, absent
from mpdiag.report.html_numbers import value
from mpdiag.report.html_verification import figure, why_missing


@dataclass(frozen=True)
class RunTable:
    """Headings, and each trial with its cells."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Trial, tuple[Cell, ...]], ...]


def run_table(trials: Sequence[Trial]) -> RunTable:
    """Final loss, every metric, skipped steps and final scale of each trial, in the order given."""
    measures = tuple(dict.fromkeys(name for t in trials for name in t.metric or {}))
    columns = [Column("Final loss"), *(Column(name.replace("_", " ").capitalize()) for name in measures)]
    columns += [Column("Skipped steps"), Column("Final scale")]
    return RunTable(tuple(columns), tuple((t, _cells(t, measures)) for t in trials))


def _cells(trial: Trial, measures: Sequence[str]) -> tuple[Cell, ...]:
    def field(name: str) -> Cell:
        shown = figure(trial, name)
        return absent(why_missing(trial, name)) if shown is None else Cell(shown)

    def metric(name: str) -> Cell:
        found = (trial.metric or {}).get(name)
        return absent(why_missing(trial, "metric")) if found is None else Cell(value(found))

    return (field("losses"), *map(metric, measures), field("skipped_steps"), field("final_log2_scale"))
