"""Exponent strips: a tensor's histogram as a small SVG, on one axis for the whole page.

Each bar is one binade, its height linear in the share of elements, never lower than a hairline so that no
occupied binade disappears. The ground shows the four zones of FP16; the outline shows the same tensor after
the recommended loss scale.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.formats import FP16
from mpdiag.histogram import ExponentHistogram

WIDTH, HEIGHT = 240, 36
HAIRLINE = 1.4
LETTER, GAP = 6.0, 4.0  # pixels of a letter of a zone's name, and between two names
FLOOR, CEILING = -48, 32  # FP32 reaches 2^-149, but what lies there is no more lost than at 2^-48

ROUNDS_TO_ZERO = FP16.min_subnormal_exponent - 1  # -25: below is underflow
SUBNORMAL = FP16.min_exponent  # -14: below keeps fewer bits
OVERFLOW = FP16.max_exponent + 1  # 16: from here on infinite
ZONES = (
    ("under", "underflow"),
    ("sub", "subnormal"),
    ("norm", "normal"),
    ("over", "overflow"),
)


@dataclass(frozen=True)
class StripAxis:
    """The exponents shown, [low, high); the same for every strip of a page."""

    low: int
    high: int

    def x(self, exponent: float) -> float:
        """Where an exponent lies, in pixels of the drawing."""
        inside = min(max(exponent, self.low), self.high)
        return round((inside - self.low) * WIDTH / (self.high - self.low), 2)

    @property
    def zones(self) -> tuple[tuple[str, float, float], ...]:
        """(class, from, to) of the FP16 zones in pixels."""
        edges = (self.low, ROUNDS_TO_ZERO, SUBNORMAL, OVERFLOW, self.high)
        return tuple((name, self.x(edges[i]), self.x(edges[i + 1])) for i, (name, _) in enumerate(ZONES))

    @property
    def ticks(self) -> tuple[int, ...]:
        """Every eighth exponent."""
        return tuple(e for e in range(self.low, self.high + 1) if e % 8 == 0)


def axis_for(histograms: Iterable[ExponentHistogram]) -> StripAxis:
    """An axis that holds all of them and always the FP16 limits, rounded out to fours."""
    occupied = [h for h in histograms if h.counts]
    low = min((h.lowest for h in occupied), default=-32)
    high = max((h.highest + 1 for h in occupied), default=16)
    low = max(min(low, ROUNDS_TO_ZERO - 3), FLOOR)
    high = min(max(high, OVERFLOW + 8), CEILING)
    return StripAxis(low - low % 4, high + -high % 4)


def zone_of(exponent: int) -> str:
    """What FP16 does to a binade: under, sub, norm or over."""
    if exponent < ROUNDS_TO_ZERO:
        return "under"
    if exponent < SUBNORMAL:
        return "sub"
    return "norm" if exponent < OVERFLOW else "over"


def ground(axis: StripAxis) -> Markup:
    """The zones and limits behind every strip, drawn once and referred to by each."""
    bands = "".join(
        f'<rect class="ground z-{name}" x="{x0:g}" y="0" width="{x1 - x0:g}" height="{HEIGHT}"/>'
        for name, x0, x1 in axis.zones
    )
    ticks = "".join(f"M{axis.x(e):g} {HEIGHT}v-2" for e in axis.ticks)
    limits = "".join(f"M{axis.x(e):g} 0V{HEIGHT}" for e in (ROUNDS_TO_ZERO, SUBNORMAL, OVERFLOW))
    return Markup(
        '<svg class="defs" width="0" height="0" aria-hidden="true"><defs><g id="strip-ground">'
        f'{bands}<path class="tick" d="{ticks}"/><path class="limit" d="{limits}"/></g>'
        '<pattern id="noise-hatch" width="3" height="3" patternUnits="userSpaceOnUse">'
        '<path class="hatch" d="M0 3L3 0"/></pattern></defs></svg>'
    )


def header(axis: StripAxis) -> Markup:
    """The axis above the strips: zones in words, ticks, and the three FP16 limits by name."""
    names = dict(ZONES)
    words = "".join(
        f'<text class="zone-name t-{name}" x="{(x0 + x1) / 2:.1f}" y="9"><title>{names[name]}</title>{word}</text>'
        for name, x0, x1 in axis.zones
        if (word := _fitting(names[name], x1 - x0))
    )
    limits = (ROUNDS_TO_ZERO, SUBNORMAL, OVERFLOW)
    labels = "".join(
        f'<text class="{"limit-label" if e in limits else "tick-label"}" x="{axis.x(e):g}" y="25">'
        f'2<tspan class="sup" dy="-4">{_minus(e)}</tspan></text>'
        for e in sorted({*limits, *_spaced(axis, limits)})
    )
    ticks = "".join(f"M{axis.x(e):g} 34v-3" for e in axis.ticks)
    marks = "".join(f"M{axis.x(e):g} 34v-6" for e in limits)
    return Markup(
        f'<svg class="strip-axis" viewBox="0 0 {WIDTH} 34" width="{WIDTH}" height="34" role="img" '
        'aria-label="Axis: magnitude in powers of two, with the FP16 limits">'
        f'{words}{labels}<path class="tick" d="{ticks}"/><path class="limit" d="{marks}"/></svg>'
    )


def strip(
    histogram: ExponentHistogram, axis: StripAxis, log2_scale: int | None = None, noise_below: int | None = None
) -> Markup:
    """One tensor. With `log2_scale`, the outline of the tensor multiplied by it is drawn over the bars.

    Binades below `noise_below` are rounding noise and drawn hatched.
    """
    paths: dict[str, list[str]] = {name: [] for name in (*dict(ZONES), "noise")}
    for exponent, height in _bars(histogram, axis).items():
        width = axis.x(exponent + 1) - axis.x(exponent) - 0.6
        zone = "noise" if noise_below is not None and exponent < noise_below else zone_of(exponent)
        paths[zone].append(f"M{axis.x(exponent):g} {HEIGHT}v-{height:g}h{width:.1f}v{height:g}z")
    hatched = {"noise": ' fill="url(#noise-hatch)"'}
    bars = "".join(
        f'<path class="z-{name}"{hatched.get(name, "")} d="{"".join(d)}"/>' for name, d in paths.items() if d
    )
    kept = histogram if noise_below is None else histogram.from_exponent(noise_below)
    moved = _outline(kept.scaled(log2_scale), axis) if log2_scale else ""
    return Markup(
        f'<svg class="strip" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{_spoken(histogram)}"><use href="#strip-ground"/>{bars}{moved}</svg>'
    )


def _bars(histogram: ExponentHistogram, axis: StripAxis) -> dict[int, float]:
    """{exponent: height in pixels}; what lies beyond the axis stands in its outermost binade."""
    shown: dict[int, int] = {}
    for exponent, count in histogram.bins.items():
        inside = min(max(exponent, axis.low), axis.high - 1)
        shown[inside] = shown.get(inside, 0) + count
    tallest = max(shown.values(), default=1)
    return {e: round(max(HAIRLINE, (HEIGHT - 4) * n / tallest), 1) for e, n in shown.items()}


def _outline(histogram: ExponentHistogram, axis: StripAxis) -> str:
    bars = _bars(histogram, axis)
    if not bars:
        return ""
    path, previous = [f"M{axis.x(min(bars)):g} {HEIGHT}"], HEIGHT + 0.0
    for exponent in range(min(bars), max(bars) + 1):
        top = round(HEIGHT - bars.get(exponent, 0.0), 1)
        if top != previous:
            path.append(f"V{top:g}")
        path.append(f"H{axis.x(exponent + 1):g}")
        previous = top
    return f'<path class="moved" d="{"".join(path)}V{HEIGHT}"/>'


def _spoken(histogram: ExponentHistogram) -> str:
    if not histogram.counts:
        return "no finite non-zero element"
    return f"exponents from {histogram.lowest} to {histogram.highest}"


def _spaced(axis: StripAxis, limits: tuple[int, ...]) -> list[int]:
    """Ticks far enough from the limits and the edges for their labels to be read."""
    room = 28 * (axis.high - axis.low) / WIDTH
    candidates = [e for e in axis.ticks if axis.low + room / 2 <= e <= axis.high - room / 2]
    return [e for e in candidates if all(abs(e - limit) >= room for limit in limits) and e % 16 == 0]


def _fitting(word: str, room: float) -> str:
    """The word, or the short form of the table's headings, or nothing: what does not fit would run into the next."""
    short = {"subnormal": "subn.", "underflow": "under", "overflow": "over"}
    return next((text for text in (word, short.get(word, word)) if LETTER * len(text) + GAP <= room), "")


def _minus(exponent: int) -> str:
    return str(exponent).replace("-", "\u2212")
