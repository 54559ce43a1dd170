"""MP604 and MP605: what the runs lose in FP16, against what was foretold. Both sides of every threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mpdiag.diagnosis import Finding
from mpdiag.foretold import TensorForecast, summarized
from trial_check_samples import ADVICE, found, said, severities

# MP604 dead-layer-gradient


SCALE = ADVICE.loss_scale.log2_scale or 0


def forecast(observed: float, name: str = "fc.weight", **more: Any) -> TensorForecast:
    fields: dict[str, Any] = {"kind": "weight_gradient", "log2_scale": SCALE, "predicted": 0.01, "overflow": 0.0} | more
    return TensorForecast(
        name, fields["kind"], 20, fields["log2_scale"], 100, fields["predicted"], None, observed, 0.0,
        fields["overflow"], more.get("noise", False), more.get("energy_lost"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("energy_lost", "foretold", "says"), [(1e-24, 0.97, False), (1e-3, 0.97, True), (1e-24, 0.01, True)]
)
def test_mp604_small_elements_that_carry_nothing_are_no_dead_gradient(energy_lost, foretold, says):
    # the third: nearly all is zero though the counts foretold a hundredth, so something upstream was lost
    assert bool(dead(forecast(0.97, predicted=foretold, energy_lost=energy_lost))) is says


def dead(*tensors: TensorForecast) -> list[Finding]:
    return found("MP604", prediction=summarized(tensors, True))


@pytest.mark.parametrize(
    ("observed", "severity"), [(0.5, []), (0.51, ["warning"]), (0.999, ["warning"]), (1.0, ["error"])]
)
def test_mp604_what_is_zero_in_fp16_and_not_in_fp32(observed, severity):
    assert severities(dead(forecast(observed))) == severity


def test_mp604_names_the_worst_and_counts_the_others():
    (f,) = dead(forecast(0.6, "a"), forecast(1.0, "b"), forecast(0.7, "c", kind="activation_gradient"))
    assert (f.subject, f.evidence["observed"], f.evidence["predicted"]) == ("b", 1.0, 0.01)
    assert f.message.endswith("after 20 steps (1 % foretold); so is that of 2 more")


@pytest.mark.parametrize(
    "exempt", [{"kind": "activation"}, {"noise": True}, {"log2_scale": SCALE + 1}, {"overflow": 0.1}]
)
def test_mp604_what_is_no_gradient_at_the_recommended_scale_is_no_matter(exempt):
    assert dead(forecast(1.0, **exempt)) == []


# MP605 prediction-missed


def test_mp605_an_overflow_that_was_not_foretold():
    seen = summarized([forecast(0.0, "head", kind="activation", overflow=0.5)], True)
    (f,) = found("MP605", prediction=seen)
    assert (f.severity, f.subject) == ("warning", "head")
    assert f.message == "head's activation overflowed in FP16, which FP32's counts did not foretell"
    assert found("MP605", prediction=seen, advice=said("MP102")) == []  # which says so already


@pytest.mark.parametrize(("observed", "says"), [(0.06, False), (0.0601, True)])
def test_mp605_a_forecast_that_is_five_points_off_is_information(observed, says):
    findings = found("MP605", prediction=summarized([forecast(observed, predicted=0.01)], True))
    assert severities(findings) == ["info"] * says


def test_mp604_is_about_the_scale_that_the_runs_start_at_where_none_is_advised():
    scale = replace(ADVICE.loss_scale, log2_scale=None, upper_log2=12)
    advice = replace(ADVICE, loss_scale=scale)
    lost = [forecast(1.0, log2_scale=k) for k in (0, 12)]
    (f,) = found("MP604", advice=advice, prediction=summarized(lost, True))
    assert "at a loss scale of 2^12" in f.message
    assert found("MP604", advice=advice, prediction=summarized(lost[:1], True)) == []
