"""The HTML report, parsed back. Browser behaviour is in browser/test_page.py."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Any

import pytest

import report_samples as samples
from mpdiag.diagnosis import Diagnosis
from mpdiag.report.html import render
from mpdiag.saved import from_json
from page_parser import Page, row

THIN = "\u202f"


@pytest.fixture(scope="module")
def source() -> str:
    return render(samples.full(), plotly="none")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


@pytest.fixture(scope="module")
def minimal() -> Page:
    return Page(render(samples.minimal()))


# the page as a whole


@pytest.mark.parametrize("make", [samples.full, samples.minimal])
def test_every_fragment_leads_to_an_id(make: Any) -> None:
    page = Page(render(make(), plotly="none"))
    targets = [e["attrs"]["href"] for e in page.elements if (e["attrs"].get("href") or "").startswith("#")]
    assert len(targets) > 5
    assert {t for t in targets if t[1:] not in page.ids} == set()


def test_ids_are_unique(page: Page) -> None:
    assert [i for i, n in Counter(page.ids).items() if n > 1] == []


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    loading = [e["attrs"].get(k) for e in page.elements for k in ("src", "srcset", "data", "poster", "action")]
    assert [x for x in loading if x] == []
    assert page.all("link") == []
    assert [e for e in page.elements if "http" in (e["attrs"].get("href") or "")] == []
    assert all("@import" not in e["text"] and "url(" not in e["text"] for e in page.all("style"))


def test_the_security_policy_allows_only_what_is_inline(page: Page) -> None:
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"})["attrs"]["content"]
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';")
    assert "unsafe-eval" not in policy


def test_the_page_says_its_language_and_fits_a_telephone(page: Page) -> None:
    assert page.one("html")["attrs"]["lang"] == "en"
    assert page.one("meta", name="viewport")["attrs"]["content"] == "width=device-width, initial-scale=1"


def test_the_same_diagnosis_gives_the_same_bytes() -> None:
    assert render(samples.full()) == render(samples.full())


def test_an_unknown_plotly_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="inline"):
        render(samples.minimal(), plotly="cdn")


def test_without_plotly_the_page_is_small_and_has_no_third_party_script(source: str) -> None:
    assert len(source.encode()) < 500_000
    assert "plotly-packed" not in source
    assert "Plotly" not in source


def test_with_plotly_the_page_is_about_two_megabytes() -> None:
    assert 1_500_000 < len(render(samples.full()).encode()) < 2_600_000


def test_plotly_is_left_out_when_there_is_no_chart_to_draw() -> None:
    assert "plotly-packed" not in render(samples.minimal(), plotly="inline")


# the user's text stays text


def test_a_script_end_in_a_tensor_name_stays_text(page: Page) -> None:
    assert page.all("b") != []
    assert "evil" not in {e["text"] for e in page.all("b")}
    cells = [e for e in page.all("code", class_="name") if e["text"] == samples.HOSTILE_NAME]
    assert len(cells) == 1


def test_a_module_type_with_markup_stays_text(page: Page) -> None:
    assert page.all("i") == []


def test_the_embedded_result_is_read_back_whole(page: Page) -> None:
    text = page.one("script", id="diagnosis")["text"]
    assert "<" not in text
    again = from_json(text)
    assert again.capture == samples.full().capture
    assert again.advice == samples.full().advice
    assert json.loads(text)["verification"]["trials"][-1]["losses"][-1] == "NaN"


# header and first screen


def test_the_header_names_target_verdict_and_command(page: Page) -> None:
    assert page.one("h1")["text"] == "gpt_tiny"
    assert page.one("p", class_="answer")["text"].split()[:5] == ["Go,", "with", "changes", "FP16", "trains"]
    assert page.one("code", class_="command")["text"].strip() == "mpdiag scan examples/gpt_tiny.py --seeds 3"


def test_the_header_says_the_probe_left_the_training_alone(page: Page) -> None:
    probe = " ".join(page.one("p", class_="probe")["text"].split())
    assert probe == "The probe left the training bit-identical: yes, over 2 steps compared with and without it."


def test_an_untested_self_test_says_why(minimal: Page) -> None:
    probe = " ".join(minimal.one("p", class_="probe")["text"].split())
    assert probe.endswith("bit-identical: not testable because the scan was interrupted.")


def test_the_answer_comes_before_the_run_and_the_run_before_the_findings(source: str) -> None:
    wanted = ['class="answer"', 'class="boxes"', 'id="facts"', 'id="findings"']
    assert sorted(wanted, key=source.index) == wanted


def test_the_four_boxes_answer_in_order(page: Page) -> None:
    figures = [" ".join(e["text"].split()) for e in page.all("p", class_="figure")]
    assert figures[0] == "214 = 16384"
    assert figures[2] == "8.1 → 5.2 GiB"
    assert figures[3] == "−0.001"
    assert len(figures) == 4


def test_a_box_without_a_figure_gives_its_reason(minimal: Page) -> None:
    figures = minimal.all("p", class_="figure absent")
    assert [e["text"] for e in figures] == ["not measured"] * 4
    assert {e["attrs"]["title"] for e in figures} == {"stopped by Ctrl-C"}


def test_a_minimal_diagnosis_says_it_is_not_verified(minimal: Page) -> None:
    assert minimal.one("span", class_="badge v-none")["text"] == "Not verified"


def test_a_diagnosis_without_target_and_capture_renders() -> None:
    bare = Diagnosis("2026-01-01T00:00:00+00:00", "mpdiag scan x.py", samples.environment(None), None, reason="no file")
    assert "no file" in Page(render(bare)).one("section", id="not-seen")["text"]


def test_an_empty_window_is_said_and_not_shaded() -> None:
    full = samples.full()
    assert full.advice is not None
    scale = dataclasses.replace(full.advice.loss_scale, log2_scale=None, mode="none", lower_log2=19, upper_log2=12)
    page = Page(render(dataclasses.replace(full, advice=dataclasses.replace(full.advice, loss_scale=scale)), "none"))
    assert page.all("p", class_="figure")[0]["text"] == "none serves all"
    assert page.all("rect", class_="window") == []
    assert "No feasible window" in page.one("section", id="loss-scale")["text"]


# findings


def test_findings_come_most_severe_first_with_stable_ids(page: Page) -> None:
    assert [e["attrs"]["id"] for e in page.all("article")] == [
        "MP101-head",
        "MP201-blocks.3.mlp.fc2.weight",
        "MP401-tokenizer",
    ]


def test_a_finding_and_its_row_lead_to_each_other(page: Page) -> None:
    hrefs = [e["attrs"].get("href") for e in page.all("a")]
    assert "#tensor-weight_gradient-blocks.3.mlp.fc2.weight" in hrefs
    assert "MP201" in row(page, "tensor-weight_gradient-blocks.3.mlp.fc2.weight")
    assert "MP201" not in row(page, "tensor-weight_update-blocks.3.mlp.fc2.weight")


def test_the_tensors_that_bind_the_window_are_linked(page: Page) -> None:
    links = {e["text"]: e["attrs"]["href"] for e in page.all("a")}
    assert links["blocks.0.attn.qkv"] == "#tensor-activation_gradient-blocks.0.attn.qkv"


def test_a_snippet_that_stands_under_do_this_is_not_repeated() -> None:
    full = samples.full()
    assert full.advice is not None
    same = dataclasses.replace(samples.findings()[0], snippet=full.advice.loss_scale.snippet)
    page = Page(render(dataclasses.replace(full, advice=dataclasses.replace(full.advice, findings=(same,))), "none"))
    assert len(page.all("pre")) == 1
    assert "The code is under Do this." in page.one("article")["text"]


# verification


def test_each_missing_figure_of_a_trial_leads_to_its_reason(page: Page) -> None:
    notes = [e["text"] for e in page.all("li") if (e["attrs"].get("id") or "").startswith("note-")]
    assert "not measured: needs a CUDA device" in notes
    titles = {e["attrs"].get("title") for e in page.all("span", class_="absent")}
    assert {"needs a CUDA device", "does not apply: this arm trains without a loss scale", samples.NO_GPM} <= titles


def test_a_loss_that_is_not_a_number_prints_as_one_and_says_when(page: Page) -> None:
    verification = page.one("section", id="verification")["text"]
    assert "fp16-pure, seed 0: the loss is NaN from step 42 on." in verification


# charts


def test_the_chart_marks_the_window_and_the_recommended_scale(page: Page) -> None:
    chart = page.one("svg", **{"aria-label": "Share of the gradients lost by loss scale"})
    assert "recommended 214" in chart["text"]
    assert len(page.all("rect", class_="window")) == 1
