"""The page's comparison of what FP32 foretold with what FP16 did."""

import dataclasses
import re

import report_samples as samples
from mpdiag.foretold import summarized
from mpdiag.report import html
from mpdiag.report.html_prediction import prediction_view
from prediction_samples import FOUND, forecast


def page(prediction, reason=None):
    diagnosis = samples.full()
    run = dataclasses.replace(diagnosis.verification, prediction=prediction, prediction_reason=reason)
    return html.render(dataclasses.replace(diagnosis, verification=run), plotly="none")


def test_tensors_at_one_place_are_one_larger_dot_and_noise_is_none():
    dots = re.findall(r'<circle class="forecast"[^>]* r="([\d.]+)"', prediction_view(FOUND).chart)
    assert sorted(map(float, dots)) == [3.0, 3.41]


def test_the_worst_come_first_and_those_without_error_not_at_all():
    assert [t.name for t in prediction_view(FOUND).worst] == ["off"]


def test_the_page_says_how_far_off_in_what_states_and_at_which_scales():
    text = re.sub(r"<[^>]+>|\s+", " ", page(FOUND))
    assert "3 comparisons of one tensor in one step, at the initial weights and after 20 FP32 steps" in text
    assert "FP16 emulated" in text
    assert "0.000 percentage points in the median and 1.000 at the 95th percentile" in text
    assert "Left out: 1 whose gradient is mathematically zero" in text


def test_an_overflow_nobody_foretold_is_on_the_page():
    found = summarized([forecast("surprise", 0.0, 0.0, observed_overflow=0.5)], emulated=False)
    assert "Overflowed although nothing predicted it: surprise (activation_gradient)" in page(found)


def test_a_cascade_that_could_not_be_computed_is_said_with_its_reason():
    found = dataclasses.replace(FOUND, cascade_reason="the cascade could not be computed: no memory")
    assert "counts alone: the cascade could not be computed: no memory." in page(found)
    assert "an FP32 pass whose values and gradients are rounded" in page(FOUND)


def test_without_a_comparison_the_page_gives_the_reason():
    assert prediction_view(None) is None
    assert "Prediction and observation were not compared: the user stopped it." in page(None, "the user stopped it")
