"""Commands in a process of their own: how fast, what they import, pipes, full disks, terminals without Unicode."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_samples import ASCII, CAPTURE_ONLY, WHOLE, in_process_of_its_own


def test_help_is_fast_and_imports_no_torch(tmp_path):
    code = (
        "import sys, time; began = time.perf_counter(); sys.argv = ['mpdiag', *sys.argv[1:]]\n"
        "from mpdiag.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as e: pass\n"
        "print(time.perf_counter() - began, 'torch' in sys.modules, file=sys.stderr)"
    )
    times = []
    for arguments in (["--help"], ["scan", "--help"], ["--version"], ["--help"], ["explain"]):
        shown = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        seconds, torch_imported = shown.stderr.split()
        assert torch_imported == "False", arguments
        times.append(float(seconds))
    assert min(times) < 0.2


@pytest.mark.parametrize("kind", ["text", "html", "json", "md", "csv"])
def test_report_imports_no_torch(run_json, kind, tmp_path):
    code = (
        "import sys\n"
        "from mpdiag.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, "report", str(run_json), "--format", kind, "--plotly", "none"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


def test_python_dash_m_is_the_same_command(tmp_path):
    result = in_process_of_its_own("--help", cwd=tmp_path)
    assert result.code == 0
    assert result.out.startswith("Usage: ")
    assert "__main__" not in result.out


def test_a_broken_pipe_is_no_error(run_json, tmp_path):
    command = f"{sys.executable} -m mpdiag report {run_json} --format html | head -1"
    shown = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert shown.stderr == ""
    assert shown.stdout.lower().startswith("<!doctype html>")
    assert shown.returncode in (0, 141)


def test_a_pipe_that_breaks_when_little_is_printed_is_no_error(run_json, tmp_path):
    command = f"{sys.executable} -m mpdiag report {run_json} --format csv | true; exit ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert shown.stderr == ""
    assert shown.returncode in (0, 141), "1 says that there are findings"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_an_error_line(run_json, tmp_path):
    command = f"{sys.executable} -m mpdiag report {run_json} --format csv > /dev/full"
    shown = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode in (2, 3)
    assert "Traceback" not in shown.stderr
    assert shown.stderr.startswith("error[")


@pytest.mark.parametrize("environment", ASCII)
@pytest.mark.parametrize("kind", ["text", "md", "csv", "html"])
def test_a_report_can_be_printed_where_only_ascii_can(run_json, tmp_path, environment, kind):
    arguments = ("report", run_json, "--format", kind, "--plotly", "none")
    process = subprocess.run(
        [sys.executable, "-m", "mpdiag", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert len(process.stdout) > 200


@pytest.mark.slow
@pytest.mark.parametrize("environment", ASCII[:2])
def test_a_scan_can_be_followed_where_only_ascii_can_be_printed(write, tmp_path, environment):
    path = write(WHOLE, "modèle.py")
    result = in_process_of_its_own("scan", path, *CAPTURE_ONLY, cwd=tmp_path, environment=environment)
    assert result.code == 0, result.err
    assert "Traceback" not in result.err
    assert len(list((tmp_path / "reports").iterdir())) == 2
