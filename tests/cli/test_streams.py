"""What a target does to stdout and stderr costs nobody the summary or the progress."""

from __future__ import annotations

import gc
import io
import subprocess
import sys
from pathlib import Path

import pytest

from mpdiag.cli.stdout import streams_kept

SMALL = ("--device", "cpu", "--steps", "2", "--no-verify", "--plotly", "none")
TARGET = """
import io, os, sys
import torch
from torch import nn

def build_model():
    return nn.Linear(2, 1)

def train_batches():
    return [torch.full((4, 2), 1.0 + i) for i in range(3)]

def compute_loss(model, batch):
    return model(batch).pow(2).mean()

print("said by the target", flush=True)
{spoils}
"""
SPOILS = {
    "swapped": "sys.stdout = io.StringIO()\nsys.stderr = open(os.devnull, 'w')",
    "closed": "sys.stdout.close()\nsys.stderr.close()",
    "detached": "sys.stdout = io.TextIOWrapper(sys.stdout.detach())",
    "wrapped": "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoils", "place"),
    [*((spoils, "reports/job.json") for spoils in SPOILS), ("swapped", "-"), ("wrapped", "-")],
)
def test_the_summary_is_printed_whatever_the_target_did_to_its_streams(tmp_path: Path, spoils: str, place: str):
    (tmp_path / "job.py").write_text(TARGET.format(spoils=SPOILS[spoils]), "utf-8")
    shown = subprocess.run(
        [sys.executable, "-m", "mpdiag", "scan", "job.py", *SMALL, "--json", place],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert shown.returncode == 0, shown.stderr
    assert "VERDICT" in (shown.stderr if place == "-" else shown.stdout)
    assert ("said by the target" in shown.stderr) == (place == "-")
    assert shown.stdout.startswith("{" if place == "-" else "said by the target\nSCAN")
    if spoils != "closed":  # then nobody can be told anything while it lasts
        assert "capture 2 FP32 steps" in shown.stderr


def test_streams_that_were_replaced_are_those_from_before_again(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with streams_kept():
        sys.stdout = sys.stderr = io.StringIO()
    assert (sys.stdout, sys.stderr) == (out, err)


def test_a_wrapper_of_the_same_buffer_does_not_close_it_when_it_is_let_go(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", out)
    with streams_kept():
        sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8")
        sys.stdout.write("before ")
    gc.collect()
    sys.stdout.write("after")
    sys.stdout.flush()
    assert out.buffer.getvalue() == b"before after"
