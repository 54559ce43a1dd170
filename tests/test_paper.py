"""benchmarks/paper.py: what it runs, what it keeps, and a page that any JSON, whole or not, can be made into."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiag.saved import from_json, to_json

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmarks are not part of a source distribution", allow_module_level=True)
sys.path.insert(0, str(ROOT / "benchmarks"))

import paper  # noqa: E402
import paper_jobs  # noqa: E402
import paper_page  # noqa: E402

JOB = paper_jobs.JOBS["lstm_lm"]


@pytest.fixture(scope="module", autouse=True)
def path_as_before() -> Iterator[None]:
    """The benchmarks' folder is on the path for these modules alone."""
    yield
    sys.path.remove(str(ROOT / "benchmarks"))


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
    values = [cell.strip() for cell in line(text, f"| {job} | {state} |").strip("|").split("|")]
    return dict(zip(paper_page.COLUMNS, values, strict=True))


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
    assert row["FP32"] == "loss 1.25"
    assert row["mixed"] == "loss 1.25 equivalent"
    assert row["unscaled"] == "loss 1.5 **worse**"
    assert row["pure FP16"] == "loss 1.3 undecided"


def test_metrics_come_before_the_loss():
    made = record(compared("fp16", "loss", "equivalent"), compared("fp16", "bits_per_character", "better", 2.0))
    row = cells(paper_page.page({"lstm_lm": made}), "lstm_lm", "init")
    assert row["mixed"] == "bits per character 2 better, loss 1.5 equivalent"


@pytest.mark.parametrize("value", ["NaN", "Infinity", None])
def test_an_arm_without_a_finite_value_is_not_finite(value):
    made = record(compared("fp16-pure", "loss", "worse", value, difference=None, reason="not finite, while FP32 is"))
    text = paper_page.page({"lstm_lm": made})
    assert cells(text, "lstm_lm", "init")["pure FP16"] == "not finite: **worse**"
    assert "pure FP16 worse (loss: not finite, while FP32 is) (init)" in line(text, "- lstm_lm:")


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
    row = cells(paper_page.page({"lstm_lm": made}), "lstm_lm", "init")
    assert row["step time"] == "0.50 (0.49 to 0.51), 16.0 to 8.0 ms"
    assert row["memory"] == "0.75, 4.00 to 3.00 GiB"
    assert row["energy"] == "not measured: the counter stood still"
    assert row["largest batch"] == "96 to at least 192"


def test_late_rows_refer_to_the_costs_from_initialisation():
    row = cells(paper_page.page({"lstm_lm_tiny-late": record(*EVEN)}), "lstm_lm_tiny", "late")
    assert row["step time"] == row["memory"] == row["energy"] == row["largest batch"] == "see lstm_lm, init"


@pytest.mark.parametrize(
    ("late", "said"),
    [
        ("worse", "What the paper saw without a scale shows here."),
        ("equivalent", "What the paper saw without a scale did not show at this size, in 40 steps."),
        ("inconclusive", "stayed undecided at this size, in 40 steps."),
    ],
)
def test_a_sentence_says_whether_the_papers_failure_shows(late, said):
    made = {"lstm_lm": record(*EVEN), "lstm_lm-late": record(*EVEN[::2], compared("fp16-unscaled", "loss", late))}
    sentence = line(paper_page.page(made), "- lstm_lm:")
    assert said in sentence
    assert "mixed equal to FP32 in both states" in sentence
    assert "FP16 weights without a master copy were not visibly worse at this size, in 40 steps." in sentence


def test_a_job_that_needs_no_scale_in_the_paper_is_held_to_that():
    text = paper_page.page({"dcgan": record(*EVEN)})
    assert "As in the paper, no scale was needed." in line(text, "- dcgan:")
    harmed = paper_page.page({"dcgan": record(*EVEN[::2], compared("fp16-unscaled", "distance", "worse"))})
    assert "Unlike in the paper, a missing scale did harm here." in line(harmed, "- dcgan:")


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


def asked(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"small": True, "seconds": 10.0, "largest_batch": False, **more})


def test_a_late_scan_starts_from_the_checkpoint_and_the_first_does_not():
    late = paper.command(JOB, "late", asked(), "/tmp", Path("a.pt"))
    assert late[late.index("--start-from") + 1] == "a.pt"
    assert "--start-from" not in paper.command(JOB, "init", asked(), "/tmp", None)


def test_the_largest_batch_is_searched_once():
    wanted = asked(largest_batch=True)
    assert "--largest-batch" in paper.command(JOB, "init", wanted, "/tmp", None)
    assert "--largest-batch" not in paper.command(JOB, "late", wanted, "/tmp", Path("a.pt"))


def test_the_jobs_variables_are_in_force_only_while_it_runs(monkeypatch):
    monkeypatch.delenv("LOSS_WEIGHT", raising=False)
    with paper.environment(paper_jobs.JOBS["lstm_lm_tiny"]):
        assert paper.os.environ["LOSS_WEIGHT"] == "1e-4"
    assert "LOSS_WEIGHT" not in paper.os.environ


def test_the_checkpoint_has_the_late_rate_and_can_be_started_from(tmp_path, monkeypatch):
    from mpdiag.target import load_job

    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    made = paper.train(JOB, tmp_path / "late.pt", asked(seconds=4.0))
    assert "error" not in made, made
    assert made["steps"] > 0
    job = load_job(str(ROOT / "examples" / "lstm_lm.py"), tmp_path / "late.pt")
    model = job.build(job.start(0, 1), torch.device("cpu"))
    assert [group["lr"] for o in job.optimizers(model).values() for group in o.param_groups] == [JOB.late_rate]


def test_a_training_that_fails_is_a_reason_and_no_checkpoint(tmp_path):
    broken = dataclasses.replace(JOB, example="no_such_example")
    made = paper.train(broken, tmp_path / "late.pt", asked())
    assert "no_such_example" in made["error"]
    assert not (tmp_path / "late.pt").exists()


def test_what_is_kept_of_a_scan_is_small_and_still_loads(saved_scan):
    kept = paper.smaller(json.loads(saved_scan))
    assert kept["capture"]["tables"] == []
    assert paper.NOTE in kept["target"]["notes"]
    text = json.dumps(kept)
    assert len(text) < len(saved_scan)
    assert from_json(text).capture is not None
    whole, small = (json.loads(each)["verification"] for each in (saved_scan, text))
    whole["prediction"] = small["prediction"] = None
    assert small == whole


@pytest.fixture
def saved_scan() -> str:
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        samples: ModuleType = __import__("report_samples")
    finally:
        sys.path.remove(str(ROOT / "tests"))
    return to_json(samples.full())


@pytest.mark.slow
def test_the_whole_command_runs_small(tmp_path, monkeypatch):
    words = ["--small", "--seconds", "15", "--out", str(tmp_path), "lstm_lm", "lstm_lm_tiny"]
    monkeypatch.setattr(sys, "argv", ["paper.py", *words])
    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    paper.main()
    names = {path.name for path in (tmp_path / "paper").iterdir()}
    assert names == {
        "lstm_lm.json", "lstm_lm-late.json", "lstm_lm-training.json",
        "lstm_lm_tiny-late.json", "lstm_lm_tiny-training.json",
    }  # fmt: skip
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    for job, state in (("lstm_lm", "init"), ("lstm_lm", "late"), ("lstm_lm_tiny", "late")):
        assert cells(text, job, state)["mixed"].startswith("bits per character")
    late = from_json((tmp_path / "paper" / "lstm_lm-late.json").read_text(encoding="utf-8"))
    assert late.target is not None
    assert late.target.optimizer == "SGD(lr=0.02)"
