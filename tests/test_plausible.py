"""What no measurement gives is refused where a file is read, and what is read can be drawn."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import prediction_samples
import report_samples as samples
from cost_samples import full_costs
from mpdiag.accuracy import CurveBand
from mpdiag.diagnosis import Diagnosis
from mpdiag.drift import WindowAt
from mpdiag.errors import UsageError
from mpdiag.operations import OpRole, OpTable
from mpdiag.other_formats import FormatForecast
from mpdiag.report import html, markdown, terminal
from mpdiag.saved import from_json, to_json

BAND = CurveBand("fp16", 3, (1, 2), (0.0, 0.5), (-0.5, 0.25), (0.5, 0.75), 0.75, 1)
WINDOW = WindowAt(0, 9, 10, 4, 15, 15, 0.01, 1e-6)
FORECAST = FormatForecast("E4M3", "forward", "per tensor", 9, 4, 0.25, 0.1, 0.2, 3, "fc1 (weight)", 0.5, "fits")
OPERATION = OpTable("exp", "", "forward", OpRole.OUTPUT, "float32", 4, 1, samples.full().capture.tables[0].histogram)


def whole() -> Diagnosis:
    """A diagnosis with costs, curves, a drift and operations."""
    made, costs = samples.full(), full_costs()
    costs = dataclasses.replace(costs, timing=dataclasses.replace(costs.timing, batch_sizes=(30, 32)))
    run = dataclasses.replace(made.verification, prediction=prediction_samples.FOUND, curves=(BAND,), costs=costs)
    seen = dataclasses.replace(made.capture, operations=(dataclasses.replace(OPERATION, abs_max=2.0),))
    advice = dataclasses.replace(made.advice, drift=(WINDOW,), other_formats=(FORECAST,))
    return dataclasses.replace(made, verification=run, capture=seen, advice=advice)


def edited(value: Any, *path: str | int) -> str:
    """The JSON of that diagnosis with another value at a place in it."""
    record = json.loads(to_json(whole()))
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    assert not isinstance(inner, list) or path[-1] < len(inner)
    inner[path[-1]] = value
    return json.dumps(record)


SCALE = ("advice", "loss_scale")
RUN = ("verification",)
COSTS = (*RUN, "costs")
HUGE = 10**400  # no float holds it

REFUSED = {
    "a whole number without end": (HUGE, "capture", "tables", 0, "elements"),
    "one in the evidence": (HUGE, "advice", "findings", 0, "evidence", "limit"),
    "one of a list": ([HUGE], *COSTS, "timing", "batch_sizes"),
    "a step of a band": ([1, HUGE], *RUN, "curves", 0, "steps"),
    "bytes": (HUGE, *COSTS, "memory", 0, "peak_allocated_bytes"),
    "parts of bytes": ({"float16": HUGE}, *COSTS, "memory", 0, "split", "activations_bytes"),
    "a negative count past any": (-HUGE, "target", "parameters"),
    "steps of a band that are too few": ([1], *RUN, "curves", 0, "steps"),
    "no steps of a band": ([], *RUN, "curves", 0, "steps"),
    "a band's means that are too many": ([0.0, 0.5, 1.0], *RUN, "curves", 0, "mean_difference"),
    "a band's low end that is too short": ([-0.5], *RUN, "curves", 0, "low"),
    "a band's high end that is empty": ([], *RUN, "curves", 0, "high"),
    "noise at no distance": ("Infinity", "advice", "other_formats", 0, "noise_db"),
    "noise below no signal": ("NaN", "advice", "other_formats", 0, "noise_db"),
    "a margin that is none": ("NaN", *RUN, "comparisons", 0, "margin"),
    "a margin without end": ("Infinity", *RUN, "comparisons", 0, "margin"),
    "a margin that leaves no room": (1.7e308, *RUN, "comparisons", 0, "margin"),
    "a magnitude below zero": (-1.0, "capture", "operations", 0, "abs_max"),
    "a magnitude of minus infinity": ("-Infinity", "capture", "tables", 0, "abs_max"),
    "a window that does not say what is lost": (None, "advice", "drift", 0, "underflow"),
    "nor how much of the norm": (None, "advice", "drift", 0, "energy_lost"),
    "a timing of no arms": ([], *COSTS, "timing", "arms"),
    "batches of several sizes without their mean": (None, *COSTS, "timing", "samples"),
    "a peak of no bytes": ({}, *COSTS, "memory", 0, "split"),
    "a scale that no GradScaler holds": (128, *SCALE, "log2_scale"),
    "the scale tried instead": (128, *SCALE, "upper_log2"),
    "one that is no number to divide by": (-1001, *SCALE, "upper_log2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_measurement_gives_is_refused(name):
    with pytest.raises(UsageError) as refused:
        from_json(edited(*REFUSED[name]))
    assert refused.value.slug == "not-a-diagnosis"
    assert len(refused.value.message) < 200


DRAWN = {
    "the largest count": (2**64, "capture", "tables", 0, "elements"),
    "a large step": ([1, 2**62], *RUN, "curves", 0, "steps"),
    "a band without its ends": (None, *RUN, "curves", 0, "low"),
    "a wide margin": (1e300, *RUN, "comparisons", 0, "margin"),
    "a metric that evaluate did not give": ({}, *RUN, "trials", 0, "metric"),
    "tensor cores that nothing was read of": ({}, *RUN, "trials", 0, "tensor_core"),
    "a magnitude of zero": (0.0, "capture", "operations", 0, "abs_max"),
    "a magnitude that is not finite": ("Infinity", "capture", "tables", 0, "abs_max"),
    "a large share": (1e300, "advice", "other_formats", 0, "energy_lost"),
    "a window of no gradients": (
        dataclasses.asdict(WindowAt(0, 9, 10, None, None, None, None, None)), "advice", "drift", 0,
    ),
    "the largest scale": (127, *SCALE, "log2_scale"),
    "the least scale": (-152, *SCALE, "log2_scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_read_can_be_drawn(name):
    loaded = from_json(edited(*DRAWN[name]))
    for drawn in (html.render(loaded, plotly="none"), terminal.render(loaded), markdown.render(loaded)):
        assert drawn
    assert to_json(from_json(to_json(loaded))) == to_json(loaded)


def test_the_diagnosis_of_these_tests_is_whole_and_drawn_with_all_its_parts():
    loaded = from_json(to_json(whole()))
    page = html.render(loaded, plotly="none")
    assert 'id="speed"' in page
    assert "How the window moves" in page
    assert "with its band" in page
