"""Saved scans that were edited or cut short: refused, or drawn."""

from __future__ import annotations

import dataclasses
import json

import pytest

import prediction_samples
import report_samples as samples
from mpdiag.errors import UsageError
from mpdiag.report import html, markdown, terminal
from mpdiag.saved import from_json, to_json


def test_a_scan_killed_before_its_verification_is_not_said_to_have_done_without():
    killed = dataclasses.replace(samples.full(), verification=None, reason=None)
    shown = " ".join(terminal.render(killed, width=200).split())
    assert "not verified: the scan was stopped before the verification" in shown
    assert "mixed precision was not run" not in shown
    assert "the scan was stopped before the verification" in html.render(killed, plotly="none")
    assert "mixed precision was not run" not in markdown.render(killed)


def tampered(value: object, *path: str | int) -> str:
    """The sample's JSON with another value at a place in it."""
    made = samples.full()
    run = dataclasses.replace(made.verification, prediction=prediction_samples.FOUND)
    record = json.loads(to_json(dataclasses.replace(made, verification=run)))
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(record)


SCALE = ("advice", "loss_scale")
FORECAST = ("verification", "prediction")


@pytest.mark.parametrize("value", [10**30, -(10**30), 2001])
@pytest.mark.parametrize(
    "path",
    [
        (*SCALE, "curve", 0, "log2_scale"),
        (*SCALE, "log2_scale"),
        (*SCALE, "lower_log2"),
        (*FORECAST, "tensors", 0, "log2_scale"),
        ("capture", "tables", 0, "histogram", "lowest"),
        ("capture", "tables", 0, "noise_floor_log2"),
        ("verification", "trials", 0, "final_log2_scale"),
    ],
)
def test_an_exponent_that_no_number_has_is_refused(path, value):
    with pytest.raises(UsageError) as refused:
        from_json(tampered(value, *path))
    assert refused.value.slug == "not-a-diagnosis"
    assert str(path[-1]) in refused.value.message


@pytest.mark.parametrize("value", [128, 150, -153])
def test_a_scale_that_fp32_cannot_hold_is_refused(value):
    with pytest.raises(UsageError):
        from_json(tampered(value, *SCALE, "log2_scale"))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (127, (*SCALE, "log2_scale")),
        (-152, (*SCALE, "log2_scale")),
        (127, (*SCALE, "upper_log2")),
        (2000, (*SCALE, "lower_log2")),
        (152, (*SCALE, "curve", 0, "log2_scale")),
        (2000, ("capture", "tables", 0, "histogram", "lowest")),
        ("NaN", (*SCALE, "curve", 0, "underflow")),
        ("Infinity", (*SCALE, "curve", 0, "overflow")),
        ("NaN", (*SCALE, "underflow_before")),
        ("NaN", (*FORECAST, "tensors", 0, "predicted_underflow")),
        ("Infinity", (*FORECAST, "tensors", 0, "observed_underflow")),
        (None, (*FORECAST, "p95_error_points")),
        (None, (*FORECAST, "alone_median_error_points")),
        ("NaN", (*FORECAST, "median_error_points")),
        ("NaN", ("elapsed_seconds", "verify")),
        ("Infinity", ("elapsed_seconds", "verify")),
    ],
)
def test_what_still_loads_can_be_drawn(value, path):
    loaded = from_json(tampered(value, *path))
    for drawn in (html.render(loaded), terminal.render(loaded), markdown.render(loaded), to_json(loaded)):
        assert drawn
