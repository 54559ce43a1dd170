"""Ratios as a small forest plot: one SVG a row of the table, on one logarithmic axis for all rows.

The line at 1 and the band around it are the table cell's background, so that they run through rows of any height.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mpdiag.report.html_numbers import THIN

WIDTH, HEIGHT = 260, 30
PAD = 10  # pixels left and right of the axis, for marks and labels at its ends
NARROW = 0.03  # "no difference" is an interval inside 1 +- 3 %: the rule of the verdicts, drawn
LEAST = 1.1  # the axis shows at least this factor to both sides of 1
STRAY = 1.5  # a dot may widen the axis this much beyond all means and intervals; one farther out is an arrow at its end
ROOM = 34.0  # pixels from label to label
STEPS = (0.05, 0.1, 0.2, 0.25, 0.33, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0)


@dataclass(frozen=True)
class ForestAxis:
    """Ratios from low to high, logarithmic."""

    low: float
    high: float

    def x(self, ratio: float) -> float:
        """Where a ratio lies, in pixels; one beyond the axis lies at its end."""
        inside = min(max(ratio, self.low), self.high)
        span = math.log(self.high / self.low)
        return round(PAD + math.log(inside / self.low) / span * (WIDTH - 2 * PAD), 1)

    @property
    def style(self) -> Markup:
        """The places of the line and the band, for the stylesheet."""
        places = {"one": 1.0, "from": 1 - NARROW, "to": 1 + NARROW}
        return Markup("; ".join(f"--forest-{name}: {self.x(ratio):g}px" for name, ratio in places.items()))

    @property
    def labels(self) -> list[float]:
        """The labelled ratios: 1, then from there to both sides as many as have room."""
        kept = [1.0]
        for step in sorted(STEPS, key=lambda s: abs(math.log(s))):
            if self.low <= step <= self.high and all(abs(self.x(step) - self.x(k)) >= ROOM for k in kept):
                kept.append(step)
        return sorted(kept)


def axis_for(ratios: Sequence[float], dots: Sequence[float] = ()) -> ForestAxis:
    """An axis that holds 1 with its band, all means and ends of intervals, and the dots that are not far out."""
    low, high = min([1 / LEAST, *ratios]), max([LEAST, *ratios])
    near = [dot for dot in dots if low / STRAY <= dot <= high * STRAY]
    return ForestAxis(min([low, *near]), max([high, *near]))


def header(axis: ForestAxis) -> Markup:
    """The axis with its labels."""
    marks = "".join(
        f'<path class="tick" d="M{axis.x(ratio):g} 12v4"/><text x="{axis.x(ratio):g}" y="9">×{ratio:g}</text>'
        for ratio in axis.labels
    )
    end = WIDTH - PAD
    return Markup(
        f'<svg class="forest" width="{WIDTH}" height="17" viewBox="0 0 {WIDTH} 17" aria-hidden="true">'
        f'<path class="axis" d="M{PAD} 16H{end}"/>{marks}</svg>'
    )


def row(
    axis: ForestAxis, name: str, ratio: float, interval: tuple[float, float] | None, dots: Sequence[float], css: str
) -> Markup:
    """One arm: its rounds as dots, the interval as a line, the mean as a diamond of class `css`."""
    drawn = "".join(_dot(axis, dot, index) for index, dot in enumerate(dots))
    middle, x = HEIGHT / 2, axis.x(ratio)
    told = f"{name}: ratio {ratio:.3f}"
    if interval is not None:
        low, high = (axis.x(end) for end in interval)
        drawn += (
            f'<path class="reach" d="M{low:g} {middle:g}H{high:g}M{low:g} {middle - 4:g}v8M{high:g} {middle - 4:g}v8"/>'
        )
        told += f", 95{THIN}% interval {interval[0]:.3f} to {interval[1]:.3f}"
    drawn += f'<path class="mean {css}" d="M{x:g} {middle - 5:g}l5 5l-5 5l-5 -5Z"/>'
    return Markup(
        f'<svg class="forest" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(told)}">{drawn}</svg>'
    )


def _dot(axis: ForestAxis, ratio: float, index: int) -> str:
    """A round; every other one lies higher, so that equal ones are told apart."""
    y = HEIGHT / 2 + (-8 if index % 2 else 8)
    if axis.low <= ratio <= axis.high:
        return f'<circle class="round" cx="{axis.x(ratio):g}" cy="{y:g}" r="2"/>'
    x, way = axis.x(ratio), 1 if ratio > axis.high else -1
    return f'<path class="round" d="M{x + 5 * way:g} {y:g}l{-6 * way:g} -3v6Z"/>'
