"""The table of the largest batches: one row an arm, its figures beside FP32's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mpdiag.arm_names import BASELINE
from mpdiag.costs.largest_batch import MARGIN, MIN_MARGIN_BYTES, BatchTrial, LargestBatch
from mpdiag.report.html_cells import Cell
from mpdiag.report.html_numbers import THIN, share, size, value
from mpdiag.report.memory_line import batches_of, rates_words
from mpdiag.report.memory_reasons import grouped_remarks, times

COLUMNS = ("Largest batch", "Did not fit", "Peak reserved", "May be reserved", "Bytes by batch", "Samples a second")
MARGIN_WORDS = f"{share(MARGIN)} of the card, at least {size(MIN_MARGIN_BYTES)}, are left free"


@dataclass(frozen=True)
class BatchRow:
    """One arm, ready to print. reason: why it has no batch, and then no cells."""

    arm: str
    precision: str
    cells: tuple[Cell, ...]
    reason: str | None
    trials: tuple[tuple[int, bool, str], ...]  # (batch, whether it fits, its peak or what it met)


@dataclass(frozen=True)
class BatchView:
    """The table. remarks: (arms, text)."""

    columns: tuple[str, ...]
    rows: tuple[BatchRow, ...]
    margin: str
    remarks: tuple[tuple[str, str], ...]


def batch_view(found: Sequence[LargestBatch]) -> BatchView | None:
    """The view of all arms; None where none was searched."""
    if not found:
        return None
    baseline = next((each for each in found if each.arm == BASELINE and each.batch), None)
    rows = tuple(_row(each, None if each is baseline else baseline) for each in found)
    return BatchView(COLUMNS, rows, MARGIN_WORDS, _remarks(found))


def _row(found: LargestBatch, baseline: LargestBatch | None) -> BatchRow:
    trials = tuple((t.batch, t.fits, _met(t)) for t in sorted(found.trials, key=lambda t: t.batch))
    if found.batch is None:
        return BatchRow(found.arm, found.precision, (), found.reason or "no reason was recorded", trials)
    cells = (_batch(found, baseline), _unfit(found), _peak(found), _card(found), _line(found), _speed(found, baseline))
    return BatchRow(found.arm, found.precision, cells, None, trials)


def _batch(found: LargestBatch, baseline: LargestBatch | None) -> Cell:
    shown = Markup("{}<b>{}</b>").format("at least " if found.at_least else "", found.batch)
    ratio = times(found.batch, baseline.batch) if baseline else None
    under = []
    if baseline and ratio and not (found.at_least and baseline.at_least):  # of two lower bounds the ratio says nothing
        bound = "at least " if found.at_least else "at most " if baseline.at_least else ""
        under.append(Markup("{}{}").format(bound, ratio))
    if found.own_batch is not None:
        under.append(Markup("the job's own: {}").format(found.own_batch))
    return Cell(shown, under=tuple(under))


def _unfit(found: LargestBatch) -> Cell:
    if found.too_large is None:
        return Cell(None, reason="no batch was tried that did not fit")
    under = (Markup(escape(found.too_large_reason)),) if found.too_large_reason else ()
    return Cell(Markup(found.too_large), under=under)


def _peak(found: LargestBatch) -> Cell:
    if found.peak_bytes is None:
        return Cell(None, reason="the allocator gave no peak")
    part = (Markup(f"{share(found.peak_bytes / found.budget_bytes)} of what may be"),) if found.budget_bytes else ()
    return Cell(Markup(escape(size(found.peak_bytes))), under=part)


def _card(found: LargestBatch) -> Cell:
    if found.budget_bytes is None or found.card_bytes is None:
        return Cell(None, reason="the size of the card is not known")
    of = f"of {size(found.card_bytes)}, " + ("the limit asked for" if found.limited else "the whole card")
    return Cell(Markup(escape(size(found.budget_bytes))), under=(Markup(escape(of)),))


def _line(found: LargestBatch) -> Cell:
    if found.fixed_bytes is None or found.bytes_per_sample is None:
        return Cell(None, reason="it takes two batches that fit, the larger with the larger peak")
    fixed = size(abs(found.fixed_bytes))
    each = Markup("{}{} × batch").format("+ " if found.fixed_bytes >= 0 else "− ", size(found.bytes_per_sample))
    if found.fixed_bytes < 0:
        return Cell(Markup("{} × batch").format(size(found.bytes_per_sample)), under=(Markup(f"− {fixed}"),))
    return Cell(Markup(escape(fixed)), under=(each,))


def _speed(found: LargestBatch, baseline: LargestBatch | None) -> Cell:
    if found.samples_per_second is None:
        return Cell(None, reason=found.speed_reason or "no reason was recorded")
    ratio = times(found.samples_per_second, baseline.samples_per_second) if baseline else None
    under = [Markup(ratio)] if ratio else []
    if found.step_time_ms is not None:
        under.append(value(found.step_time_ms) + Markup(f"{THIN}ms a step"))
    return Cell(value(float(f"{found.samples_per_second:.4g}")), under=tuple(under))


def _gain(found: Sequence[LargestBatch], each: LargestBatch) -> str | None:
    """What an arm's larger batch is good for: the step at the job's own batch does not tell."""
    rates = None if each.arm == BASELINE else rates_words(*batches_of(found, each.arm))
    return None if rates is None else f"with the largest batches that fit it trains {rates}"


def _met(trial: BatchTrial) -> str:
    if trial.fits:
        return "" if trial.peak_bytes is None else size(trial.peak_bytes)
    return trial.reason or "no reason was recorded"


def _remarks(found: Sequence[LargestBatch]) -> tuple[tuple[str, str], ...]:
    told = [(each.arm, words) for each in found if (words := _gain(found, each))]
    told += [(each.arm, note) for each in found for note in each.notes]
    untimed = [e for e in found if e.batch is not None and e.samples_per_second is None]
    told += [(each.arm, f"no speed: {each.speed_reason or 'no reason was recorded'}") for each in untimed]
    return grouped_remarks(told)
