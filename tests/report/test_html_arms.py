"""The table "Arms against FP32" and the table of every run, parsed back from the page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

import report_samples as samples
from mpdiag.diagnosis import Comparison, Trial, Verification
from mpdiag.report.html import render
from page_parser import Page
from report_samples import comparison, run_of

THIN = "\u202f"
MINUS = "\u2212"
ARMS = ("fp16-pure", "fp16-unscaled", "other", "bf16", "fp32-configured", "fp16", "fp32")


def page_of(trials: tuple[Trial, ...], *comparisons: Comparison) -> Page:
    run = Verification(trials, comparisons, "go", "it does")
    return Page(render(dataclasses.replace(samples.full(), verification=run), "none"))


def cells(page: Page) -> list[str]:
    """The cells of the table of arms from left to right and down, without what follows it."""
    every = [e for e in page.all("td") if (e["attrs"].get("class") or "") in ("num", "block")]
    return [e["text"].strip() for e in every]


def heads(page: Page, css: str = "arm") -> list[str]:
    return [e["text"].strip() for e in page.all("span", class_=css)]


def notes(page: Page) -> list[str]:
    return [e["text"] for e in page.all("li") if (e["attrs"].get("id") or "").startswith("note-")]


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(samples.full(), "none"))


def test_the_baseline_comes_first_and_the_controls_last() -> None:
    shown = heads(page_of(tuple(run_of(arm) for arm in ARMS)))
    assert shown == ["fp32", "fp16", "bf16", "fp32-configured", "other", "fp16-unscaled", "fp16-pure"]


def test_only_the_controls_are_labelled_so(page: Page) -> None:
    controls = [e["text"] for e in page.all("th", scope="row") if "control" in e["text"]]
    assert [text.split()[0] for text in controls] == ["fp16-unscaled", "fp16-pure"]


def test_an_arm_shows_its_difference_interval_and_verdict_beside_the_value(page: Page) -> None:
    assert f"1.934+0.004{MINUS}0.011 to +0.019equivalent" in cells(page)


def test_a_cost_is_shown_with_its_multiple_of_fp32(page: Page) -> None:
    assert f"5.2{THIN}GiB×0.642 ({MINUS}36{THIN}%)" in {e["text"].rstrip("0123456789") for e in page.all("td")}


def test_the_margin_stands_in_the_heading(page: Page) -> None:
    headings = [e["text"] for e in page.all("th", scope="col", class_="num")]
    assert "Lossmean of the second halfequal within ±0.05" in headings
    assert any(h.startswith("Peak memory") and h.endswith(f"equal within ±3.0{THIN}%") for h in headings)


def test_margins_that_differ_show_their_range() -> None:
    made = page_of((run_of("fp32"), run_of("fp16"), run_of("bf16")), comparison("fp16"), comparison("bf16", margin=0.5))
    assert "Lossmean of the second halfequal within ±0.5 to ±1" in {e["text"] for e in made.all("th", scope="col")}


def test_what_cannot_apply_is_a_dash_and_what_was_not_measured_says_so(page: Page) -> None:
    marks = {(e["attrs"].get("title"), e["text"]) for e in page.all("span", class_="absent")}
    assert ("does not apply: this arm trains without a loss scale", "–") in marks
    assert (samples.NO_GPU, "not measured") in marks
    assert not any(text == "not measured" and (title or "").startswith("does not apply") for title, text in marks)


def test_the_tensor_pipe_is_shown_alone_with_the_other_pipes_in_its_title(page: Page) -> None:
    assert page.one("span", title=f"sm 77.0{THIN}%")["text"] == f"31.8{THIN}%"


def test_the_spread_of_the_step_time_is_in_its_title(page: Page) -> None:
    title = "median of 138 steps; the middle half took 21.5 to 22.1 ms"
    assert page.one("span", title=title)["text"] == f"21.7{THIN}ms"


def test_skipped_steps_are_summed_over_the_seeds() -> None:
    runs = tuple(run_of("fp16", seed, skipped_steps=seed, final_log2_scale=16.0 - seed) for seed in (1, 2))
    shown = cells(page_of((run_of("fp32"), *runs)))
    assert "3 of 8" in shown
    assert "214 to 215" in shown


def test_a_remark_on_every_ratio_of_a_column_moves_to_its_heading() -> None:
    measured = {"peak_memory_bytes": 2048, "not_measured": {}}
    trials = (run_of("fp32", **measured), run_of("fp16", **measured), run_of("bf16", **measured))
    made = page_of(trials, *(comparison(arm, "peak_memory_bytes") for arm in ("fp16", "bf16")))
    headings = [e["text"] for e in made.all("th", scope="col", class_="num")]
    assert f"Peak memory{1 + notes(made).index('one block')}equal within ±3.0{THIN}%" in headings
    assert notes(made).count("one block") == 1
    assert f"2.0{THIN}KiB×0.500 ({MINUS}50{THIN}%)" in cells(made)


def test_columns_without_any_figure_are_one_cell_with_one_reason() -> None:
    made = page_of((run_of("fp32"), run_of("fp16"), run_of("bf16")), comparison("fp16"), comparison("bf16"))
    blocks = [e["attrs"] for e in made.all("td", class_="block")]
    assert blocks == [
        {"class": "block", "rowspan": "3"},  # the metric
        {"class": "block", "rowspan": "3", "colspan": "4"},  # the four costs
    ]
    assert notes(made) == ["not measured: no evaluate", f"not measured: {samples.NO_GPU}"]


def test_footnotes_are_numbered_as_they_are_read(page: Page) -> None:
    marks = [int(e["attrs"]["aria-label"].split()[1]) for e in page.all("a") if "aria-label" in e["attrs"]]
    first = list(dict.fromkeys(marks))
    assert first == sorted(first)
    assert len(notes(page)) == len(first)


def test_a_loss_that_is_not_finite_says_nan_and_worse() -> None:
    broken = run_of("fp16", losses=(4.0, 3.0, math.nan, math.nan))
    failed = comparison("fp16", candidate_value=None, difference=None, interval=None, verdict="worse", reason="no")
    made = page_of((run_of("fp32"), broken), failed)
    assert f"NaNworse{1 + notes(made).index('no')}" in cells(made)


def test_a_run_that_failed_shows_its_error_and_no_mean() -> None:
    broken = run_of("fp16", losses=(4.0,), steps=1, error="CUDA out of memory")
    failed = comparison(
        "fp16", candidate_value=None, difference=None, interval=None, verdict="worse", reason="the run failed: memory"
    )
    made = page_of((run_of("fp32"), broken), failed)
    number = 1 + notes(made).index("not measured: the run failed: memory")
    assert f"not measuredworse{number}" in cells(made)
    assert heads(made, "under bad") == ["CUDA out of memory"]


def test_arms_of_an_interrupted_verification_show_their_losses() -> None:
    made = page_of((run_of("fp32"), run_of("fp16")))
    assert cells(made).count("1.5") == 1
    assert "not compared with FP32" in notes(made)


def test_an_arm_with_other_seeds_says_which() -> None:
    made = page_of((run_of("fp32"), run_of("fp32", 1), run_of("fp16", 1)))
    assert "FP16, real, seed 1" in heads(made, "under")
    assert "2 arms of 4 steps, each with seeds 0 and 1." in made.one("section", id="verification")["text"]


def test_every_run_is_listed_under_a_summary(page: Page) -> None:
    assert [e["text"] for e in page.all("summary")][:2] == ["The paired tests (4)", "Every run (8)"]
    assert "fp160100" in "".join(page.all("details")[1]["text"].split())


@pytest.mark.parametrize(("error", "headings"), [(None, 0), ("it broke", 1)])
def test_the_runs_have_a_column_of_errors_only_if_there_is_one(error: Any, headings: int) -> None:
    made = page_of((run_of("fp32"), run_of("fp16", error=error)))
    assert sum(e["text"] == "Error" for e in made.all("th")) == headings
