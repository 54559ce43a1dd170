"""What reports/paper.md claims of its records beyond their figures: plans, arithmetic, forecasts, causes."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

import judged_again
import paper_costs
import paper_jobs
import paper_page
import paper_scan
import report_samples
from mpdiag.saved import to_json
from paper_samples import EVEN, TRAINED, compared, line, ratio, record, row_of

JOB = paper_jobs.JOBS["lstm_lm"]


def told(made: dict[str, Any], *words: str, created: str = "2026-11-22T08:04:51+00:00") -> dict[str, Any]:
    """The record with the command of a scan and its date."""
    return {**made, "command": shlex.join(words), "created": created}


def of_plan(state: str, made: dict[str, Any]) -> dict[str, Any]:
    words = paper_scan.extent_words(JOB, state, paper_scan.Asked())
    return told(made, "python", paper_scan.SCAN, "scan", "examples/lstm_lm.py", *words)


def older(made: dict[str, Any], **environment: Any) -> dict[str, Any]:
    words = "mpdiag scan examples/lstm_lm.py --steps 4 --verify-steps 400 --seeds 3 --no-costs".split()
    return told({**made, "environment": {**made["environment"], **environment}}, *words)


IEEE = {"cuda.matmul": "ieee", "cudnn.conv": "ieee"}


# where the records come from


def test_records_of_the_plan_are_told_by_nothing_and_fp32_as_the_command_sets_it():
    text = paper_page.page({"lstm_lm": of_plan("init", record(*EVEN)), "lstm_lm-late": of_plan("late", record(*EVEN))})
    assert "Not of the present plan" not in text
    assert "set before each scan by `benchmarks/paper_ieee.py`; torch alone" in line(text, "- FP32:")
    assert "torch 2.11.0, 2026-11-22 08:04 to 08:04 UTC." in text


def test_a_record_of_another_plan_is_named_with_its_date_and_what_differs():
    made = {"lstm_lm": of_plan("init", record(*EVEN)), "lstm_lm-late": older(record(*EVEN), fp32_precision=IEEE)}
    text = paper_page.page(made)
    said = line(text, "- Not of the present plan")
    late = f"400 steps for {JOB.late_steps}, 3 seeds for {JOB.late_seeds}, without `paper_ieee.py`"
    assert said.endswith(f": lstm_lm late (2026-11-22 08:04): {late}.")
    fp32 = line(text, "- FP32:")
    assert "Set before each scan by `benchmarks/paper_ieee.py`: lstm_lm init." in fp32
    assert "Without it, but IEEE by the records' own environment: lstm_lm late." in fp32


def test_a_record_that_tells_no_ieee_settings_is_not_said_to_have_them():
    text = paper_page.page({"lstm_lm-late": older(record(*EVEN), fp32_precision={"cudnn.conv": "tf32"})})
    assert "Without it, and in the FP32 runs alone: lstm_lm late." in line(text, "- FP32:")


def test_a_flag_that_a_record_was_made_without_is_named():
    words = "python benchmarks/paper_ieee.py scan examples/lstm_lm.py --steps 4 --verify-steps 20 --seeds 3".split()
    text = paper_page.page({"lstm_lm": told(record(*EVEN), *words, created="")})
    assert "lstm_lm init (no date): without `--control-costs`." in line(text, "- Not of the present plan")


def test_a_training_shorter_than_planned_says_so():
    late = {"lstm_lm-late": record(*EVEN), "lstm_lm-training": TRAINED | {"seconds": 15.0}}
    assert f"after 900 FP32 steps in 15 s, of {JOB.train_seconds:.0f} s as planned now (loss" in paper_page.page(late)
    as_planned = {"lstm_lm-late": record(*EVEN), "lstm_lm-training": TRAINED | {"seconds": JOB.train_seconds + 0.1}}
    assert "after 900 FP32 steps (loss" in paper_page.page(as_planned)


# what was foretold


def test_a_forecast_that_is_off_by_more_than_a_point_is_named_with_its_worst_tensor():
    fine = record(*EVEN, prediction={"p95_error_points": 0.5, "alone_p95_error_points": 24.5})
    off = record(*EVEN, prediction={"p95_error_points": 5.25, "alone_p95_error_points": 5.5})
    off["advice"]["findings"] = [{"code": "MP605", "evidence": {"error_points": 10.29}}]
    text = paper_page.page({"lstm_lm": fine, "lstm_lm-late": off})
    assert "- At most 1 point in 1 of 2 scans; beyond: lstm_lm late 5.2, the worst tensor 10.3 (MP605)." in text
    assert "- By the counts of FP32 alone, beyond 1 point in: lstm_lm init 24.5, lstm_lm late 5.5." in text
    assert "What was foretold" not in paper_page.page({"lstm_lm": record(*EVEN)})


# why pure FP16 broke, or was worse

NAN = compared("fp16-pure", "loss", "worse", None, difference=None, reason="not finite at step 2 of seed 0")


@pytest.mark.parametrize(
    ("optimizer", "eps", "said"),
    [
        ("SGD(lr=2)", None, "Pure FP16 did not stay finite: that"),
        ("SGD(lr=2)", 1e-8, "Pure FP16 did not stay finite: that"),
        ("AdamW(lr=0.001)", None, "Pure FP16 did not stay finite, as AdamW's eps of 1e-8 is 0 there: that"),
        ("Adam(lr=0.001), Adam(lr=0.001)", 1e-10, "did not stay finite, as Adam's eps of 1e-10 is 0 there: that"),
        ("Adam(lr=0.001)", 1e-4, "Pure FP16 did not stay finite: that"),
        ("Adamax(lr=0.001)", None, "Pure FP16 did not stay finite: that"),
    ],
)
def test_an_eps_is_blamed_only_where_an_adam_has_one_that_fp16_rounds_to_zero(optimizer, eps, said):
    made = record(*EVEN[:2], NAN)
    made["target"]["optimizer"] = optimizer
    if eps is not None:
        made["capture"] = {"loop": {"groups": [{"eps": eps}]}}
    assert said in line(paper_page.page({"lstm_lm-late": made}), "- **lstm_lm**:")


def test_harm_that_a_missing_scale_does_alone_is_not_laid_on_the_weights():
    both = record(EVEN[0], *(compared(arm, "loss", "worse") for arm in ("fp16-unscaled", "fp16-pure")))
    assert "that hides what its weights do" in line(paper_page.page({"lstm_lm-late": both}), "- **lstm_lm**:")
    alone = record(*EVEN[:2], compared("fp16-pure", "loss", "worse"))
    for made in ({"lstm_lm-late": alone}, {"lstm_lm": both, "lstm_lm-late": alone}):
        said = line(paper_page.page(made), "- **lstm_lm**:")
        assert "FP16 weights without a master copy (pure FP16, no scale either) were visibly worse." in said


def test_training_without_a_scale_that_broke_was_run_and_did_harm():
    broke = compared("fp16-unscaled", "loss", "worse", None, difference=None, reason="not finite at step 9 of seed 0")
    said = line(paper_page.page({"lstm_lm-late": record(EVEN[0], broke, EVEN[2])}), "- **lstm_lm**:")
    assert "a missing scale did harm here." in said
    assert "was not run" not in said


# what it costs


def cost_row(made: dict[str, Any]) -> dict[str, str]:
    table = paper_page.page({"lstm_lm": made}).partition("## What mixed precision costs")[2]
    return row_of(table, "| lstm_lm |", paper_costs.COST_COLUMNS)


def batches(fp32: float | None, fp16: float | None) -> str:
    found = [
        {"arm": arm, "batch": size, "samples_per_second": rate}
        for arm, size, rate in (("fp32", 8896, fp32), ("fp16", 21456, fp16))
    ]
    return cost_row(record(*EVEN, costs={"largest_batch": found}))["largest batch"]


def test_the_samples_a_second_stand_beside_the_largest_batch():
    assert batches(6934.59, 31170.9) == "8896 to 21456; 6,935 to 31,171 samples/s, 4.5x"
    assert batches(None, 9301.9) == "8896 to 21456; 9,302 samples/s in mixed, not measured in FP32"
    assert batches(6934.59, None) == "8896 to 21456; 6,935 samples/s in FP32, not measured in mixed"
    assert batches(None, None) == "8896 to 21456; samples/s not measured"


def memory(fp32_mib: tuple[int, int], fp16_mib: tuple[int, int]) -> str:
    """The cell, of (peak, workspace) of each arm."""
    uses = [
        {"arm": arm, "recorded_peak_bytes": peak * 2**20, "split": {"workspace_bytes": space * 2**20}}
        for arm, (peak, space) in (("fp32", fp32_mib), ("fp16", fp16_mib))
    ]
    made = ratio("peak_memory_bytes", 0.375, baseline_value=2**31, candidate_value=0.75 * 2**30, interval=None)
    return cost_row(record(*EVEN, made, costs={"memory": uses}))["peak memory"]


def test_memory_that_is_saved_mostly_in_workspace_says_so():
    said = "0.38, 2.00 to 0.75 GiB; 938 of FP32's 2,208 MiB and 78 of mixed's 808 MiB are workspace, 0.57 without it"
    assert memory((2208, 938), (808, 78)) == said
    assert memory((2000, 40), (1000, 20)) == "0.38, 2.00 to 0.75 GiB"
    assert memory((2000, 2000), (1000, 20)) == "0.38, 2.00 to 0.75 GiB"


def test_ratios_of_costs_are_made_anew_and_what_is_no_diagnosis_is_left():
    made = json.loads(to_json(report_samples.full()))
    first = next(c for c in made["verification"]["comparisons"] if c["is_ratio"] and c["difference"])
    whole = judged_again.ratios_again(made)
    first["difference"] = 99.0
    assert judged_again.ratios_again(made) == whole
    assert judged_again.ratios_again({"error": "it broke"}) == {"error": "it broke"}
    assert judged_again.ratios_again({**made, "verification": None})["verification"] is None
