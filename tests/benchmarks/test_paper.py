"""benchmarks/paper.py: what it runs, when, and what it keeps."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import paper
import paper_ieee
import paper_jobs
import paper_lanes
import paper_page
import paper_scan
import paper_training
import report_samples
from mpdiag.saved import from_json, to_json
from paper_samples import EVEN, ratio, record, row_of

ROOT = Path(__file__).resolve().parents[2]

JOB = paper_jobs.JOBS["lstm_lm"]


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
        assert row_of(text, f"| {job} | {state}", paper_page.COLUMNS)["of"] == "bits per character, loss"
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
    text = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert row_of(text, "| lstm_lm | init", paper_page.COLUMNS)["FP32"] == "not run"
