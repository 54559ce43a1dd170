"""The rows of the per-tensor table, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.formats import FP16
from mpdiag.histogram import RangeUsage
from mpdiag.report.html_anchors import GRADIENTS
from mpdiag.report.html_numbers import share
from mpdiag.report.strips import StripAxis, strip


@dataclass(frozen=True)
class ZoneShares:
    """Shares of one tensor in FP16 at one scale; `over_unseen`: abs_max overflows though no whole binade does."""

    usage: RangeUsage
    over_unseen: bool


@dataclass(frozen=True)
class Mark:
    """A word beside a tensor's name, and what it means."""

    text: str
    title: str


@dataclass(frozen=True)
class TensorRow:
    """One row, ready to print. What is None does not apply: `nothing` (no shares at all) or `absent` says why."""

    anchor: str
    table: TensorTable
    kind: str
    at_one: ZoneShares | None
    at_scale: ZoneShares | None
    stagnant: float | None
    stagnant_title: str
    stays_fp32: bool
    strip: Markup
    marks: tuple[Mark, ...]
    findings: tuple[tuple[str, str], ...]
    absent: str
    nothing: str

    @property
    def place(self) -> str:
        """The source without its folders; the cell's title has them."""
        return (self.table.source or "").replace("\\", "/").rpartition("/")[2]

    @property
    def search(self) -> str:
        """What the filter box looks at."""
        t = self.table
        parts = (t.name, t.module_type, self.kind, t.amp_dtype or "", t.source or "", *(m.text for m in self.marks))
        return " ".join((*parts, *(label for _, label in self.findings))).lower()


def tensor_rows(
    tables: Sequence[TensorTable],
    ids: Sequence[str],
    axis: StripAxis,
    log2_scale: int | None,
    findings: Mapping[str, Sequence[tuple[str, str]]],
) -> list[TensorRow]:
    """All rows, worst first; equal ones keep the order of capture. `findings`: row id -> (anchor, label)."""
    rows = [
        _row(table, anchor, axis, log2_scale, tuple(findings.get(anchor, ())))
        for table, anchor in zip(tables, ids, strict=True)
    ]
    return sorted(rows, key=lambda row: -_badness(row))


def in_words(kind: TensorKind) -> str:
    """activation_gradient as people say it."""
    return kind.replace("_", " ")


def _row(
    table: TensorTable,
    anchor: str,
    axis: StripAxis,
    log2_scale: int | None,
    findings: tuple[tuple[str, str], ...],
) -> TensorRow:
    moves = log2_scale if table.kind in GRADIENTS else None
    stagnant = table.stagnant or {}
    floor = table.histogram.highest + 1 if table.noise_level else table.noise_floor_log2
    return TensorRow(
        anchor=anchor,
        table=table,
        kind=in_words(table.kind),
        at_one=_shares(table, 0),
        at_scale=None if moves is None else _shares(table, moves),
        stagnant=stagnant.get("FP16"),
        stagnant_title=", ".join(f"{name} {share(v)}" for name, v in stagnant.items()),
        stays_fp32=(table.amp_dtype or "").endswith("float32"),
        strip=strip(table.histogram, axis, moves, floor),
        marks=_marks(table),
        findings=findings,
        nothing="all of it is rounding noise" if table.noise_level else "no finite non-zero element",
        absent="the loss scale moves only gradients" if log2_scale is not None else "no loss scale is recommended",
    )


def _shares(table: TensorTable, log2_scale: int) -> ZoneShares | None:
    if table.noise_level or not table.signal.counts:
        return None
    usage = table.signal.usage(FP16, log2_scale)  # rounding noise is nothing that FP16 could lose
    beyond = table.abs_max is not None and FP16.overflows(table.abs_max * 2.0 ** min(log2_scale, 1023))
    return ZoneShares(usage, over_unseen=beyond and usage.overflow == 0)


def _marks(table: TensorTable) -> tuple[Mark, ...]:
    counted = table.histogram
    found = []
    noise = counted.finite_nonzero - table.signal.finite_nonzero
    if table.noise_level:
        found.append(Mark("noise-level", "zero mathematically: all that was counted is rounding noise"))
    elif noise:
        below = f"below 2^{table.noise_floor_log2} is rounding noise of elements that are zero mathematically"
        found.append(Mark(f"{share(noise / counted.finite_nonzero)} noise", f"what lies {below}: not in the shares"))
    if counted.nans:
        found.append(Mark(f"{counted.nans} NaN", "elements that are not a number, over all steps"))
    if counted.infs:
        found.append(Mark(f"{counted.infs} inf", "infinite elements, over all steps"))
    if counted.total and not counted.counts:
        found.append(Mark("all zero", "no element differed from zero in any step"))
    return tuple(found)


def _badness(row: TensorRow) -> float:
    """A number to sort by: overflow before underflow before subnormals; what FP16 does not hold comes last."""
    if row.table.histogram.nans or row.table.histogram.infs:
        return 10.0
    if row.at_one is None or row.table.noise_level:
        return -1.0
    if row.table.kind is TensorKind.WEIGHT_UPDATE:
        return (row.stagnant or 0.0) * 1e-3  # master weights cure it, and autocast keeps them
    worst = [shares for shares in (row.at_one, row.at_scale) if shares is not None]
    overflow = max(2 + s.usage.overflow if s.usage.overflow or s.over_unseen else 0.0 for s in worst)
    last = worst[-1].usage  # at the recommended scale when there is one: what scaling does not cure is worse
    score = overflow + last.underflow + 0.5 * row.at_one.usage.underflow + 0.01 * row.at_one.usage.subnormal
    return score * (1e-4 if row.stays_fp32 else 1.0)
