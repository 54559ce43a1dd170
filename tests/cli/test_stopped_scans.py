"""A scan that is stopped or killed, or that has company: what survives."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cli_samples import (
    BATCHES,
    CAPTURE_ONLY,
    HEAD,
    MODEL,
    SMALL,
    WHOLE,
    Result,
    finished,
    in_process_of_its_own,
    refused,
    saved,
    started,
)

SLOW = HEAD + MODEL + BATCHES + "import time\nCALLS = [0]\n"
SLOW += "def compute_loss(model, batch):\n    CALLS[0] += 1\n    if CALLS[0] > 9:\n        time.sleep(0.1)\n"
SLOW += "    return model(batch).pow(2).mean()\n"


def stopped_when(marker: str, sent: signal.Signals, cwd: Path, *arguments: Any, after: float = 0.4) -> Result:
    """A scan that gets a signal a moment after it has said `marker`."""
    process = started("scan", *arguments, cwd=cwd)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if marker in line:
            break
    else:
        pytest.fail(f"{marker!r} was never said:\n{said}")
    time.sleep(after)
    process.send_signal(sent)
    rest = finished(process)
    return Result(rest.code, rest.out, said + rest.err)


@pytest.mark.slow
def test_ctrl_c_during_the_capture_keeps_what_was_seen(write, tmp_path):
    result = stopped_when("capture 500", signal.SIGINT, tmp_path, write(SLOW), "--steps", "500", "--plotly", "none")
    refused(result, "interrupted", 3)
    data = saved(tmp_path / "reports/job.json")
    assert 1 <= data["capture"]["steps"] < 500
    assert data["capture"]["reason"] == "the capture ended early"
    assert {t["steps"] for t in data["capture"]["tables"]} == {data["capture"]["steps"]}
    assert data["advice"]["loss_scale"]["mode"]
    assert data["verification"] is None
    assert "interrupted" in data["reason"]
    assert "interrupted" in (tmp_path / "reports/job.html").read_text("utf-8")
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["job.html", "job.json"]


@pytest.mark.slow
def test_ctrl_c_during_the_verification_keeps_what_was_seen(write, tmp_path):
    arguments = (write(SLOW), "--steps", "2", "--verify-steps", "10", "--plotly", "none")
    result = stopped_when("verify fp16,", signal.SIGINT, tmp_path, *arguments)
    refused(result, "interrupted", 3)
    data = saved(tmp_path / "reports/job.json")
    assert data["capture"]["steps"] == 2
    assert [trial["arm"] for trial in data["verification"]["trials"]] == ["fp32"]
    assert data["verification"]["verdict"] == "inconclusive"
    assert (tmp_path / "reports/job.html").is_file()


@pytest.mark.slow
def test_an_impatient_second_ctrl_c_does_not_lose_what_was_seen(write, tmp_path):
    process = started("scan", write(SLOW), "--steps", "500", "--plotly", "none", cwd=tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "capture 500" in line:
            break
    for pause in (0.5, 0.02, 0.02):
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    result = finished(process)
    assert (result.slug, result.code) == ("interrupted", 3), result.err
    data = saved(tmp_path / "reports/job.json")
    assert data["capture"] is not None
    assert data["capture"]["steps"] >= 1


@pytest.mark.slow
def test_ctrl_c_with_json_on_stdout_still_prints_it(write, tmp_path):
    arguments = (write(SLOW), "--steps", "500", "--plotly", "none", "--json", "-")
    result = stopped_when("capture 500", signal.SIGINT, tmp_path, *arguments)
    refused(result, "interrupted", 3)
    assert json.loads(result.out)["capture"]["steps"] >= 1


@pytest.mark.slow
def test_a_kill_after_the_capture_leaves_its_json(write, tmp_path):
    arguments = (write(SLOW), "--steps", "3", "--verify-steps", "50", "--plotly", "none")
    result = stopped_when("verify fp32", signal.SIGKILL, tmp_path, *arguments)
    assert result.code == -signal.SIGKILL
    data = saved(tmp_path / "reports/job.json")
    assert data["capture"]["steps"] == 3
    assert data["advice"]["loss_scale"]["mode"]
    assert data["verification"] is None
    assert [p.name for p in (tmp_path / "reports").iterdir()] == ["job.json"]


@pytest.mark.slow
def test_two_scans_into_one_folder_leave_whole_files(write, tmp_path):
    path = write(WHOLE)
    both = [started("scan", path, *SMALL, "--seed", seed, cwd=tmp_path) for seed in (1, 2)]
    for process in both:
        result = finished(process)
        assert result.code == 3, result.err  # one seed gives no interval
    assert saved(tmp_path / "reports/job.json")["capture"]["seed"] in (1, 2)
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["job.html", "job.json"]


@pytest.mark.slow
def test_a_scan_from_another_folder_finds_the_files_neighbours(write, tmp_path):
    write("WIDTH = 2\n", "project/neighbour.py")
    path = write("from neighbour import WIDTH\n" + WHOLE.replace("nn.Linear(2", "nn.Linear(WIDTH"), "project/job.py")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = in_process_of_its_own("scan", "../project/job.py", *CAPTURE_ONLY, cwd=elsewhere)
    assert result.code == 0, result.err
    assert path.parent.joinpath("reports").exists() is False
    assert saved(elsewhere / "reports/job.json")["target"]["parameters"] == 3


@pytest.mark.slow
def test_the_loader_may_have_workers(write, tmp_path):
    loader = "def train_batches():\n    data = torch.utils.data.TensorDataset(torch.ones(16, 2))\n"
    loader += "    return torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)\n"
    text = HEAD + MODEL + loader + "def compute_loss(model, batch):\n    return model(batch[0]).pow(2).mean()\n"
    result = in_process_of_its_own("scan", write(text), *SMALL, "--steps", "9", cwd=tmp_path)
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert saved(tmp_path / "reports/job.json")["target"]["batches"] == 4
