"""What the reports say of the second pass, and that they say nothing where there was none."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

import report_samples as samples
from mpdiag.diagnosis import Diagnosis
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import NOT_OBSERVED, OpRole, OpTable
from mpdiag.report.digest import digest_of
from mpdiag.report.html import render
from mpdiag.report.html_operations import operation_rows, verdict_of
from mpdiag.report.markdown import render as render_markdown
from mpdiag.saved import from_json, to_json
from page_parser import Page

THIN = "\u202f"


def operation(op: str, abs_max: float = 1.0, **more: Any) -> OpTable:
    exponent = math.frexp(abs_max)[1] - 1
    fields: dict[str, Any] = {
        "module": "block", "direction": "forward", "dtype": "float32", "elements": 1, "calls": 1,
        "role": OpRole.OUTPUT, "histogram": ExponentHistogram.from_bins({exponent: 1}), "amp_dtype": "float16",
        "source": "nets/model.py:7",
    }  # fmt: skip
    return OpTable(op, abs_max=abs_max, **(fields | more))


def with_operations(*tables: OpTable, reason: str | None = None) -> Diagnosis:
    full = samples.full()
    assert full.capture is not None
    return dataclasses.replace(
        full, capture=dataclasses.replace(full.capture, operations=tables, operations_reason=reason)
    )


def page(*tables: OpTable, **more: Any) -> Page:
    return Page(render(with_operations(*tables, **more), "none"))


def rows_of(shown: Page) -> list[list[str]]:
    """The cells of each row of the tables of operations."""
    found: list[list[str]] = []
    inside = False
    for element in shown.elements:
        if element["tag"] == "table":
            inside = element["attrs"].get("class") == "operations"
        if inside and element["tag"] == "tr":
            found.append([])
        if inside and element["tag"] in ("th", "td"):
            found[-1].append(" ".join(element["text"].split()))
    return [row for row in found if row and row[0] != "Operation"]


# the verdict


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (operation("mul", 90000.0), "overflows"),
        (operation("mul", 40000.0), "0.71 octaves left"),
        (operation("mul", 3.0), "fits"),
        (operation("mul", 2.0**-30), f"100{THIN}% become zero"),
        (operation("mul", 90000.0, amp_dtype="float32"), "needs its FP32"),
        (operation("mul", 3.0, amp_dtype="float32"), "fits"),
        (operation("mul", 3.0, amp_dtype=None), "type not known"),
        (operation("add", 3e38, masked=True), "holds a mask"),
        (operation("masked_fill", 1e9, masked=True, amp_error="no"), "raises in FP16"),
        (operation("mul", 1.0, direction="backward"), "overflows at 2^16"),
        (operation("mul", 2.0**-45, direction="backward"), f"100{THIN}% become zero at 2^16"),
        (operation("mul", 2.0**-30, direction="backward"), "fits"),
        (operation("add", 1e-8, role=OpRole.CONSTANT, value=1e-8, in_fp16=0.0), "becomes zero"),
        (operation("add", 1e-6, role=OpRole.CONSTANT, value=1e-6, in_fp16=1e-6), "subnormal"),
        (operation("where", 1e9, role=OpRole.CONSTANT, value=-1e9, in_fp16=-math.inf), "becomes infinite"),
        (operation("add", 1e-8, role=OpRole.CONSTANT, value=1e-8, in_fp16=0.0, amp_dtype="float32"), "fits"),
        (operation("mul", 3000.0, role=OpRole.CONSTANT, value=3e3, in_fp16=3000.0), "fits"),
    ],
)
def test_a_verdict_says_what_fp16_does(table, words):
    assert verdict_of(table, 16)[0] == words


def test_without_a_scale_the_backward_pass_is_judged_at_scale_one():
    assert verdict_of(operation("mul", 2.0**-30, direction="backward"), 0)[0] == f"100{THIN}% become zero at scale 1"


# the rows


def test_the_same_line_in_many_modules_is_one_row_with_the_worst_of_them():
    rows = operation_rows([operation("mul", 2.0**i, module=f"blocks.{i}", calls=2) for i in range(3)], None)
    assert [(r.table.module, r.modules, r.calls) for r in rows] == [("blocks.2", 3, 6)]


def test_rows_that_differ_in_line_role_or_type_stay_apart():
    tables = [
        operation("mul"), operation("mul", source="nets/model.py:8"), operation("mul", role=OpRole.SQUARE),
        operation("mul", amp_dtype="float32"), operation("mul", direction="backward"),
    ]  # fmt: skip
    assert len(operation_rows(tables, None)) == 5


def test_the_worst_comes_first():
    tables = [
        operation("fits"), operation("fp32", 9e9, amp_dtype="float32"), operation("back", 2.0**-40,
        direction="backward"), operation("lost", 2.0**-40), operation("over", 9e9),
    ]  # fmt: skip
    assert [r.table.op for r in operation_rows(tables, None)] == ["over", "lost", "fits", "back", "fp32"]


# the page


def test_the_table_gives_operation_module_line_type_calls_size_and_verdict():
    logits = operation("bmm", 90112.5, role=OpRole.LOGITS, module="blocks.1", sampled=True, rows_read=8, rows=64)
    assert rows_of(page(logits)) == [
        ["bmm logits sampled", "blocks.1", "model.py:7", "float16", "1", "90112", "overflows"]
    ]


def test_a_constant_has_its_sign_and_its_name():
    mask = operation("where", 1e9, role=OpRole.CONSTANT, value=-1e9, in_fp16=-math.inf, argument="other")
    assert rows_of(page(mask))[0][0] == "where constant other"
    assert rows_of(page(mask))[0][5].startswith("\u22121")


def test_all_rows_are_on_the_page_and_the_navigation_counts_them():
    tables = [operation("mul", source=f"model.py:{i}") for i in range(30)]
    shown = page(*tables)
    assert len(rows_of(shown)) == 30
    assert shown.one("a", href="#operations")["text"] == "Operations (30)"


def test_names_from_the_job_are_text_and_no_markup():
    shown = page(operation("mul", module="<b>x</b>", source="<i>.py:1"))
    assert rows_of(shown)[0][1:3] == ["<b>x</b>", "<i>.py:1"]


def test_what_the_types_lack_is_said_above_the_table():
    shown = page(operation("mul"), reason="types after mul are not known: refused")
    captions = [e["text"] for e in shown.all("p", class_="caption")]
    assert any("types after mul are not known: refused." in text for text in captions)


@pytest.mark.parametrize("reason", [NOT_OBSERVED, "the operations could not be observed: no", None])
def test_without_the_pass_there_is_no_section_and_the_reason_is_under_what_was_not_seen(reason):
    full = samples.full()
    assert full.capture is not None
    capture = dataclasses.replace(full.capture, operations=None, operations_reason=reason)
    shown = Page(render(dataclasses.replace(full, capture=capture), "none"))
    assert "operations" not in shown.ids
    assert shown.all("a", href="#operations") == []
    told = [e["text"] for e in shown.all("li") if e["text"].startswith("What happens between the modules")]
    assert told == ([f"What happens between the modules: {reason}"] if reason else [])


# the digest


def test_one_line_sums_the_pass_up_in_the_terminal_and_in_markdown():
    tables = (
        operation("mul", 12.0), operation("add", 300.0), operation("masked_fill", 1e9, masked=True),
        operation("softmax", 1.0, amp_dtype="float32"), operation("add", 1e-8, role=OpRole.CONSTANT, value=1e-8),
    )  # fmt: skip
    diagnosis = with_operations(*tables)
    line = "4 values of operators seen, 2 of them in FP16; the largest is 300, of add in block (nets/model.py:7)"
    assert dict(digest_of(diagnosis).why)["operations"] == line
    assert "operations: 4 values of operators seen" in render_markdown(diagnosis)


def test_without_the_pass_the_digest_does_not_mention_it():
    diagnosis = samples.full()
    assert "operations" not in dict(digest_of(diagnosis).why)
    assert not any("operations" in line for line in digest_of(diagnosis).not_done)


def test_what_the_pass_could_not_do_is_not_done():
    diagnosis = with_operations(reason="the operations could not be observed: no")
    assert "operations: the operations could not be observed: no" in digest_of(diagnosis).not_done


# the file


def test_a_file_from_before_the_pass_loads():
    text = to_json(samples.full())
    assert '"operations"' in text
    older = text.replace(' "operations": null,\n', "").replace('"operations_reason"', '"reason_of_old"')
    assert '"operations"' not in older
    loaded = from_json(older)
    assert loaded.capture is not None
    assert (loaded.capture.operations, loaded.capture.operations_reason) == (None, NOT_OBSERVED)
