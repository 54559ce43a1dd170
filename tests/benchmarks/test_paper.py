"""benchmarks/paper.py: what it runs, what it keeps, and a page that any JSON, whole or not, can be made into."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import paper
import paper_cuts
import paper_ieee
import paper_jobs
import paper_lanes
import paper_page
import paper_scan
import paper_training
import report_samples
from mpdiag.saved import from_json, to_json

ROOT = Path(__file__).resolve().parents[2]

JOB = paper_jobs.JOBS["lstm_lm"]


def compared(arm: str, quantity: str, verdict: str, value: Any = 1.5, **more: Any) -> dict[str, Any]:
    fields = {"baseline": "fp32", "baseline_value": 1.25, "difference": 0.25, "interval": [0.1, 0.4], "margin": 0.05}
    made = {"candidate": arm, "quantity": quantity, "verdict": verdict, "candidate_value": value, "reason": None}
    return {**fields, **made, "is_ratio": False, **more}


def ratio(quantity: str, value: float | None, **more: Any) -> dict[str, Any]:
    return compared("fp16", quantity, "better", 8.0, is_ratio=True, difference=value, **more)


def record(*comparisons: dict[str, Any], cut: tuple[str, ...] = (), **verification: Any) -> dict[str, Any]:
    trials = [{"arm": "fp32", "seed": seed, "steps": 40} for seed in (0, 1, 2)]
    return {
        "environment": {"gpu": "H100", "driver": "580.1", "torch": "2.11.0"},
        "target": {"parameters": 2_500_000, "optimizer": "SGD(lr=2)", "notes": ["data: of old books"]},
        "advice": {"loss_scale": {"log2_scale": 7}},
        "verification": {"trials": trials, "comparisons": list(comparisons), "cut": list(cut), **verification},
    }


EVEN = [compared(arm, "loss", "equivalent", 1.25) for arm in ("fp16", "fp16-unscaled", "fp16-pure")]
TRAINED = {
    "steps": 900, "first_loss": 4.5, "last_loss": 1.5, "metric": {"bits_per_character": 2.25},
    "late_learning_rate": 0.02, "why": "it was chosen",
}  # fmt: skip


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(start))


def cells(text: str, job: str, state: str) -> dict[str, str]:
    values = [cell.strip() for cell in line(text, f"| {job} | {state}").strip("|").split("|")]
    return dict(zip(paper_page.COLUMNS, values, strict=True))


def cost_cells(text: str, job: str) -> dict[str, str]:
    table = text.partition("## What mixed precision costs")[2].partition("## ")[0]
    values = [cell.strip() for cell in line(table, f"| {job} |").strip("|").split("|")]
    return dict(zip(paper_page.COST_COLUMNS, values, strict=True))


# the page


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
    assert "As in the paper, no scale was needed." in line(text, "- **dcgan**:")
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
    assert row["largest batch"] == "96 to at least 192"


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
        ("worse", "What the paper saw without a scale (diverges after about 300,000 iterations) shows here."),
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
    assert "As in the paper, no scale was needed." in line(text, "- **dcgan**:")
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


# what is run


SMALL = paper_scan.Asked(small=True)
WHOLE_CARD = paper_scan.Asked(largest_batch=True)


def scan_words(state: str, asked: paper_scan.Asked, checkpoint: Path | None = None) -> list[str]:
    return paper_scan.command(JOB, state, asked, 60.0, "/tmp", checkpoint)


def test_a_late_scan_starts_from_the_checkpoint_and_the_first_does_not():
    late = scan_words("late", SMALL, Path("a.pt"))
    assert late[late.index("--start-from") + 1] == "a.pt"
    assert "--start-from" not in scan_words("init", SMALL)


def test_the_largest_batch_is_searched_once():
    assert "--largest-batch" in scan_words("init", WHOLE_CARD)
    assert "--largest-batch" not in scan_words("late", WHOLE_CARD, Path("a.pt"))


def test_a_process_in_a_lane_sees_one_gpu_and_the_jobs_variables(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = paper_lanes.variables("2", 4, paper_jobs.JOBS["lstm_lm_tiny"].environment)
    assert made["CUDA_VISIBLE_DEVICES"] == "2"
    assert made["LOSS_WEIGHT"] == "1e-4"
    assert 1 <= int(made["OMP_NUM_THREADS"]) <= 8
    assert "LOSS_WEIGHT" not in os.environ


def test_a_list_of_visible_gpus_is_kept_to(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-1234")
    assert paper_lanes.visible_gpus() == ["3", "GPU-1234"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert paper_lanes.visible_gpus() == ["0", "1"]


def test_the_checkpoint_has_the_late_rate_and_can_be_started_from(tmp_path, monkeypatch):
    from mpdiag.target import load_job

    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    made = paper_training.train(JOB, tmp_path / "late.pt", 2.0, 20)
    assert "error" not in made, made
    assert 0 < made["steps"] <= 20
    job = load_job(str(ROOT / "examples" / "lstm_lm.py"), tmp_path / "late.pt")
    model = job.build(job.start(0, 1), torch.device("cpu"))
    assert [group["lr"] for o in job.optimizers(model).values() for group in o.param_groups] == [JOB.late_rate]


def test_a_training_that_fails_is_a_reason_and_no_checkpoint(tmp_path):
    broken = dataclasses.replace(JOB, example="no_such_example")
    made = paper_training.train(broken, tmp_path / "late.pt", 2.0, 20)
    assert "no_such_example" in made["error"]
    assert not (tmp_path / "late.pt").exists()


# when it is run


def lane_task(name: str, seconds: float, fixed: float = 0.0, later: bool = False) -> paper_lanes.Task:
    return paper_lanes.Task(name, "late", seconds, fixed, later)


def test_the_longest_task_begins_first_and_those_that_are_there_but_for_gaps_last():
    made = [lane_task("a", 1), lane_task("b", 3, later=True), lane_task("c", 2)]
    queue = paper_lanes.Queue(made, paper_lanes.Clock(None))
    assert [queue.take() for _ in range(4)] == [
        (lane_task("c", 2), 1.0), (lane_task("a", 1), 1.0), (lane_task("b", 3, later=True), 1.0), None,
    ]  # fmt: skip


def test_near_the_deadline_a_task_gets_less_time_and_one_that_would_get_too_little_waits():
    queue = paper_lanes.Queue([lane_task("a", 200), lane_task("b", 120, 20)], paper_lanes.Clock(100))
    taken = queue.take()
    assert taken is not None
    assert taken[0].name == "b"
    assert taken[1] == pytest.approx(0.8, abs=0.01)
    assert queue.take() is None
    assert [task.name for task in queue.tasks] == ["a"]


def test_every_lane_has_one_task_at_a_time_and_all_are_done():
    at_work: dict[str, int] = {"0": 0, "1": 0}
    done, both = [], threading.Barrier(2, timeout=10)

    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        at_work[lane] += 1
        assert at_work[lane] == 1
        both.wait()  # only passes where two lanes work at the same time
        at_work[lane] -= 1
        done.append(task.name)

    queue = paper_lanes.Queue([lane_task(name, 1) for name in "abcd"], paper_lanes.Clock(None))
    assert paper_lanes.in_lanes(queue, ["0", "1"], do) == []
    assert sorted(done) == ["a", "b", "c", "d"]


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [])(0)) < 2, reason="takes two cores of Linux")
def test_processes_of_two_lanes_share_no_core():
    program = "import os; print(*os.sched_getaffinity(0))"
    seen: dict[str, set[str]] = {}
    all_cores, both = os.sched_getaffinity(0), threading.Barrier(2, timeout=10)

    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        both.wait()
        seen[lane] = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())

    queue = paper_lanes.Queue([lane_task(name, 1) for name in "ab"], paper_lanes.Clock(None))
    assert paper_lanes.in_lanes(queue, ["0", "1"], do) == []
    assert len(seen["0"]) == len(seen["1"]) == len(all_cores) // 2
    assert not seen["0"] & seen["1"]
    assert os.sched_getaffinity(0) == all_cores


def test_a_fault_in_one_lane_is_raised_when_the_others_are_done():
    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        if task.name == "a":
            raise ValueError("broken")

    queue = paper_lanes.Queue([lane_task("a", 2), lane_task("b", 1)], paper_lanes.Clock(None))
    with pytest.raises(ValueError, match="broken"):
        paper_lanes.in_lanes(queue, ["0", "1"], do)
    assert queue.tasks == []


STOPPABLE = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("kept").write_text("what there is")
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def ended_when_ready(folder: Path, program: str) -> str:
    """How a process ends that the deadline meets when it can take the signal."""
    clock = paper_lanes.Clock(None)

    def stop() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.02)
        clock.stop()

    threading.Thread(target=stop, daemon=True).start()
    return paper_lanes.ended([sys.executable, "-c", program], folder, dict(os.environ), folder / "said", 60, clock)


def test_at_the_deadline_a_process_may_still_write_what_it_has(tmp_path):
    assert ended_when_ready(tmp_path, STOPPABLE) == "at the deadline"
    assert (tmp_path / "kept").read_text() == "what there is"


def test_a_process_that_was_writing_its_results_at_the_deadline_was_not_ended_by_it(tmp_path):
    assert ended_when_ready(tmp_path, STOPPABLE.replace("exit(1)", "exit(0)")) == ""


def test_a_process_that_hangs_is_ended_after_its_time(tmp_path):
    words = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    how = paper_lanes.ended(words, tmp_path, dict(os.environ), tmp_path / "said", 1, paper_lanes.Clock(None))
    assert how == "after 1 s"


def test_what_is_planned_fits_into_few_calls_of_nine_minutes_on_four_gpus():
    """Each of the calls that the docstring names, packed as the lanes do it; what one leaves, --missing does."""
    for state, calls in (("late", 1), ("init", 2)):
        jobs = [job for job in paper_jobs.JOBS.values() if state == "late" or job.from_initialisation]
        left = sorted((paper_scan.planned(job, state, WHOLE_CARD).seconds for job in jobs), reverse=True)
        for _ in range(calls):
            ends = [0.0] * 4
            for seconds in list(left):
                if min(ends) + seconds <= 540.0:
                    ends[ends.index(min(ends))] += seconds
                    left.remove(seconds)
        assert not left, (state, left)


def test_the_search_of_the_largest_batch_has_the_time_it_took():
    plain, with_search = (paper_scan.planned(JOB, "init", asked) for asked in (paper_scan.Asked(), WHOLE_CARD))
    assert with_search.seconds - plain.seconds == with_search.fixed_seconds - plain.fixed_seconds >= 3 * 70


def test_a_scans_budget_is_what_the_deadline_leaves_of_its_plan():
    plain = paper_scan.Asked()
    assert paper_scan.budget_of(JOB, "late", plain, float("inf")) == JOB.late_seconds
    room = JOB.before_seconds + paper_scan.WRITING_SECONDS
    assert paper_scan.budget_of(JOB, "late", plain, room + 50) == 50
    assert paper_scan.budget_of(JOB, "init", WHOLE_CARD, room + 50 + paper_scan.LARGEST_SECONDS) == 50


# what is missing


def made_by(state: str, asked: paper_scan.Asked, *comparisons: dict[str, Any], **more: Any) -> dict[str, Any]:
    words = scan_words(state, asked, Path("a.pt") if state == "late" else None)
    command = shlex.join(["mpdiag", *words[words.index("scan") :]])
    return {**record(*EVEN, *comparisons), "command": command, "reason": None, **more}


COSTED = [ratio(q, 0.5) for q in ("peak_memory_bytes", "step_time_ms", "energy_joules_per_sample")]


def test_a_whole_record_lacks_nothing():
    assert paper_scan.lacks(made_by("late", WHOLE_CARD), JOB, "late", WHOLE_CARD) == ""
    plain = paper_scan.Asked()
    assert paper_scan.lacks(made_by("init", plain, *COSTED), JOB, "init", plain) == ""


@pytest.mark.parametrize(
    "found",
    [
        None,
        {"error": "out of memory"},
        made_by("late", SMALL),
        made_by("late", WHOLE_CARD, reason="interrupted: SIGTERM"),
        made_by("late", WHOLE_CARD, verification={"trials": []}),
    ],
    ids=["no file", "an error", "another plan", "stopped", "no trials"],
)
def test_what_is_missing_or_not_whole_is_run_again(found):
    assert paper_scan.lacks(found, JOB, "late", WHOLE_CARD) == "all"


def test_a_record_tells_the_command_that_does_the_same_again():
    tiny = paper_jobs.JOBS["lstm_lm_tiny"]
    made = made_by("late", WHOLE_CARD)
    told = paper_scan.rerun_told(copy.deepcopy(made), tiny.environment)
    assert (
        told["command"] == f"LOSS_WEIGHT=1e-4 python benchmarks/paper_ieee.py {made['command'].removeprefix('mpdiag ')}"
    )
    assert told["target"]["notes"] == [*made["target"]["notes"], paper_ieee.NOTE]
    assert paper_scan.lacks(told, JOB, "late", WHOLE_CARD) == ""  # the plan is read out of it as before


def test_the_command_that_a_record_tells_computes_fp32_in_full(tmp_path):
    job = tmp_path / "job.py"
    job.write_text(
        "import torch\nprint([torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision])"
    )
    words = [sys.executable, paper_scan.SCAN, "scan", str(job)]
    paths = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, cwd=ROOT, env=paths, capture_output=True, text=True, check=False)
    assert "['ieee', 'ieee']" in ended.stdout + ended.stderr


def test_a_cost_or_a_third_seed_that_was_cut_is_a_gap():
    assert paper_scan.lacks(made_by("init", WHOLE_CARD, *COSTED), JOB, "init", WHOLE_CARD) == "parts"
    plain = paper_scan.Asked()
    assert paper_scan.lacks(made_by("init", plain, *COSTED[:2]), JOB, "init", plain) == "parts"
    few = made_by("late", WHOLE_CARD)
    few["verification"]["trials"].pop()
    assert paper_scan.lacks(few, JOB, "late", WHOLE_CARD) == "parts"


def test_a_scan_that_was_stopped_when_its_costs_were_measured_has_only_a_gap():
    stopped = made_by("init", WHOLE_CARD, *COSTED, reason="interrupted: stopped by SIGTERM")
    assert paper_scan.lacks(stopped, JOB, "init", WHOLE_CARD) == "parts"
    early = made_by("init", WHOLE_CARD, *COSTED[:1], reason="interrupted: stopped by SIGTERM")
    assert paper_scan.lacks(early, JOB, "init", WHOLE_CARD) == "all"


def test_with_missing_only_what_lacks_is_planned():
    there = {"lstm_lm": {"error": "it broke"}, "lstm_lm-late": made_by("late", WHOLE_CARD)}
    words = argparse.Namespace(names=["lstm_lm"], only=None, missing=True)
    assert [task.state for task in paper.tasks(words, there, WHOLE_CARD)] == ["init"]
    words.missing = False
    assert [task.state for task in paper.tasks(words, there, WHOLE_CARD)] == ["init", "late"]
    words.only = "late"
    assert [task.state for task in paper.tasks(words, there, WHOLE_CARD)] == ["late"]


def kept_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: paper_lanes.Task, found: dict[str, Any]) -> Any:
    """What lies in the folder after a task that made `found`, where "before" lay there."""
    (tmp_path / "lstm_lm.json").write_text('"before"')
    monkeypatch.setattr(paper_scan, "_in_folder", lambda *given: found)
    paper_scan.run_task(task, "0", 1.0, tmp_path, WHOLE_CARD, paper_lanes.Clock(None))
    return json.loads((tmp_path / "lstm_lm.json").read_text())


def test_a_second_try_for_a_gap_that_fails_does_not_replace_what_is_there(monkeypatch, tmp_path):
    again, failed = paper_lanes.Task("lstm_lm", "init", 9, 1, True), {"lstm_lm": {"error": "it broke"}}
    assert kept_by(monkeypatch, tmp_path, again, failed) == "before"
    assert kept_by(monkeypatch, tmp_path, again, {}) == "before"
    assert kept_by(monkeypatch, tmp_path, dataclasses.replace(again, later=False), failed) == failed["lstm_lm"]


def test_what_is_kept_of_a_scan_is_small_and_still_loads(saved_scan):
    kept = paper_scan.smaller(json.loads(saved_scan))
    assert kept["capture"]["tables"] == []
    assert paper_scan.NOTE in kept["target"]["notes"]
    text = json.dumps(kept)
    assert len(text) < len(saved_scan)
    assert from_json(text).capture is not None
    whole, small = (json.loads(each)["verification"] for each in (saved_scan, text))
    whole["prediction"] = small["prediction"] = None
    assert small == whole


@pytest.fixture
def saved_scan() -> str:
    return to_json(report_samples.full())


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


def run_small(monkeypatch: pytest.MonkeyPatch, out: Path, *more: str) -> None:
    words = ["--small", "--scale", "0.1", "--gpus", "2", "--out", str(out), "lstm_lm", "lstm_lm_tiny", *more]
    monkeypatch.setattr(sys, "argv", ["paper.py", *words])
    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    paper.main()


@pytest.mark.slow
def test_the_whole_command_runs_small_and_then_misses_nothing(tmp_path, monkeypatch, capsys):
    run_small(monkeypatch, tmp_path)
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert names == {
        "lstm_lm.json", "lstm_lm-late.json", "lstm_lm-training.json",
        "lstm_lm_tiny-late.json", "lstm_lm_tiny-training.json",
    }  # fmt: skip
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    for job, state in (("lstm_lm", "init"), ("lstm_lm", "late"), ("lstm_lm_tiny", "late")):
        assert cells(text, job, state)["of"] == "bits per character, loss"
    late = from_json((tmp_path / "paper" / "lstm_lm-late.json").read_text(encoding="utf-8"))
    assert late.target is not None
    assert late.target.optimizer == "SGD(lr=0.02)"
    assert late.command.startswith("EXAMPLE_SIZE=small python benchmarks/paper_ieee.py scan examples/lstm_lm.py ")
    assert paper_ieee.NOTE in late.target.notes
    training = json.loads((tmp_path / "paper" / "lstm_lm_tiny-training.json").read_text(encoding="utf-8"))
    assert training["command"].startswith("LOSS_WEIGHT=1e-4 EXAMPLE_SIZE=small python benchmarks/paper_training.py")
    (tmp_path / "paper" / "lstm_lm-late.json").unlink()
    capsys.readouterr()
    run_small(monkeypatch, tmp_path, "--missing")
    assert "1 task(s) of about" in capsys.readouterr().out
    assert (tmp_path / "paper" / "lstm_lm-late.json").exists()
    run_small(monkeypatch, tmp_path, "--missing")
    assert "0 task(s) of about" in capsys.readouterr().out


@pytest.mark.slow
def test_at_the_deadline_the_command_ends_with_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paper_lanes, "LEAST_SHARE", -100.0)  # else nothing would begin
    run_small(monkeypatch, tmp_path, "--deadline", "1")  # the processes do not even come to begin
    assert capsys.readouterr().out.count("ended before it had anything to keep") == 3
    assert list((tmp_path / "paper").iterdir()) == []
    assert cells((tmp_path / "paper.md").read_text(encoding="utf-8"), "lstm_lm", "init")["FP32"] == "not run"
