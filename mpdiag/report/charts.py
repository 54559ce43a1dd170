"""The same charts for plotly, and plotly itself, packed into the page.

Figures are plain dicts of lists: no numpy (it becomes opaque base64), no default template (6.5 kB a figure).
Colours are CSS variables, `var(--x)`, which the page's script reads when it draws, so dark mode holds.
"""

from __future__ import annotations

import base64
import functools
import gzip
import math
from collections.abc import Sequence
from typing import Any

from mpdiag.diagnosis import LossScaleAdvice, Trial
from mpdiag.report.arm_styles import DASHES, styles_of
from mpdiag.report.curves import (
    SHARE_DASHES,
    SHARE_FLOOR,
    SHARE_LINES,
    SHARE_TICKS,
    drawn_window,
    exponents_shown,
    loss_range,
    share_position,
)
from mpdiag.report.html_gaps import gap_axis, gaps
from mpdiag.report.html_numbers import value

Figure = dict[str, Any]

PLAIN_DIGITS = 4  # plotly's "minexponent": an axis up to 99,999 has plain digits, beyond it powers of ten
SHARE_COLOURS = {"under": "var(--under)", "energy": "var(--energy)", "over": "var(--over)"}


@functools.cache
def packed_plotly() -> str:
    """plotly.js of the installed package, gzip and base64: 2 MB instead of 4.8, the same bytes each time."""
    from plotly.offline import get_plotlyjs  # heavy, and only a page with zoomable charts needs it

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode("ascii")


def loss_figure(trials: Sequence[Trial]) -> Figure | None:
    """Loss against step, one line a trial; a non-finite loss is null, which plotly draws as a gap."""
    limits = loss_range(trials)
    if limits is None:
        return None
    style = styles_of(t.arm for t in trials)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"{_plain(t.arm)}, seed {t.seed}",
            "x": list(range(1, len(t.losses) + 1)),
            "y": [_finite(v) for v in t.losses],
            "text": [value(v) for v in t.losses],
            "line": {
                "color": f"var(--arm-{style[t.arm]})",
                "width": 1.6 if style[t.arm] else 3,
                "dash": _dash(DASHES[style[t.arm]]),
            },
            "opacity": 1 if style[t.arm] else 0.45,
            "hovertemplate": "%{text}",
        }
        for t in trials
    ]
    layout = _layout("training step", "training loss")
    layout["yaxis"]["range"] = list(limits)
    layout["margin"]["t"] = 14  # nothing stands above
    return {"data": data, "layout": layout}


def gap_figure(trials: Sequence[Trial], margin: float | None = None) -> Figure | None:
    """Distance from FP32 by step, one line an arm; on the axis of the static chart, zero included."""
    found = gaps(trials)
    axis = gap_axis(found, margin)
    if axis is None:
        return None
    style = styles_of(gap.arm for gap in found)
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": _plain(gap.arm),
            "x": list(range(1, len(gap.values) + 1)),
            "y": [_finite(axis.position(v)) for v in gap.values],
            "text": [value(v, 3) for v in gap.values],
            "line": {"color": f"var(--arm-{style[gap.arm]})", "width": 1.6, "dash": _dash(DASHES[style[gap.arm]])},
            "hovertemplate": "%{text}",
        }
        for gap in found
    ]
    layout = _layout("training step", "|loss − FP32 loss|")
    layout["margin"]["t"] = 14
    layout["yaxis"] |= {
        "tickvals": [axis.low - 1, *axis.decades],
        "ticktext": ["0", *(_power(e, 10) for e in axis.decades)],
        "range": [axis.low - 1.1, axis.high + 0.05],
    }
    if margin:
        at = axis.position(margin)
        line = {"color": "var(--ink)", "width": 1, "dash": "2px,2px"}
        layout["shapes"] = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": at, "y1": at, "line": line}]
    return {"data": data, "layout": layout}


def loss_scale_figure(advice: LossScaleAdvice) -> Figure | None:
    """Shares lost and overflowing against log2 of the loss scale."""
    if not advice.curve:
        return None
    points = sorted(advice.curve, key=lambda p: p.log2_scale)
    exponents = [p.log2_scale for p in points]
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": line.label.split(":")[0],
            "x": exponents,
            "y": [_finite(share_position(line.read(p))) for p in points],
            "text": [value(100 * line.read(p), 3) for p in points],
            "line": {"color": SHARE_COLOURS[line.key], "width": 2, "dash": _dash(dash)},
            "hovertemplate": "%{text} %",
        }
        for line, dash in zip(SHARE_LINES, SHARE_DASHES, strict=True)
    ]
    layout = _layout("loss scale S", "share of the gradients")
    shown = exponents_shown(points)
    layout["xaxis"] |= {
        "tickvals": shown,
        "ticktext": [_power(e) for e in shown],
        "range": [exponents[0], exponents[-1]],
        "unifiedhovertitle": {"text": "loss scale 2<sup>%{x}</sup>"},
    }
    layout["yaxis"] |= {
        "tickvals": [math.log10(v) for v, _ in SHARE_TICKS],
        "ticktext": [text for _, text in SHARE_TICKS],
        "range": [math.log10(SHARE_FLOOR) - 0.15, 0.15],
    }
    layout["shapes"], layout["annotations"] = _marks(advice, exponents[0], exponents[-1])
    return {"data": data, "layout": layout}


def _finite(value: float) -> float | None:
    """The value; what is not finite is null, which plotly draws as a gap."""
    return value if math.isfinite(value) else None


def _dash(svg: str) -> str:
    """An SVG dash pattern as plotly writes it."""
    return ",".join(f"{length}px" for length in svg.split()) or "solid"


def _marks(advice: LossScaleAdvice, first: float, last: float) -> tuple[list[Figure], list[Figure]]:
    shapes: list[Figure] = []
    notes: list[Figure] = []
    ends = drawn_window(advice, first, last)
    if ends:
        low, high = ends
        shapes.append(
            {
                "type": "rect",
                "layer": "below",
                "yref": "paper",
                "x0": low,
                "x1": high,
                "y0": 0,
                "y1": 1,
                "fillcolor": "var(--window)",
                "line": {"width": 0},
            }
        )
    if advice.log2_scale is not None:
        at = advice.log2_scale
        line = {"color": "var(--ink)", "width": 1.5}
        shapes.append({"type": "line", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line})
        text = f"recommended {_power(at)}"
        notes.append({"x": at, "y": 1, "yref": "paper", "yanchor": "bottom", "text": text, "showarrow": False})
    return shapes, notes


def _layout(x_title: str, y_title: str) -> Figure:
    """One look for all charts; the legend stays in the page, so it is the same with and without script."""
    axis: Figure = {
        "gridcolor": "var(--line)",
        "linecolor": "var(--faint)",
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": "var(--faint)",
        "exponentformat": "power",
        "minexponent": PLAIN_DIGITS,
    }
    return {
        "font": {"family": "var(--sans)", "size": 12, "color": "var(--muted)"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": "var(--faint)", "font": {"color": "var(--ink)"}},
        "height": 320,
        "margin": {"l": 88, "r": 16, "t": 26, "b": 46},
        "xaxis": {**axis, "showgrid": False, "title": {"text": x_title}},
        "yaxis": {**axis, "title": {"text": y_title, "standoff": 10}},
    }


def _power(exponent: int, base: int = 2) -> str:
    shown = str(exponent).replace("-", "\u2212")
    return f"{base}<sup>{shown}</sup>"


def _plain(text: str) -> str:
    """plotly reads a small HTML in names; an arm's name is text."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
