"""The second pass as a stage of a scan: it changes nothing in the observed run and can be asked for and stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.api import scan
from mpdiag.errors import InterruptedScanError, UsageError
from mpdiag.operations import NOT_OBSERVED
from op_samples import Body, job, one, seen

TARGETS = Path(__file__).parents[1] / "targets"


# beside the observed run


def test_the_pass_changes_nothing_in_the_observed_run():
    target = str(TARGETS / "attention.py")
    plain = scan(target, steps=2, verify=False).capture
    deep = scan(target, steps=2, verify=False, depth="ops").capture
    assert (deep.tables, deep.losses, deep.unchanged) == (plain.tables, plain.losses, True)
    assert (plain.operations, plain.operations_reason) == (None, NOT_OBSERVED)
    assert (len(deep.operations) > 10, deep.operations_reason) == (True, None)


def test_the_pass_is_a_stage_of_its_own_and_timed():
    lines: list[str] = []
    target = str(TARGETS / "tied.py")
    deep = scan(target, steps=1, verify=False, depth="ops", report=lines.append)
    assert "two iterations, FP16 and FP32, to see every operation between the modules" in lines
    assert deep.elapsed_seconds["operations"] > 0
    assert "operations" not in scan(target, steps=1, verify=False).elapsed_seconds


def test_ctrl_c_during_the_pass_keeps_the_capture_and_its_advice(monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpdiag.capture.op_scan.observe_operations", interrupted)
    with pytest.raises(InterruptedScanError) as stopped:
        scan(str(TARGETS / "tied.py"), steps=1, verify=False, depth="ops")
    seen = stopped.value.diagnosis
    assert seen is not None
    assert seen.advice is not None
    assert (seen.capture.operations, seen.capture.operations_reason) == (None, NOT_OBSERVED)


def test_an_unknown_depth_is_refused():
    with pytest.raises(UsageError, match="depth cannot be 'kernels'"):
        scan("x.py", depth="kernels")


def test_the_command_takes_the_depth_and_its_json_has_the_operations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mpdiag", "scan", str(TARGETS / "tied.py"), "--depth", "ops", "--steps", "1",
         "--no-verify", "--plotly", "none", "--html", str(tmp_path / "x.html"), "--json", "-"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["capture"]
    assert record["operations_reason"] is None
    keys = {"op", "module", "direction", "role", "dtype", "amp_dtype", "elements", "calls", "abs_max", "source"}
    assert all(keys <= set(table) for table in record["operations"])
    assert {t["direction"] for t in record["operations"]} == {"forward", "backward"}
    assert 'id="operations"' in (tmp_path / "x.html").read_text()
    assert "two iterations, FP16 and FP32, to see every operation between the modules" in done.stderr


def test_compiled_code_is_seen_as_it_was_written():
    def build() -> nn.Module:
        return Body(torch.compile(lambda h: torch.sin(h) * 2, backend="aot_eager"), 2)

    tables = seen(job(build, torch.ones(1, 2)))
    assert one(tables, op="sin").amp_dtype == "float16"
    assert one(tables, op="mul").module == "Body"
