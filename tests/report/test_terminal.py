"""The text report in the terminal: its golden files, its columns and its colors.

`MPDIAG_UPDATE_GOLDEN=1 pytest tests/report/test_terminal.py` writes tests/golden/terminal_*.txt anew; read the diff.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

import report_samples as samples
from mpdiag.diagnosis import Advice, Comparison, Diagnosis
from mpdiag.report import markdown, terminal
from mpdiag.report.digest import digest_of
from text_samples import SAMPLES, SCALE, flat, full, on_a_laptop, text, topics

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "MPDIAG_UPDATE_GOLDEN"


# golden


@pytest.mark.parametrize("name", SAMPLES)
def test_the_terminal_text_is_the_golden_one(name):
    path, shown = GOLDEN / f"terminal_{name}.txt", text(SAMPLES[name]())
    if os.environ.get(UPDATE) == "1":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), f"{UPDATE}=1 rewrites {path}"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_text_ends_with_one_newline(name):
    assert text(SAMPLES[name]()).endswith("\n")
    assert not text(SAMPLES[name]()).endswith("\n\n")


# the terminal


def test_the_why_has_a_topic_a_line():
    scale = ["scale", "largest scale", "smallest scale", "underflow", "norm lost"]
    assert topics(full()) == [*scale, "loss", "accuracy", "gradient", "time", "memory", "skips", "controls"]
    gains = ["time", "memory", "tensor", "energy"]
    assert topics(samples.on_gpu()) == [*scale, "loss", "accuracy", "gradient", *gains, "skips", "controls"]
    assert topics(on_a_laptop()) == [*scale, "loss", "accuracy", "skips", "controls"]
    assert topics(samples.minimal()) == []


@pytest.mark.parametrize("width", [60, 100])
def test_the_texts_of_the_why_stand_in_a_column_of_their_own(width):
    lines = text(full(), width).splitlines()
    why = lines[next(i for i, line in enumerate(lines) if line.startswith("WHY")) :]
    why = why[: why.index("")]
    column = 10 + max(map(len, topics(full()))) + 1
    assert [line[10:column].strip() for line in why if line[10:column].strip()] == topics(full())
    assert all(line[column - 1] == " " != line[column] for line in why)
    assert flat(" ".join(line[column:] for line in why)) == flat(" ".join(words for _, words in digest_of(full()).why))


@pytest.mark.parametrize("width", [60, 100])
def test_a_long_metric_name_is_folded_and_takes_no_text_away(width):
    name = "".join(f"accuracy{i}." for i in range(7))
    made = Comparison(name, "metric", "fp32", "fp16", 0.9, 0.91, 0.01, (0.0, 0.02), 0.05, 3, "equivalent")
    diagnosis = full()
    shown = text(replace(diagnosis, verification=replace(diagnosis.verification, comparisons=(made,))), width)
    assert max(map(len, shown.splitlines())) <= width
    why = shown[shown.index("WHY") : shown.index("FINDINGS")]
    assert re.findall(r"accuracy\d", why) == re.findall(r"accuracy\d", name)
    assert "2^14 = 16,384, dynamic; window 2^11..2^14" in flat(why)


def test_a_scan_of_which_nothing_was_left_out_has_no_not_done():
    diagnosis = full()
    assert diagnosis.capture is not None
    assert diagnosis.target is not None
    assert diagnosis.verification is not None
    whole = replace(
        diagnosis,
        capture=replace(diagnosis.capture, not_seen=()),
        target=replace(diagnosis.target, notes=()),
        verification=replace(diagnosis.verification, cut=()),
    )
    assert digest_of(whole).not_done == ()
    assert "NOT DONE" not in text(whole)


@pytest.mark.parametrize("width", [40, 60, 100, 110])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_is_wider_than_asked(name, width):
    assert max(map(len, text(SAMPLES[name](), width).splitlines())) <= width


def test_the_sections_come_in_order():
    labels = [line[:9].strip() for line in text(full()).splitlines()]
    assert [label for label in labels if label] == ["SCAN", "VERDICT", "WHY", "FINDINGS", "NEXT", "NOT DONE"]


def test_a_section_without_a_line_is_left_out():
    labels = [line[:9].strip() for line in text(samples.minimal()).splitlines()]
    assert [label for label in labels if label] == ["SCAN", "VERDICT", "NOT DONE"]


@pytest.mark.parametrize("width", [60, 100])
def test_a_long_tensor_name_is_folded_and_no_character_of_it_is_lost(width):
    name = "".join(f"layers{i}." for i in range(60))
    diagnosis = full()
    shown = text(replace(diagnosis, advice=replace(diagnosis.advice, keep_fp32=(name,))), width)
    assert max(map(len, shown.splitlines())) <= width
    assert name in "".join(line.strip() for line in shown.splitlines())


@pytest.mark.parametrize("name", ["[bold]fc[/bold]", "[/]", "[link=x]", ":smile:", "{0}", "%s", "\\[x]"])
def test_markup_in_a_tensors_name_stays_text(name):
    diagnosis = full()
    finding = replace(diagnosis.advice.findings[1], message=f"the output of {name} is large", remedy=f"mend {name}")
    target = replace(diagnosis.target, source=name)
    shown = flat(text(replace(diagnosis, target=target, advice=Advice("FP16", SCALE, (finding,), (name,)))))
    assert f"error MP101 the output of {name} is large" in shown
    assert f"keep in FP32: {name}" in shown
    assert f"mend {name}" in shown
    assert f"SCAN {name} · " in shown


@pytest.mark.parametrize("name", SAMPLES)
def test_without_color_there_is_no_escape_code(name):
    assert "\x1b" not in text(SAMPLES[name]())


def test_with_color_the_words_are_the_same():
    colored = terminal.render(full(), color=True, width=100)
    assert "\x1b[1;33mgo-with-changes\x1b[0m" in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert flat(plain) == flat(text(full()))


def test_a_scan_without_anything_still_renders():
    bare = Diagnosis("2026-01-01T00:00:00+00:00", "mpdiag scan x.py", samples.environment(gpu=None), None)
    assert "VERDICT none: not verified: the scan was stopped before the verification" in flat(text(bare))


def test_what_fp8_would_do_stays_on_the_page() -> None:
    made = samples.full()
    assert made.advice is not None
    fp8 = replace(made.advice.findings[0], code="MP702", severity="info", message="FP8 would clip it")
    both = replace(made, advice=replace(made.advice, findings=(*made.advice.findings, fp8, fp8)))
    text = terminal.render(both)
    assert "FP8 would clip it" not in text
    assert "2 more findings" in text
    assert markdown.render(both).count("FP8 would clip it") == 2  # a pull request has no page beside it
