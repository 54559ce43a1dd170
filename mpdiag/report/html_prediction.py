"""What the FP32 counts predicted against what FP16 did: a chart of every tensor, and the worst ones in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mpdiag.foretold import Prediction, TensorForecast
from mpdiag.report.curves import SHARE_FLOOR, SHARE_TICKS, share_position
from mpdiag.report.html_axes import FOOT, SPAN, TOP, across, chart, percent, upward, x_axis, y_axis
from mpdiag.report.html_numbers import power

WORST = 8  # rows; what they show is that there is nothing to see further down
_LOW = math.log10(SHARE_FLOOR)


@dataclass(frozen=True)
class PredictionView:
    """What the page shows of a prediction."""

    chart: Markup
    worst: tuple[TensorForecast, ...]
    states: str
    scales: Markup
    errors: str


def prediction_view(prediction: Prediction | None) -> PredictionView | None:
    """The chart and the worst tensors; None where nothing was compared."""
    if prediction is None or not prediction.tensors:
        return None
    signal = [t for t in prediction.tensors if t.comparable and math.isfinite(t.error_points)]
    trained = sorted({t.trained_steps for t in prediction.tensors})
    states = " and ".join("at the initial weights" if n == 0 else f"after {n} FP32 steps" for n in trained)
    scales = Markup(" and ").join(power(k) for k in sorted({t.log2_scale for t in prediction.tensors}))
    worst = sorted(signal, key=lambda t: -t.error_points)[:WORST]
    told = tuple(t for t in worst if t.error_points)
    return PredictionView(_scatter(signal), told, states, scales, _errors(prediction))


def _errors(prediction: Prediction) -> str:
    """How far off in the median and at the 95th percentile; empty where one of them is not known."""
    median, p95 = prediction.median_error_points, prediction.p95_error_points
    if median is None or p95 is None:
        return ""
    text = f"Underflow differs by {median:.3f} percentage points in the median and {p95:.3f} at the 95th percentile"
    median, p95 = prediction.alone_median_error_points, prediction.alone_p95_error_points
    alone = "" if median is None or p95 is None else f" (from each tensor's counts alone {median:.3f} and {p95:.3f})"
    how = " Predicted by an FP32 pass whose values and gradients are rounded where FP16 would store them."
    if prediction.cascade_reason is not None:
        how = f" Predicted from each tensor's counts alone: {prediction.cascade_reason}."
    return f"{text}{alone}.{how}"


def _scatter(tensors: Sequence[TensorForecast]) -> Markup:
    """Observed against predicted share, both on log axes; tensors at one place are one dot, larger for more."""
    x, y = across(_LOW, 0), upward(_LOW, 0)
    places: Counter[tuple[int, int]] = Counter()
    for tensor in tensors:
        predicted = tensor.predicted_underflow if tensor.cascade_underflow is None else tensor.cascade_underflow
        places[round(x(share_position(predicted))), round(y(share_position(tensor.observed_underflow)))] += 1
    dots = "".join(
        f'<circle class="forecast" cx="{percent(at_x)}" cy="{at_y}" r="{min(9.0, 2 + math.sqrt(count)):.3g}"/>'
        for (at_x, at_y), count in sorted(places.items())
    )
    diagonal = f'<path class="margin" d="M0 {FOOT}L{SPAN} {TOP}"/>'
    marks = [(math.log10(share), text) for share, text in SHARE_TICKS]
    axes = x_axis([(x(v), text) for v, text in marks[1:]], "underflow predicted from FP32, share of a tensor")
    axes += y_axis([(y(v), text) for v, text in marks], "underflow observed in FP16")
    return chart(
        "Underflow observed in FP16 against underflow predicted from FP32, a dot a tensor", axes, diagonal, dots
    )
