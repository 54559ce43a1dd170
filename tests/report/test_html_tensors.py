"""The table of tensors, parsed back from the page."""

from __future__ import annotations

import dataclasses

import pytest

import report_samples as samples
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram
from mpdiag.report.html import render
from page_parser import Page, row

THIN = "\u202f"


def page_of(table: TensorTable) -> Page:
    """The full sample with one tensor only."""
    full = samples.full()
    assert full.capture is not None
    return Page(render(dataclasses.replace(full, capture=dataclasses.replace(full.capture, tables=(table,))), "none"))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(samples.full(), "none"))


def test_all_rows_are_there_without_a_script_and_the_worst_is_first(page: Page) -> None:
    rows = [e["attrs"]["id"] for e in page.all("tr") if (e["attrs"].get("id") or "").startswith("tensor-")]
    assert len(rows) == len(samples.tables())
    assert rows[0] == "tensor-activation-head"
    assert not any("hidden" in e["attrs"] for e in page.all("tr"))


def test_a_row_shows_shares_at_scale_one_and_at_the_recommended_scale() -> None:
    histogram = ExponentHistogram.from_bins({-30: 1, -20: 1, 0: 2})
    table = samples.table("w", TensorKind.WEIGHT_GRADIENT, 0, elements=4, histogram=histogram)
    page = page_of(table)
    shares = [f"25.0{THIN}%", f"25.0{THIN}%", f"0{THIN}%", f"0{THIN}%", f"25.0{THIN}%", f"0{THIN}%"]
    cells = [e["text"] for e in page.all("td", class_="num") if e["text"].endswith("%")]
    assert cells[-6:] == shares


def test_a_noise_level_gradient_is_marked_and_has_no_shares(page: Page) -> None:
    shown = row(page, "tensor-weight_gradient-blocks.0.attn.key.bias")
    assert "noise-level" in shown
    assert "%" not in shown


def test_noise_is_named_and_left_out_of_the_shares() -> None:
    page = page_of(samples.partly_noise())
    tag = next(e for e in page.all("span", class_="tag") if "noise" in e["text"])
    assert tag["text"] == f"25.0{THIN}% noise"
    assert tag["attrs"]["title"].startswith("what lies below 2^-30 is rounding noise")
    cells = [e["text"] for e in page.all("td", class_="num") if e["text"].endswith("%")]
    assert cells[-6] == f"33.3{THIN}%"  # one of the three that are no noise


def test_short_headings_carry_the_whole_word(page: Page) -> None:
    short = {(e["text"], e["attrs"]["title"]) for e in page.all("abbr")}
    assert short == {("under", "underflow"), ("subn.", "subnormal"), ("over", "overflow")}


def test_a_tensor_of_zeros_has_no_shares(page: Page) -> None:
    assert "0 %" not in row(page, "tensor-activation-mask").replace(THIN, " ")
    assert "all zero" in row(page, "tensor-activation-mask")


def test_a_tensor_that_stays_fp32_says_so(page: Page) -> None:
    assert "stays float32" in row(page, "tensor-activation-norm")
