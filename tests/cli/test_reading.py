"""What a command reads, and how its papers name it: no pipe that nobody fills, and the file to verify by its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import report_samples as samples
from cli_samples import CAPTURE_ONLY, WHOLE, finished, refused_at_once, started
from mpdiag.saved import to_json

TO_VERIFY = to_json(samples.full()).replace('"gpu": "NVIDIA H100 80GB HBM3"', '"gpu": null')


@pytest.mark.parametrize("command", ["report", "verify"])
def test_a_pipe_with_a_name_is_not_waited_for(tmp_path, command):
    os.mkfifo(tmp_path / "pipe.json")
    result = finished(started(command, "pipe.json", cwd=tmp_path), seconds=60)
    refused_at_once(result, "no-such-file")
    assert "pipe.json: is not a regular file" in result.error


@pytest.mark.skipif(not Path("/dev/stdin").exists(), reason="needs /dev/stdin")
def test_what_a_shell_hands_over_is_read(tmp_path):
    command = [sys.executable, "-m", "mpdiag", "report", "/dev/stdin", "--format", "json"]
    text = to_json(samples.minimal())
    shown = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, encoding="utf-8", timeout=60)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == text


def test_a_file_that_is_not_there_and_a_folder_are_said_to_be_what_they_are(cli, tmp_path):
    assert "No such file" in cli("report", "none.json").error
    assert "directory" in cli("report", tmp_path).error


@pytest.mark.parametrize("name", ["my runs/one.json", "a&b.json", "two_words_.json"])
def test_page_and_markdown_name_the_file_to_verify(cli, write, name):
    write(TO_VERIFY, name)
    shown = {
        "my runs/one.json": ("&#x27;my runs/one.json&#x27;", "'my runs/one.json'"),
        "a&b.json": ("&#x27;a&amp;b.json&#x27;", r"'a\&b.json'"),
        "two_words_.json": ("two_words_.json", r"two\_words\_.json"),
    }[name]
    assert f"mpdiag verify {shown[0]}" in cli("report", name, "--format", "html", "--plotly", "none").out
    assert f"mpdiag verify {shown[1]}" in cli("report", name, "--format", "md").out


def test_the_page_of_a_file_elsewhere_carries_no_path_of_this_machine(cli, write, tmp_path, monkeypatch):
    path = write(TO_VERIFY, "runs/one.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for kind in ("html", "md"):
        out = cli("report", path, "--format", kind).out
        assert "mpdiag verify one.json" in out
        assert str(tmp_path) not in out
    assert f"mpdiag verify {path}" in " ".join(cli("report", path).out.split())


def test_the_page_of_a_scan_names_its_json(cli, write, tmp_path):
    cli("scan", write(WHOLE), *CAPTURE_ONLY)
    page = (tmp_path / "reports/job.html").read_text("utf-8")
    assert "mpdiag verify reports/job.json" in page
    assert "RUN.json" not in page


def test_the_page_of_a_scan_whose_json_went_to_stdout_names_none(cli, write, tmp_path):
    cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "-")
    assert "mpdiag verify RUN.json" in (tmp_path / "reports/job.html").read_text("utf-8")


def test_the_help_of_scan_says_that_a_loss_is_needed(cli):
    told = " ".join(cli("scan", "--help").out.split())
    assert "It defines build_model(), train_batches() and compute_loss(model, batch)" in told
    assert "optionally build_optimizer(model) and evaluate(model)" in told
