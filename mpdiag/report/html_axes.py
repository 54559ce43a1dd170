"""What the static charts are drawn with: scales, ticks, axes and lines, as SVG that reads without a script.

A chart fills whatever width it is given: lines are drawn in SPAN units and stretched, while labels stand at a share of
the width in their own size. Heights are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from mpdiag.report.html_numbers import MINUS, THIN
from mpdiag.report.plain_numbers import LARGEST, SMALLEST

SPAN = 1000
HEIGHT, TOP, BOTTOM = 318, 34, 46  # above the plot: the y axis' title, and below it what marks a place
FOOT = HEIGHT - BOTTOM  # the plot's lower end
Mark = tuple[float, str]
"""(where on the axis, in units across or pixels down; its label, as SVG)"""


@dataclass(frozen=True)
class Scale:
    """A linear map from data to the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a value lies, to a tenth."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def across(low: float, high: float) -> Scale:
    """The scale of an x axis, in units."""
    return Scale(low, high, 0, SPAN)


def upward(low: float, high: float) -> Scale:
    """The scale of a y axis, in pixels."""
    return Scale(low, high, FOOT, TOP)


def percent(at: float) -> str:
    """Units across as a share of the width."""
    return f"{100 * at / SPAN:.4g}%"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def labelled(values: Sequence[float]) -> list[str]:
    """The labels of an axis, as SVG: plain digits, or all of them times one power of ten where they are long."""
    largest = max(map(abs, values), default=0.0)
    plain = largest == 0 or SMALLEST <= largest < LARGEST
    exponent = 0 if plain else math.floor(math.log10(largest) + 1e-9)
    scaled = [v / 10.0**exponent for v in values]
    places = max((len(f"{v:.6f}".rstrip("0").partition(".")[2]) for v in scaled), default=0)
    times = f"{THIN}×{THIN}{power(exponent, 10)}" if exponent else ""
    return ["0" if v == 0 else f"{v:.{places}f}".replace("-", MINUS) + times for v in scaled]


def line(points: Iterable[tuple[float, float]], css: str, dash: str) -> str:
    """A line through the points; a y that is NaN breaks it."""
    path, pen = [], "M"
    for x, y in points:
        if math.isnan(y):
            pen = "M"
            continue
        path.append(f"{pen}{x:g} {y:g}")
        pen = "L"
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line {css}"{dashes} d="{"".join(path)}"/>' if path else ""


def level(y: float, css: str) -> str:
    """A line across the whole plot, at a height."""
    return f'<path class="{css}" d="M0 {y:g}H{SPAN}"/>'


def step_axis(x: Scale, last: int) -> str:
    """The x axis of training steps 1..last."""
    return x_axis([(x(v), f"{v:.0f}") for v in ticks(1, last, 8) if v == int(v)], "training step")


def x_axis(marks: Iterable[Mark], title: str) -> str:
    """The lower axis."""
    text = "".join(
        f'<line class="tick" x1="{(at_x := percent(at))}" x2="{at_x}" y1="{FOOT}" y2="{FOOT + 4}"/>'
        f'<text class="tick-label" x="{at_x}" y="{FOOT + 18}">{label}</text>'
        for at, label in marks
    )
    drawn = f'<line class="axis" x1="0" x2="100%" y1="{FOOT}" y2="{FOOT}"/>'
    return f'{drawn}{text}<text class="axis-title" x="50%" y="{HEIGHT - 8}">{escape(title)}</text>'


def y_axis(marks: Iterable[Mark], title: str) -> str:
    """The left axis with its grid; its labels stand left of the drawing."""
    text = "".join(
        f'<line class="grid" x1="0" x2="100%" y1="{at:g}" y2="{at:g}"/>'
        f'<text class="tick-label y" x="-8" y="{at + 4:g}">{label}</text>'
        for at, label in marks
    )
    return f'{text}<text class="axis-title start" x="-76" y="11">{escape(title)}</text>'


def power(exponent: int, base: int = 2) -> str:
    """A power of two (or of ten), as SVG text."""
    shown = str(exponent).replace("-", MINUS)
    return f'{base}<tspan class="sup" dy="-5">{shown}</tspan>'


def chart(label: str, beneath: str, lines: str, above: str = "") -> Markup:
    """The drawing, with what it shows in words. lines: in units, stretched to the width and cut off at the plot's edge.

    beneath, above: axes, labels and dots, placed by percentages.
    """
    box = f'viewBox="0 {TOP} {SPAN} {FOOT - TOP}" y="{TOP}" width="100%" height="{FOOT - TOP}"'
    return Markup(
        f'<div class="frame"><svg class="chart" width="100%" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{beneath}'
        f'<svg class="stretched" {box} preserveAspectRatio="none">{lines}</svg>{above}</svg></div>'
    )
