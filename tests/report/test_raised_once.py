"""What a run raised stands once in the terminal and the Markdown; after that a word says where."""

from __future__ import annotations

from dataclasses import replace

import pytest

import report_samples as samples
from mpdiag.diagnosis import Comparison, Diagnosis, Trial
from mpdiag.report.digest import digest_of
from mpdiag.report.markdown import render

BOOM = "RuntimeError while computing the loss: no kernel, at job.py:3"


def raised(arm: str, error: str | None) -> Trial:
    return Trial(arm, arm, True, 0, 1, (), error=error)


def failed(quantity: str, arm: str, error: str) -> Comparison:
    comparison = samples.full().verification.comparisons[0]
    return replace(
        comparison, quantity=quantity, candidate=arm, candidate_value=None, difference=None, interval=None,
        verdict="worse", reason=f"the run failed: {error}", is_ratio=False, test=None,
    )  # fmt: skip


def diagnosis(reason: str, fp16: str = BOOM, bf16: str = BOOM) -> Diagnosis:
    run = replace(
        samples.full().verification,
        verdict="no-go",
        reason=reason,
        trials=(raised("fp32", None), raised("fp16", fp16), raised("bf16", bf16)),
        comparisons=(failed("loss", "fp16", fp16), failed("iou", "fp16", fp16), failed("loss", "bf16", bf16)),
        controls=(),
    )
    return replace(samples.full(), verification=run)


def why(made: Diagnosis) -> dict[str, str]:
    return {topic: text for topic, text in digest_of(made).why if topic in ("loss", "iou", "bf16")}


def test_what_the_verdict_says_is_not_said_again():
    made = diagnosis(f"FP16 raises (at step 1: {BOOM})")
    assert why(made) == {
        "loss": "worse: the run failed, see above",
        "iou": "worse: the run failed, see above",
        "bf16": "the run failed, see above",
    }
    assert render(made).replace("\\", "").count(BOOM) == 1


def test_where_the_verdict_does_not_say_it_the_first_line_does():
    assert why(diagnosis("FP16 is worse")) == {
        "loss": f"worse: the run failed: {BOOM}",
        "iou": "worse: the run failed, see above",
        "bf16": "the run failed, see above",
    }


@pytest.mark.parametrize("other", ["RuntimeError: another", BOOM + " and more"])
def test_another_arms_own_failure_is_said_in_full(other):
    found = why(diagnosis(f"FP16 raises (at step 1: {BOOM})", bf16=other))
    assert found["bf16"] == f"the run failed: {other}"
