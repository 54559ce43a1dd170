"""Each arm's colour and dash: fixed by its name, and told apart in both themes and by the colour-blind."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import report_samples as samples
from mpdiag.report import charts, curves
from mpdiag.report.arm_styles import DASHES, OTHER, styles_of
from mpdiag.report.html import render
from page_parser import Page

TEMPLATES = Path(curves.__file__).parent / "templates"
PAPER = {"page.css": "#ffffff", "dark.css": "#14171b"}

# what the cones of a dichromat see, in linear RGB: Machado, Oliveira and Fernandes 2009, severity 1.0
VISION = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
    "deuteranopia": np.array([[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9688]]),
    "tritanopia": np.array([[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    t = TO_XYZ @ np.clip(light, 0, 1) / np.array([0.9505, 1.0, 1.0888])
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def colours(sheet: str) -> dict[int, str]:
    """The arms' colours of one theme, without the baseline's ink and the grey of arms without a name."""
    found = dict(re.findall(r"--arm-(\d): (#\w{6})", (TEMPLATES / sheet).read_text()))
    assert len(found) == len(DASHES)
    return {int(n): colour for n, colour in found.items() if 0 < int(n) < OTHER}


def test_an_arm_has_one_style_whoever_runs_beside_it():
    few, many = styles_of(["fp32", "bf16"]), styles_of(["fp32", "fp32-configured", "fp16", "fp16-plan", "bf16"])
    assert few["bf16"] == many["bf16"]
    assert few["fp32"] == 0
    assert list(many) == ["fp32", "fp32-configured", "fp16", "fp16-plan", "bf16"]
    assert styles_of(["fp8-someday"]) == {"fp8-someday": OTHER}


def test_no_two_styles_share_a_dash():
    assert len(set(DASHES)) == len(DASHES) == OTHER + 1


@pytest.mark.parametrize("sheet", PAPER)
@pytest.mark.parametrize("vision", VISION)
def test_the_colours_differ_for_every_eye(sheet, vision):
    seen = {n: lab(VISION[vision] @ linear(colour)) for n, colour in colours(sheet).items()}
    nearest = min(float(np.linalg.norm(seen[a] - seen[b])) for a, b in itertools.combinations(seen, 2))
    assert nearest >= 15  # of CIE 1976; ten is a glance, two the least that is seen side by side


@pytest.mark.parametrize("sheet", PAPER)
def test_every_line_stands_out_from_its_paper(sheet):
    def light(colour: str) -> float:
        return float(TO_XYZ[1] @ linear(colour))

    paper = light(PAPER[sheet])
    for colour in colours(sheet).values():
        high, low = sorted((light(colour), paper), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 2.1, 1.4.11, for graphics


def test_all_charts_and_the_legend_give_an_arm_the_same_style():
    runs = [samples.run_of("fp32"), samples.run_of("bf16", losses=(4.1, 3.01, 2.2, 1.1))]
    style = styles_of(["bf16"])["bf16"]
    for drawn in (curves.loss_curves(runs), curves.gap_curves(runs)):
        assert f'class="line arm-{style}" stroke-dasharray="{DASHES[style]}"' in str(drawn)
    for figure in (charts.loss_figure(runs), charts.gap_figure(runs)):
        assert figure is not None
        line = figure["data"][-1]["line"]
        assert (line["color"], line["dash"]) == (f"var(--arm-{style})", "2px,3px")
    page = render(samples.full(), "none")
    pure = styles_of(["fp16-pure"])["fp16-pure"]
    assert page.count(f'class="line arm-{pure}"') > 2  # legend, table and the charts
    assert f".arm-{OTHER} {{ stroke: var(--arm-{OTHER}); }}" in Page(page).one("style")["text"]
