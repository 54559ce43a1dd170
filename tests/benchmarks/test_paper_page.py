"""reports/paper.md: a page that any JSON, whole or not, can be made into."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import paper_costs
import paper_cuts
import paper_jobs
import paper_page
from paper_samples import EVEN, TRAINED, compared, line, ratio, record, row_of

ROOT = Path(__file__).resolve().parents[2]


def cells(text: str, job: str, state: str) -> dict[str, str]:
    return row_of(text, f"| {job} | {state}", paper_page.COLUMNS)


def cost_cells(text: str, job: str) -> dict[str, str]:
    table = text.partition("## What mixed precision costs")[2].partition("## ")[0]
    return row_of(table, f"| {job} |", paper_costs.COST_COLUMNS)


def test_without_any_json_every_job_is_not_run():
    text = paper_page.page({})
    assert text.count("not run.") == 2 * len(paper_jobs.JOBS)
    assert cells(text, "lstm_lm", "init")["FP32"] == "not run"


def test_an_arm_that_is_worse_is_bold_and_one_that_is_undecided_says_so():
    late = record(
        compared("fp16", "loss", "equivalent", 1.25),
        compared("fp16-unscaled", "loss", "worse", 1.5),
        compared("fp16-pure", "loss", "inconclusive", 1.3),
    )
    row = cells(paper_page.page({"lstm_lm-late": late}), "lstm_lm", "late")
    assert (row["of"], row["FP32"]) == ("loss", "1.25")
    assert row["mixed"] == "1.25 equivalent"
    assert row["unscaled"] == "1.5 **worse**"
    assert row["pure FP16"] == "1.3 undecided"


def test_an_arm_that_is_shown_to_be_not_worse_says_so():
    late = record(*(compared(arm, "distance", "inconclusive", test={"noninferior": True}) for arm in paper_page.ARMS))
    text = paper_page.page({"dcgan-late": late})
    assert cells(text, "dcgan", "late")["mixed"] == "1.5 not worse"
    assert "As in the paper, no scale was needed at this size, in 40 steps." in line(text, "- **dcgan**:")
    assert "Mixed not worse than FP32 (late)" in line(text, "- **dcgan**:")


def test_a_metric_of_the_model_that_a_nan_left_behind_says_nothing_of_its_weights():
    nan = compared("fp16-pure", "loss", "worse", None, reason="not finite at step 2 of seed 0, while FP32 is")
    late = record(nan, compared("fp16-pure", "accuracy", "worse", 0.02, difference=-0.67))
    assert "Pure FP16 did not stay finite" in line(paper_page.page({"bert_mlm-late": late}), "- **bert_mlm**:")


def test_the_busy_share_of_a_mixed_step_is_told_where_it_was_traced():
    kernels = [{"arm": "fp32", "time": {"busy_share": 0.99}}, {"arm": "fp16", "time": {"busy_share": 0.48}}]
    made = record(*EVEN, costs={"kernels": kernels})
    assert cost_cells(paper_page.page({"lstm_lm": made}), "lstm_lm")["GPU busy"] == "48%"
    assert cost_cells(paper_page.page({"lstm_lm": record(*EVEN)}), "lstm_lm")["GPU busy"] == "not measured"


def test_metrics_come_before_the_loss():
    made = record(compared("fp16", "loss", "equivalent"), compared("fp16", "bits_per_character", "better", 2.0))
    row = cells(paper_page.page({"lstm_lm": made}), "lstm_lm", "init")
    assert row["of"] == "bits per character, loss"
    assert row["mixed"] == "2 better, 1.5 equivalent"


def test_two_figures_with_one_verdict_share_the_word_and_others_than_the_baselines_are_named():
    both = [compared("fp16", q, "equivalent") for q in ("accuracy", "loss")]
    made = record(*both, compared("fp16-pure", "loss", "worse", 9.0))
    row = cells(paper_page.page({"lstm_lm": made}), "lstm_lm", "init")
    assert row["mixed"] == "1.5, 1.5 equivalent"
    assert row["pure FP16"] == "loss 9 **worse**"


@pytest.mark.parametrize("value", ["NaN", "Infinity", None])
def test_an_arm_without_a_finite_value_is_not_finite(value):
    made = record(compared("fp16-pure", "loss", "worse", value, difference=None, reason="not finite, while FP32 is"))
    text = paper_page.page({"lstm_lm": made})
    assert cells(text, "lstm_lm", "init")["pure FP16"] == "not finite **worse**"
    assert "pure FP16 worse (loss: not finite, while FP32 is) (init)" in line(text, "- **lstm_lm**:")


def test_an_arm_that_was_left_out_says_why():
    made = record(*EVEN[:1], cut=("arm fp16-unscaled: left out, because no loss scale is recommended",))
    row = cells(paper_page.page({"lstm_lm": made}), "lstm_lm", "init")
    assert row["unscaled"] == "not run: arm fp16-unscaled: left out, because no loss scale is recommended"


def test_costs_are_ratios_with_their_intervals():
    made = record(
        ratio("step_time_ms", 0.5, baseline_value=16.0, interval=[0.49, 0.51]),
        ratio("peak_memory_bytes", 0.75, baseline_value=4 * 2**30, candidate_value=3 * 2**30, interval=None),
        ratio("energy_joules_per_sample", None, reason="the counter stood still"),
        costs={"largest_batch": [{"arm": "fp32", "batch": 96}, {"arm": "fp16", "batch": 192, "at_least": True}]},
    )
    row = cost_cells(paper_page.page({"lstm_lm": made}), "lstm_lm")
    assert row["over TF32"] == "not measured: not in the JSON"
    assert row["step time"] == "0.50 (0.49 to 0.51), 16.0 to 8.0 ms"
    assert row["peak memory"] == "0.75, 4.00 to 3.00 GiB"
    assert row["energy"] == "not measured: the counter stood still"
    assert row["largest batch"] == "96 to at least 192; samples/s not measured"


def over_tf32(verdict: str, value: float, **more: Any) -> dict[str, Any]:
    made = {"baseline": "tf32", "baseline_value": 8.0 / value, "interval": [value - 0.1, value + 0.1]}
    return {**ratio("step_time_ms", value, **made, **more), "verdict": verdict}


@pytest.mark.parametrize(
    ("verdict", "value", "cell", "said"),
    [
        ("better", 0.5, "0.50 (0.40 to 0.60), 16.0 to 8.0 ms, faster", ""),
        (
            "equivalent",
            1.0,
            "1.00 (0.90 to 1.10), 8.0 to 8.0 ms, the same",
            "Mixed is as fast as TF32, no faster: 1.00",
        ),
        ("worse", 1.25, "1.25 (1.15 to 1.35), 6.4 to 8.0 ms, **slower**", "Mixed is slower than TF32: 1.25 times"),
        ("inconclusive", 1.25, "1.25 (1.15 to 1.35), 6.4 to 8.0 ms, undecided: too noisy", "stayed undecided: 1.25"),
    ],
)
def test_mixed_is_held_against_tf32_too(verdict, value, cell, said):
    reason = "too noisy" if verdict == "inconclusive" else None
    against = [ratio("step_time_ms", 0.25, interval=None), over_tf32(verdict, value, reason=reason)]
    for costs in (against, against[::-1]):  # whichever comes first in the JSON
        text = paper_page.page({"lstm_lm": record(*EVEN, *costs)})
        row = cost_cells(text, "lstm_lm")
        assert row["over TF32"] == cell
        assert row["step time"] == "0.25, 1.2 to 8.0 ms"
        sentence = line(text, "- **lstm_lm**:")
        assert said in sentence
        assert ("TF32" in sentence) == bool(said)


def test_the_memory_of_pure_fp16_stands_beside_where_it_was_measured():
    use = {"arm": "fp32", "peak_allocated_bytes": 4 * 2**30}
    pure = {"arm": "fp16-pure", "peak_allocated_bytes": 2**30}
    made = record(*EVEN, costs={"memory": [use, pure]})
    assert cost_cells(paper_page.page({"lstm_lm": made}), "lstm_lm")["pure FP16's memory"] == "0.25, 1.00 GiB"
    failed = record(*EVEN, costs={"memory": [use, {"arm": "fp16-pure", "reason": "it was killed"}]})
    assert cost_cells(paper_page.page({"lstm_lm": failed}), "lstm_lm")["pure FP16's memory"] == (
        "not measured: it was killed"
    )
    older = record(*EVEN, compared("fp16-pure", "peak_memory_bytes", "not-measured", is_ratio=True, reason="no run"))
    assert cost_cells(paper_page.page({"lstm_lm": older}), "lstm_lm")["pure FP16's memory"] == "not measured: no run"


def test_the_papers_own_figures_stand_in_the_row_of_each_state():
    text = paper_page.page({"ssd_detector": record(*EVEN), "ssd_detector-late": record(*EVEN)})
    for state in ("init", "late"):
        row = cells(text, "ssd_detector", state)
        assert (row["FP32"], row["mixed"]) == ("1.25", "1.25 equivalent")
        assert row["kind in the paper"] == "Multibox SSD, Table 2 [read, secondary]"
        assert [row[f"paper: {name}"] for name in ("FP32", "mixed", "unscaled")] == [
            "76.9 % mAP", "77.1 % (scale 8)", "diverges",
        ]  # fmt: skip
    row = cells(text, "bert_mlm", "late")
    assert (row["kind in the paper"], row["paper: FP32"]) == ("none: it has no transformer", "")


def test_a_job_without_a_run_from_initialisation_refers_to_the_costs_of_its_like():
    assert cost_cells(paper_page.page({"lstm_lm_tiny-late": record(*EVEN)}), "lstm_lm_tiny")["peak memory"] == (
        "as lstm_lm"
    )


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ("worse", "As in the paper (diverges after about 300,000 iterations), a missing scale did harm here."),
        ("equivalent", "300,000 iterations) did not show at this size, in 40 steps."),
        ("inconclusive", "stayed undecided at this size, in 40 steps."),
    ],
)
def test_a_sentence_says_whether_the_papers_failure_shows(late, said):
    made = {"lstm_lm": record(*EVEN), "lstm_lm-late": record(*EVEN[::2], compared("fp16-unscaled", "loss", late))}
    sentence = line(paper_page.page(made), "- **lstm_lm**:")
    assert said in sentence
    assert "Mixed equal to FP32 in both states" in sentence
    assert "FP16 weights without a master copy were not visibly worse at this size, in 40 steps." in sentence


def test_a_job_that_needs_no_scale_in_the_paper_is_held_to_that():
    text = paper_page.page({"dcgan": record(*EVEN)})
    assert "As in the paper, no scale was needed at this size, in 40 steps." in line(text, "- **dcgan**:")
    harmed = paper_page.page({"dcgan": record(*EVEN[::2], compared("fp16-unscaled", "distance", "worse"))})
    assert "Unlike in the paper, a missing scale did harm here." in line(harmed, "- **dcgan**:")


def test_the_training_before_late_is_told_with_its_rate_and_reason():
    text = paper_page.page({"lstm_lm": record(*EVEN), "lstm_lm-training": TRAINED})
    told = "after 900 FP32 steps (loss 4.5 to 1.5, bits per character 2.25), at learning rate 0.02: it was chosen."
    assert told in text


def test_a_failed_training_is_the_reason_for_the_missing_late_row():
    text = paper_page.page({"lstm_lm": record(*EVEN), "lstm_lm-training": {"error": "out of memory"}})
    assert cells(text, "lstm_lm", "late")["FP32"] == "not run: out of memory"


def test_a_scan_that_failed_is_a_reason_in_the_table():
    text = paper_page.page({"lstm_lm": {"error": "exit code 3: error[out-of-memory]: too large"}})
    assert cells(text, "lstm_lm", "init")["FP32"] == "not run: exit code 3: error[out-of-memory]: too large"


WHOLE = {
    "lstm_lm": record(*EVEN, ratio("step_time_ms", 0.5), costs={"largest_batch": [{"arm": "fp32", "batch": 8}]}),
    "lstm_lm-late": record(*EVEN, cut=("arm bf16: not run",)),
    "lstm_lm-training": TRAINED,
}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key in a nested record."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from places(item, (*at, key))


@settings(deadline=None, max_examples=400)
@given(st.lists(st.sampled_from(list(places(WHOLE))), max_size=6), st.booleans())
def test_a_page_is_written_whatever_keys_are_missing_or_null(removed, null):
    made = copy.deepcopy(WHOLE)
    for path in removed:
        holder: Any = made
        try:
            for key in path[:-1]:
                holder = holder[key]
            if null:
                holder[path[-1]] = None
            else:
                del holder[path[-1]]
        except (KeyError, IndexError, TypeError):
            continue  # it went with an earlier one
    text = paper_page.page({name: value for name, value in made.items() if value is not None})
    assert cells(text, "lstm_lm", "init")["job"] == "lstm_lm"


def test_every_figure_of_the_paper_is_marked_as_read():
    for job in paper_jobs.JOBS.values():
        quotes = any(sign.isdigit() for sign in job.fp32 + job.mixed + job.unscaled)
        assert not quotes or "[read" in job.source, job.name


def test_every_job_has_its_example_and_a_reason_for_its_late_rate():
    for job in paper_jobs.JOBS.values():
        assert (ROOT / "examples" / f"{job.example}.py").is_file()
        assert job.why_late
        assert job.late_rate > 0


def test_a_row_says_how_long_and_how_often_its_arms_were_trained():
    row = line(paper_page.page({"lstm_lm": record(*EVEN)}), "| lstm_lm | init")
    assert "| init, 40 steps x 3 seeds |" in row


def test_a_scan_that_the_deadline_ended_says_so_below_the_table():
    text = paper_page.page({"lstm_lm": {**record(*EVEN), "reason": "interrupted: stopped by SIGTERM"}})
    assert "- Stopped before its end (interrupted: stopped by SIGTERM): lstm_lm, init." in text


def test_what_was_cut_is_grouped_by_what_it_was_and_keeps_its_numbers():
    cut = [
        ("a, init", "only 25 of 100 steps were trained, to keep the time budget of 4.49609 s"),
        ("a, init", "hardware counters: not measured, it takes about 60 s, the time budget had 14 s left"),
        ("b, late", "arm fp32, seed 2: not run, the time budget was used up"),
        ("b, late", "arm bf16, seed 2: not run, the time budget was used up"),
        ("b, late", "only 49 of 100 steps were trained: the time budget of 103 s had 83 s left for training"),
        ("b, late", "hardware counters: not measured: it takes about 60 s, the time budget had 0 s left"),
        ("b, late", "a line of a kind that was never seen"),
    ]
    assert paper_cuts.cut_lines(cut) == [
        "- Fewer steps than asked for: a, init (25 of 100, to keep the time budget of 4.5 s); b, late (49 of 100, the "
        "time budget of 103 s had 83 s left for training).",
        "- Hardware counters: not measured, it takes about 60 s, and less was left of the time budget: a, init (14 s); "
        "b, late (0 s).",
        "- Seed 2 not run, the time budget was used up: b, late (fp32, bf16).",
        "- A line of a kind that was never seen: b, late.",
    ]
