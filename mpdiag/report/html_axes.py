"""What the static charts are drawn with: scales, ticks, axes and lines, as SVG that reads without a script."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 960, 310
LEFT, RIGHT, TOP, BOTTOM = 74, 16, 26, 46
FOOT, EDGE = HEIGHT - BOTTOM, WIDTH - RIGHT  # the plot's lower and right end
DASHES = ("", "7 4", "2 3", "9 3 2 3", "4 2", "1 4")


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixels of a value, to a tenth."""
        span = (self.high - self.low) or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 1)


def across(low: float, high: float) -> Scale:
    """The scale of an x axis."""
    return Scale(low, high, LEFT, EDGE)


def upward(low: float, high: float) -> Scale:
    """The scale of a y axis."""
    return Scale(low, high, FOOT, TOP)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


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


def step_axis(x: Scale, last: int) -> str:
    """The x axis of training steps 1..last."""
    return x_axis([(x(v), f"{v:.0f}") for v in ticks(1, last, 8) if v == int(v)], "training step")


def x_axis(marks: Iterable[tuple[float, str]], title: str) -> str:
    """The lower axis; marks: (pixels, label as SVG)."""
    text = "".join(
        f'<path class="tick" d="M{at:g} {FOOT}v4"/><text class="tick-label" x="{at:g}" y="{FOOT + 18}">{label}</text>'
        for at, label in marks
    )
    middle = (LEFT + EDGE) / 2
    drawn = f'<path class="axis" d="M{LEFT} {FOOT}H{EDGE}"/>'
    return f'{drawn}{text}<text class="axis-title" x="{middle:g}" y="{HEIGHT - 8}">{escape(title)}</text>'


def y_axis(marks: Iterable[tuple[float, str]], title: str) -> str:
    """The left axis with its grid; marks: (pixels, label as SVG)."""
    text = "".join(
        f'<path class="grid" d="M{LEFT} {at:g}H{EDGE}"/>'
        f'<text class="tick-label y" x="{LEFT - 8}" y="{at + 4:g}">{label}</text>'
        for at, label in marks
    )
    return f'{text}<text class="axis-title start" x="4" y="11">{escape(title)}</text>'


def power(exponent: int, base: int = 2) -> str:
    """A power of two (or of ten), as SVG text."""
    shown = str(exponent).replace("-", "\u2212")
    return f'{base}<tspan class="sup" dy="-5">{shown}</tspan>'


def chart(label: str, inside: str) -> Markup:
    """The drawing, with what it shows in words."""
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'
    )
