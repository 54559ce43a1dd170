"""The band below the loss curves: each arm's smoothed loss less FP32's of the same seed, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mpdiag.accuracy import CurveBand
from mpdiag.report.arm_styles import DASHES
from mpdiag.report.html_axes import Scale, across, chart, labelled, level, line, step_axis, ticks, upward, y_axis

MOST = 4  # times the largest mean or the margin: a wider band, of few seeds, may not squash the curves
MARGINS = 1.6  # the margin's lines stay inside the picture, with some room beyond them


def band_curves(
    bands: Sequence[CurveBand], styles: Mapping[str, int], controls: Sequence[str], margin: float | None
) -> Markup | None:
    """The mean difference with its band for every arm that has one; None where there is none.

    styles: each arm's colour and dash. controls: arms drawn without their band, and which may leave the picture, so
    that the others stay readable.
    margin: what counts as equal in the mean of the second half, drawn as two lines.
    """
    drawn = [b for b in bands if b.mean_difference is not None and b.arm in styles]
    reach = _reach([b for b in drawn if b.arm not in controls] or drawn, margin)
    if reach is None:
        return None
    x, y = across(1, max(2, *(b.steps[-1] for b in drawn))), upward(-reach, reach)
    areas = "".join(_area(b, x, y, styles[b.arm]) for b in drawn if b.arm not in controls)
    lines = "".join(
        line([(x(s), y(v)) for s, v in zip(b.steps, b.mean_difference or (), strict=True)],
             f"arm-{styles[b.arm]}", DASHES[styles[b.arm]])
        for b in drawn
    )  # fmt: skip
    marks = ticks(-reach, reach)
    axes = step_axis(x, int(x.high)) + y_axis(zip(map(y, marks), labelled(marks), strict=True), "loss − FP32 loss")
    equal = "".join(level(y(edge), "margin") for edge in ((margin, -margin) if margin else ()))
    return chart("Smoothed difference of each arm's loss from FP32, with its band", axes, areas + equal + lines)


def _reach(bands: Sequence[CurveBand], margin: float | None) -> float | None:
    """Half the height of the picture; None where there is nothing but zero to draw."""
    means = [abs(v) for b in bands for v in b.mean_difference or ()]
    ends = [abs(v) for b in bands for v in (*(b.low or ()), *(b.high or ()))]
    if not means or max(means) == 0:
        return None
    within = MARGINS * (margin or 0.0)
    return max(within, min(1.05 * max(ends), MOST * max(within, *means)))


def _area(band: CurveBand, x: Scale, y: Scale, colour: int) -> str:
    if band.low is None or band.high is None:
        return ""
    there = [f"{x(s):g} {y(v):g}" for s, v in zip(band.steps, band.high, strict=True)]
    back = [f"{x(s):g} {y(v):g}" for s, v in zip(band.steps, band.low, strict=True)]
    return f'<path class="band band-{colour}" d="M{"L".join([*there, *reversed(back)])}Z"/>'
