"""How the page is laid out: what comes first, what is folded, and drawings that fit whatever room there is."""

from __future__ import annotations

import dataclasses
import itertools
import re

import pytest

import report_samples as samples
from mpdiag.diagnosis import LossScaleAdvice, ScalePoint
from mpdiag.histogram import ExponentHistogram
from mpdiag.other_formats import FormatChoice, FormatForecast, FormatOption
from mpdiag.report import charts, curves, strips
from mpdiag.report.html import render
from mpdiag.report.html_axes import SPAN
from page_parser import Page


@pytest.fixture(scope="module")
def source() -> str:
    full = samples.full()
    assert full.advice is not None
    fp8 = FormatForecast("E4M3", "forward", "per tensor", 9, 4, 0.1, 0.01, 0.0, 0, "fc (weight)", 0.2, "range fits")
    choice = FormatChoice("FP16", True, "trained here", (FormatOption("FP8", False, "needs 8.9"),))
    advice = dataclasses.replace(full.advice, other_formats=(fp8,), format_choice=choice)
    return render(dataclasses.replace(full, advice=advice), plotly="none")


def test_what_to_do_comes_right_below_the_verdict(source: str) -> None:
    wanted = ['class="answer"', 'id="verdict"', 'id="do-this"', 'id="facts"', 'id="findings"', 'id="loss-scale"']
    assert sorted(wanted, key=source.index) == wanted
    links = re.findall(r'<a href="#([\w-]+)">', source.split("<nav")[1].split("</nav>")[0])
    assert links[:3] == ["do-this", "facts", "findings"]
    places = [source.index(f'<section id="{name}"') for name in links]
    assert places == sorted(places)


def test_the_table_of_other_formats_and_the_glossary_are_folded(source: str) -> None:
    for section, inside in (("other-formats", '<table class="formats">'), ("glossary", "<dt>underflow</dt>")):
        text = source.split(f'<section id="{section}">')[1].split("</section>")[0]
        before, after = text.split(inside)
        assert before.count("<details") - before.count("</details>") == 1
        assert after.count("</details>") - after.count("<details") == 1
        assert "<h2>" in before.split("<details")[0]


# the window


def scale(lower: int, upper: int, low: int = -4, high: int = 32) -> LossScaleAdvice:
    points = tuple(ScalePoint(k, 0.1, 0.01, 0.0) for k in (low, high))
    return LossScaleAdvice(14, "dynamic", lower, upper, {}, 0.1, 0.0, 0.1, 0.0, None, "", 2000, points)


@pytest.mark.parametrize(
    ("ends", "drawn"),
    [((14, 14), (13.5, 14.5)), ((14, 15), (14, 15)), ((5, 15), (5, 15)), ((40, 50), (31, 32)), ((-9, -9), (-4, -3))],
)
def test_a_window_of_one_scale_is_drawn_wide_enough_to_see(ends, drawn):
    assert curves.drawn_window(scale(*ends), -4, 32) == drawn
    figure = charts.loss_scale_figure(scale(*ends))
    assert figure is not None
    assert (figure["layout"]["shapes"][0]["x0"], figure["layout"]["shapes"][0]["x1"]) == drawn
    width = re.search(r'<rect class="window"[^>]* width="([\d.]+)%"', str(curves.loss_scale_curve(scale(*ends))))
    assert width is not None
    assert float(width[1]) / 100 * 270 >= 2  # pixels, on a telephone


@pytest.mark.parametrize(("low", "high"), [(-4, 32), (-28, 32), (-140, 40), (0, 8)])
def test_no_more_powers_are_labelled_than_a_telephone_has_room_for(low, high):
    shown = curves.exponents_shown([ScalePoint(k, 0.0, 0.0, 0.0) for k in (low, high)])
    assert 3 <= len(shown) <= 10
    assert low <= shown[0] < shown[-1] <= high


# drawings


def test_a_chart_has_no_width_of_its_own():
    drawn = str(curves.loss_curves(samples.trials()))
    outer = drawn.split(">")[1]
    assert 'width="100%"' in outer
    assert "viewBox" not in outer
    assert f'viewBox="0 34 {SPAN} ' in drawn
    assert 'preserveAspectRatio="none"' in drawn
    assert all(x.endswith("%") or x.startswith("-") for x in re.findall(r'<text[^>]* x="([^"]+)"', drawn))


@pytest.mark.parametrize("lowest", range(-60, -20, 3))
@pytest.mark.parametrize("highest", [0, 17, 28, 40])
def test_the_zones_names_above_the_strips_neither_touch_nor_are_cut(lowest, highest):
    axis = strips.axis_for([ExponentHistogram.from_bins({lowest: 1, highest: 1})])
    named = re.findall(r'<text class="zone-name[^>]* x="([\d.]+)"[^>]*><title>\w+</title>([^<]+)<', strips.header(axis))
    ends = [(float(x) - 3 * len(word), float(x) + 3 * len(word)) for x, word in named]  # six pixels a letter
    assert ends[0][0] >= 0
    assert ends[-1][1] <= strips.WIDTH
    assert all(right + 3 <= left for (_, right), (left, _) in itertools.pairwise(ends))
    assert "normal" in {word for _, word in named}


# findings


def test_no_page_or_pull_request_hides_a_finding() -> None:
    full = samples.full()
    assert full.advice is not None
    many = tuple(dataclasses.replace(full.advice.findings[0], message=f"finding number {i}") for i in range(30))
    made = dataclasses.replace(full, advice=dataclasses.replace(full.advice, findings=many))
    page = Page(render(made, "none"))
    assert len(page.all("article")) == 30
