"""Numbers for people: one rule for the page, the terminal and the axes."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_samples as samples
from mpdiag.report import markdown, terminal
from mpdiag.report.charts import loss_figure
from mpdiag.report.curves import loss_curves
from mpdiag.report.html_axes import labelled, ticks
from mpdiag.report.html_numbers import prose, signed, value
from mpdiag.report.plain_numbers import plain, tidy

THIN = "\u202f"


@pytest.mark.parametrize(
    ("number", "digits", "text"),
    [
        (0.0, 4, "0"), (-0.0, 4, "0"), (2934.56, 3, "2935"), (2934.56, 4, "2935"), (27655.4, 4, "27655"),
        (99999.0, 4, "99999"), (99999.9, 4, "1e5"), (131072.0, 4, "1.311e5"), (1.205e9, 4, "1.205e9"),
        (0.001, 4, "0.001"), (0.00099996, 4, "0.001"), (0.00099, 4, "9.9e-4"), (4.76837e-07, 4, "4.768e-7"),
        (-3.2e-5, 2, "-3.2e-5"), (0.3, 2, "0.3"), (math.inf, 4, "inf"), (math.nan, 4, "NaN"), (5e-324, 2, "4.9e-324"),
    ],
)  # fmt: skip
def test_digits_are_plain_from_a_thousandth_to_99_999_and_a_power_of_ten_outside(number, digits, text):
    assert plain(number, digits) == text


@given(st.floats(-1e300, 1e300), st.integers(2, 5))
def test_a_number_reads_back_as_itself_to_its_digits(number, digits):
    shown = plain(number, digits)
    assert float(shown) == pytest.approx(number, rel=0.51 * 10.0 ** (1 - digits), abs=5e-324)
    assert re.fullmatch(r"-?\d+(\.\d+)?(e-?[1-9]\d*)?", shown)
    assert ("e" in shown) == (number != 0 and not 1e-3 <= abs(float(shown)) < 1e5)


def test_the_page_takes_the_same_digits_and_sets_the_power():
    assert value(1.205e9) == f"1.205{THIN}×{THIN}10<sup>9</sup>"
    assert value(90112.0) == "90112"
    assert value(3.8e-4, 2) == f"3.8{THIN}×{THIN}10<sup>−4</sup>"
    assert signed(2934.5, 2) == "+2934"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("margin ±3.29e+03 (90 % within -4.3e-06..+2.2e-06)", "margin ±3290 (90 % within -4.3e-6..+2.2e-6)"),
        ("reaches 1.205e+09, off by 2.6e-05 %", "reaches 1.205e9, off by <0.001 %"),
        ("Adam(lr=1e-05), f(1e-05), eps 1e-8, `x * 1e+03`, v1.2e-05x", None),
        ("difference +1.1e-05; 5e+04 of them", "difference +1.1e-5; 50000 of them"),
    ],
)
def test_a_number_inside_a_text_is_set_for_people_and_code_is_left_alone(text, shown):
    assert tidy(text) == (shown or text)


def test_the_page_sets_the_numbers_of_a_text_by_the_same_rule():
    assert prose("within ±3.29e+03, off by 2.6e-05 %") == f"within ±3290, off by &lt;0.001{THIN}%"
    assert prose("-1.2e-07 <b>") == f"−1.2{THIN}×{THIN}10<sup>−7</sup> &lt;b&gt;"


def test_no_text_for_people_shows_an_exponent_as_python_prints_it():
    full = samples.full()
    assert full.verification is not None
    assert full.advice is not None
    found = dataclasses.replace(full.advice.findings[0], message="it reaches 1.205e+09, of 2.93e+03")
    made = dataclasses.replace(
        full,
        advice=dataclasses.replace(full.advice, findings=(found,)),
        verification=dataclasses.replace(full.verification, reason="loss differs by 4.7e-07", cut=("1e+06 left out",)),
    )
    for text in (terminal.render(made, width=100), markdown.render(made)):
        assert re.findall(r"\d(?:\.\d+)?e(?:[+-]\d\d+|\+\d)", text) == []
        assert "loss differs by 4.7e-7" in text
        assert "1.205e9, of 2930" in text
        assert "1e6 left out" in text


# axes


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.05, 0.1], ["0", "0.05", "0.10"]),
        ([-1.0, 0.0, 1.0], ["−1", "0", "1"]),
        ([0.0, 20000.0, 40000.0], ["0", "20000", "40000"]),
        ([0.0005, 0.001], ["0.0005", "0.0010"]),
        ([0.0], ["0"]),
    ],
)
def test_the_labels_of_an_axis_have_plain_digits_of_one_length(values, labels):
    assert labelled(values) == labels


def test_a_long_axis_has_one_power_of_ten_for_all_its_labels():
    made = [re.sub(r"<[^>]*>", "", label).replace(THIN, " ") for label in labelled([0.0, 1e9, 1.5e9, 2e9])]
    assert made == ["0", "1.0 × 109", "1.5 × 109", "2.0 × 109"]
    assert [re.sub(r"<[^>]*>", "", x) for x in labelled([-4e-7])] == [f"−4{THIN}×{THIN}10−7"]


def test_ticks_of_tiny_losses_are_not_rounded_to_zero():
    assert ticks(0, 1e-13)[1] == 2e-14


def test_a_loss_of_billions_is_a_power_of_ten_in_both_charts():
    runs = [samples.run_of("fp32", losses=(1.6e11, 1.4e11, 1.2e11, 1e11))]
    drawn, figure = str(loss_curves(runs)), loss_figure(runs)
    assert f'{THIN}×{THIN}10<tspan class="sup" dy="-5">11</tspan>' in drawn
    assert "e+" not in drawn
    assert figure is not None
    assert figure["data"][0]["text"][0] == value(1.6e11)
    assert (figure["layout"]["yaxis"]["exponentformat"], figure["layout"]["yaxis"]["minexponent"]) == ("power", 4)
