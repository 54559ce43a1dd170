"""What the formats with scales of their own lose in each tensor, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpdiag.other_formats import FormatForecast

SHOWN = 40  # tensors; a page is read, the JSON has all
_COLUMN = {"E4M3": "FP8", "E5M2": "FP8"}  # by half of the step: one column


@dataclass(frozen=True)
class LostTable:
    """formats: the columns. rows: (tensor, share lost or None for each column), worst first. more: tensors left out."""

    formats: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    more: int


def lost_table(forecasts: Sequence[FormatForecast]) -> LostTable | None:
    """The tensors of which any format loses something; None where none does."""
    losing = [forecast for forecast in forecasts if forecast.lost]
    formats = tuple(dict.fromkeys(_COLUMN.get(f.format, f.format) for f in losing))
    by_tensor: dict[str, dict[str, float]] = {}
    for forecast in losing:
        for tensor, share in forecast.lost.items():
            by_tensor.setdefault(tensor, {})[_COLUMN.get(forecast.format, forecast.format)] = share
    ordered = sorted(by_tensor.items(), key=lambda item: -max(item[1].values()))
    rows = tuple((tensor, tuple(found.get(fmt) for fmt in formats)) for tensor, found in ordered[:SHOWN])
    return LostTable(formats, rows, max(0, len(ordered) - SHOWN)) if rows else None


def counted(forecast: FormatForecast) -> str:
    """Which steps a forecast is of."""
    if forecast.steps is None:
        return "steps not noted"
    if not forecast.along:
        return f"{forecast.steps} step{'' if forecast.steps == 1 else 's'}"
    return "the first step" if forecast.steps == 1 else f"{forecast.steps} steps, the first of each stretch"
