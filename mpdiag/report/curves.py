"""The static charts, as SVG: losses by step, their distance from FP32, shares lost by loss scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.diagnosis import LossScaleAdvice, ScalePoint, Trial
from mpdiag.report.arm_styles import DASHES, styles_of
from mpdiag.report.html_axes import (
    FOOT,
    SPAN,
    TOP,
    Scale,
    across,
    chart,
    labelled,
    level,
    line,
    percent,
    power,
    step_axis,
    ticks,
    upward,
    x_axis,
    y_axis,
)
from mpdiag.report.html_gaps import gap_axis, gaps

SHARE_FLOOR = 1e-6  # shares have no lower end on a log axis; what is below lies on this line and says so
SHARE_TICKS = ((1e-6, "≤0.0001 %"), (1e-4, "0.01 %"), (1e-2, "1 %"), (1.0, "100 %"))
MOST_LABELS = 10
NARROWEST = 1.0  # octaves: how wide a window is drawn at least, so that one of a single scale can be seen


@dataclass(frozen=True)
class ShareLine:
    """One curve of the loss-scale chart."""

    key: str
    label: str
    read: Callable[[ScalePoint], float]


SHARE_LINES = (
    ShareLine("under", "underflow: share of the gradient elements that become zero", lambda p: p.underflow),
    ShareLine("energy", "energy lost: their share of the squared gradient norm", lambda p: p.energy_lost),
    ShareLine("over", "overflow: share of the elements that become infinite", lambda p: p.overflow),
)
SHARE_DASHES = ("", "7 4", "2 3")


def loss_range(trials: Sequence[Trial]) -> tuple[float, float] | None:
    """The y range of the loss chart; a diverging arm may not squash the others.

    The top is at most twice the spread of the first arm above its minimum. None: no finite loss at all.
    """
    finite = [x for t in trials for x in t.losses if math.isfinite(x)]
    if not finite:
        return None
    baseline = [x for t in trials if t.arm == trials[0].arm for x in t.losses if math.isfinite(x)] or finite
    low, spread = min(finite), max(baseline) - min(baseline)
    low = max(low, min(baseline) - spread) if spread > 0 else low
    high = min(max(finite), min(baseline) + 2 * spread) if spread > 0 else max(finite)
    pad = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (low - pad if low < 0 or low - pad > 0 else 0.0), high + pad


def loss_curves(trials: Sequence[Trial]) -> Markup | None:
    """Loss against step, one line a trial; a non-finite loss is a gap. None when nothing can be drawn."""
    limits = loss_range(trials)
    if limits is None:
        return None
    last = max(len(t.losses) for t in trials)
    x, y = across(1, max(last, 2)), upward(*limits)
    style = styles_of(t.arm for t in trials)
    lines = "".join(
        line([(x(i + 1), y(v)) for i, v in _finite(t.losses)], f"arm-{style[t.arm]}", DASHES[style[t.arm]])
        for t in trials  # the baseline is broad and lies beneath, so that an equal curve can be seen on it
    )
    marks = ticks(*limits)
    axes = step_axis(x, last) + y_axis(zip(map(y, marks), labelled(marks), strict=True), "training loss")
    return chart("Training loss by step", axes, lines)


def gap_curves(trials: Sequence[Trial], margin: float | None = None) -> Markup | None:
    """Distance from FP32 by step on a log axis, one line an arm; None when no loss differs from FP32's.

    `margin` is what counts as equal in the mean over the second half: a line to hold the others against.
    """
    found = gaps(trials)
    axis = gap_axis(found, margin)
    if axis is None:
        return None
    last = max(len(gap.values) for gap in found)
    x, y = across(1, max(last, 2)), upward(axis.low - 1, axis.high)
    style = styles_of(gap.arm for gap in found)
    lines = "".join(
        line(
            [(x(i), y(axis.position(v))) for i, v in enumerate(gap.values, 1)],
            f"arm-{style[gap.arm]}",
            DASHES[style[gap.arm]],
        )
        for gap in found
    )
    axes = step_axis(x, last)
    marks = [(y(axis.low - 1), "0"), *((y(e), power(e, 10)) for e in axis.decades)]
    axes += y_axis(marks, "|loss − FP32 loss|")
    equal = level(y(axis.position(margin)), "margin") if margin else ""
    return chart("Distance of each arm's loss from FP32 by step", axes, equal + lines)


def share_position(share: float) -> float:
    """log10 of a share, held at the floor of the axis."""
    return math.log10(max(share, SHARE_FLOOR))


def loss_scale_curve(advice: LossScaleAdvice) -> Markup | None:
    """Shares lost and overflowing against log2 of the loss scale; None without a curve."""
    if not advice.curve:
        return None
    points = sorted(advice.curve, key=lambda p: p.log2_scale)
    x = across(points[0].log2_scale, points[-1].log2_scale)
    y = upward(math.log10(SHARE_FLOOR), 0)
    lines = "".join(
        line([(x(p.log2_scale), y(share_position(share.read(p)))) for p in points], f"s-{share.key}", dash)
        for share, dash in zip(SHARE_LINES, SHARE_DASHES, strict=True)
    )
    axes = x_axis([(x(e), power(e)) for e in exponents_shown(points)], "loss scale S")
    axes += y_axis([(y(math.log10(v)), text) for v, text in SHARE_TICKS], "share of the gradients")
    return chart("Share of the gradients lost by loss scale", _window(advice, x) + axes, lines, _recommended(advice, x))


def exponents_shown(points: Sequence[ScalePoint]) -> list[int]:
    """The exponents to label on the axis of the loss scale: as many as a telephone has room for."""
    low, high = points[0].log2_scale, points[-1].log2_scale
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64) if (high - low) // step < MOST_LABELS)
    return [e for e in range(low, high + 1) if e % every == 0]


def window(advice: LossScaleAdvice) -> tuple[int, int] | None:
    """The feasible window in log2, or None when there is none."""
    if advice.lower_log2 is None or advice.upper_log2 is None or advice.lower_log2 > advice.upper_log2:
        return None
    return advice.lower_log2, advice.upper_log2


def stopped(trials: Iterable[Trial]) -> list[str]:
    """A sentence for the trials of an arm whose loss stopped being a number at the same step."""
    told: dict[tuple[str, str, int], list[int]] = {}
    for trial in trials:
        at = next((i for i, v in enumerate(trial.losses, 1) if not math.isfinite(v)), None)
        if at is not None:
            what = "NaN" if math.isnan(trial.losses[at - 1]) else "infinite"
            told.setdefault((trial.arm, what, at), []).append(trial.seed)
    return [
        f"{arm}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}: "
        f"the loss is {what} from step {at} on."
        for (arm, what, at), seeds in told.items()
    ]


def _finite(losses: Sequence[float]) -> list[tuple[int, float]]:
    """(index, loss), with NaN standing for every non-finite one so that the line breaks there."""
    return [(i, v if math.isfinite(v) else math.nan) for i, v in enumerate(losses)]


def drawn_window(advice: LossScaleAdvice, low: float, high: float) -> tuple[float, float] | None:
    """The feasible window in log2 as it is drawn on an axis from low to high: inside it, and wide enough to see."""
    feasible = window(advice)
    if feasible is None:
        return None
    left, right = (min(max(end, low), high) for end in feasible)
    spare = max(0.0, NARROWEST - (right - left)) / 2
    left, right = max(left - spare, low), min(right + spare, high)
    return min(left, high - NARROWEST), max(right, low + NARROWEST)


def _window(advice: LossScaleAdvice, x: Scale) -> str:
    ends = drawn_window(advice, x.low, x.high)
    if ends is None:
        return ""
    left, right = map(x, ends)
    size = f'width="{percent(right - left)}" height="{FOOT - TOP}"'
    return f'<rect class="window" x="{percent(left)}" y="{TOP}" {size}/>'


def _recommended(advice: LossScaleAdvice, x: Scale) -> str:
    if advice.log2_scale is None:
        return ""
    at = x(min(max(advice.log2_scale, x.low), x.high))
    anchor = "end" if at > SPAN * 0.8 else "start" if at < SPAN * 0.2 else "middle"
    where = percent(at)
    return (
        f'<line class="recommended" x1="{where}" x2="{where}" y1="{TOP}" y2="{FOOT}"/>'
        f'<text class="mark" text-anchor="{anchor}" x="{where}" y="{TOP - 6}">'
        f"recommended {power(advice.log2_scale)}</text>"
    )
