"""What is saved and decides a blank or a verdict is drawn where the reader looks; what was left out is not counted."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import report_samples as samples
from arm_samples import judged
from cost_samples import full_costs
from mpdiag.accuracy import GradientCheck, GradientError, PairedTest
from mpdiag.diagnosis import Diagnosis
from mpdiag.report.digest import comparison_line, digest_of
from mpdiag.report.gradient_words import gradient_line
from mpdiag.report.html import render


def text(source: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source))


def with_costs(**costs: object) -> Diagnosis:
    made = samples.on_gpu()
    return replace(made, verification=replace(made.verification, costs=replace(full_costs(), **costs)))


def test_why_there_are_no_ceilings_stands_where_their_table_would():
    why = "not measured: it takes about 9 s, the time budget had 2 s left"
    shown = text(render(with_costs(ceilings=None, ceilings_reason=why), "none"))
    assert "The ceilings of this GPU: not measured , it takes about 9 s, the time budget had 2 s left." in shown
    assert "The ceilings of this GPU" not in text(render(with_costs(), "none"))


# from where on an arm is called worse


@pytest.mark.parametrize(
    ("between", "told"),
    [((0.06, 0.3), True), ((-0.3, -0.06), True), ((0.04, 0.3), False), ((0.2, 0.3), False), ((-0.1, 0.1), False)],
)
def test_an_interval_past_the_margin_that_decides_nothing_says_why(between, told):
    test = PairedTest("r", False, 0.3, 0.1, 0.2, 9, worse_beyond=0.1)
    c = replace(judged("fp16", "inconclusive", interval=between, margin=0.05), test=test)
    words = "; past the margin, and worse or better is only what is past ±0.1, the margin uncut for few seeds"
    assert (words in comparison_line(c)[1]) is told
    assert words not in comparison_line(replace(c, verdict="worse"))[1]
    assert words not in comparison_line(replace(c, test=replace(test, worse_beyond=None)))[1]


def test_the_table_of_paired_tests_has_it_for_each():
    source = render(samples.full(), "none")
    table = source[source.index('<table class="tests">') :].split("</table>")[0]
    headings = [text(each).strip() for each in re.findall(r"<th scope=\"col\".*?</th>", table)]
    at = headings.index("Worse from")
    rows = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in table.split("<tr>")[2:]]
    shown = [text(row[at]).strip() for row in rows]
    tested = [c.test for c in samples.full().verification.comparisons if c.test]
    assert len(shown) == len(tested)
    assert shown == ["±0.0865", "±0.02", "±0.0865", "–"]


# what was left out


def test_a_file_whose_tables_were_left_out_gives_no_count_of_tensors():
    made = samples.full()
    (line,) = [each for each in digest_of(made).heading if each.startswith("observed")]
    assert re.match(r"observed 20 FP32 steps · \d+ tensors · the probe", line)
    small = replace(made, capture=replace(made.capture, tables=()))
    (line,) = [each for each in digest_of(small).heading if each.startswith("observed")]
    assert line.startswith("observed 20 FP32 steps · the probe left the training bit-identical")


# an alarming gradient


def gradients(fp16: float, tf32: float | None, again: float | None = 4.8e-6) -> GradientCheck:
    def error(arm: str, value: float) -> GradientError:
        return GradientError(arm, arm, 0.0, value, 0.5, 0.76, "conv1.weight", value)

    tf = (error("tf32", tf32),) if tf32 is not None else ()
    return GradientCheck(4, (*tf, error("fp16", fp16), error("bf16", 1.31)), None, again)


def test_a_large_gradient_error_comes_with_what_the_page_says_of_it():
    assert gradient_line(gradients(0.76, 0.66)).endswith(
        "bf16 131 %; tf32 66 % (FP32 again 0.00048 %, TF32 about as far off: a deep network amplifies any rounding)"
    )


def test_an_error_that_tf32_does_not_share_is_not_laid_to_tf32():
    assert gradient_line(gradients(0.76, 0.01)).endswith(
        "(FP32 again 0.00048 %, a deep network can amplify any rounding)"
    )
    assert gradient_line(gradients(0.76, None, None)).endswith("(a deep network can amplify any rounding)")


def test_a_small_error_needs_no_excuse():
    assert gradient_line(gradients(0.0004, 0.0003)).endswith("tf32 0.03 %")
