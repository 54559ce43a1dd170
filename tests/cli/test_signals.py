"""Children that a target forks, and signals that come at any moment of a scan."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli_samples import CAPTURE_ONLY
from delivery_samples import SLOW, WHOLE, errors, names, scanned, written
from mpdiag.errors import InterruptedScanError
from mpdiag.saved import from_json

# processes


@pytest.mark.parametrize("child", ["sys.exit(7)", "raise ValueError('in the child')", "pass", "exit('words')"])
def test_a_forked_child_of_the_target_reports_nothing(tmp_path, child):
    fork = f"""
    pid = os.fork()
    if pid == 0:
        {child}
    else:
        open('code', 'w').write(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    """
    written(tmp_path, fork)
    shown = scanned(tmp_path, *CAPTURE_ONLY)
    assert (shown.returncode, errors(shown)) == (0, []), shown.stderr
    assert shown.stdout.count("VERDICT") == 1
    assert "in the child" not in shown.stderr
    code = {"sys.exit(7)": "7", "pass": "0"}.get(child, "1")
    assert (tmp_path / "code").read_text("utf-8") == code
    data = json.loads((tmp_path / "reports/job.json").read_text("utf-8"))
    assert "SystemExit" not in data["reason"]


def signalled(folder: Path, marker: str, *sent: signal.Signals, options: tuple[str, ...] = ()) -> Any:
    """A scan that gets signals, half a second apart, after it has said `marker`."""
    command = [sys.executable, "-m", "mpdiag", "scan", "job.py", "--device", "cpu", "--plotly", "none", *options]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", start_new_session=True
    )
    assert process.stderr is not None
    said = next((line for line in process.stderr if marker in line), None)
    assert said is not None
    for each in sent:
        time.sleep(0.6)
        process.send_signal(each)
    try:
        out, err = process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        pytest.fail("only kill -9 is left")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.slow
def test_a_ctrl_c_that_the_target_swallows_is_not_the_last(tmp_path):
    swallows = "try:\n    time.sleep(1000)\nexcept BaseException:\n    pass"
    written(tmp_path, swallows, text=SLOW)
    shown = signalled(tmp_path, "capture 500", signal.SIGINT, signal.SIGINT, options=("--steps", "500"))
    assert shown.returncode == 3, shown.stderr
    assert errors(shown)[0] == "error[interrupted]: stopped by Ctrl-C"
    assert from_json((tmp_path / "reports/job.json").read_text("utf-8")).capture is not None


@pytest.mark.slow
def test_sigterm_is_called_by_its_name(tmp_path):
    written(tmp_path, text=SLOW)
    shown = signalled(tmp_path, "capture 500", signal.SIGTERM, options=("--steps", "500"))
    assert errors(shown)[0] == "error[interrupted]: stopped by SIGTERM"
    assert "reports/job.json" in errors(shown)[1]
    assert "SIGTERM" in json.loads((tmp_path / "reports/job.json").read_text("utf-8"))["reason"]


@pytest.mark.slow
def test_a_ctrl_c_during_the_load_promises_no_json(tmp_path):
    written(tmp_path, text="import time\nprint('loading', flush=True)\ntime.sleep(1000)\n")
    shown = signalled(tmp_path, "load job.py", signal.SIGINT)
    assert shown.returncode == 3
    assert errors(shown)[0] == "error[interrupted]: stopped by Ctrl-C"
    assert ".json" not in errors(shown)[1].lower()
    assert "JSON" not in errors(shown)[1]
    assert names(tmp_path / "reports") == []


@pytest.mark.slow
@pytest.mark.parametrize("after_seconds", [0.0, 0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_delivery_changes_no_exit_code(tmp_path, sent, after_seconds):
    written(tmp_path)
    command = [sys.executable, "-m", "mpdiag", "scan", "job.py", *CAPTURE_ONLY]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, encoding="utf-8")
    assert process.stdout is not None
    assert any("reports/job.json" in line for line in process.stdout)
    time.sleep(after_seconds)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "error[" not in err


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["threading.Thread(target=hang).start()", "atexit.register(hang)"])
def test_what_of_the_target_never_ends_can_still_be_stopped(tmp_path, blocks):
    written(tmp_path, text=f"{WHOLE}\nimport atexit, threading\ndef hang(): time.sleep(1000)\n{blocks}\n")
    command = [sys.executable, "-m", "mpdiag", "scan", "job.py", *CAPTURE_ONLY]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, encoding="utf-8")
    assert process.stdout is not None
    assert any("reports/job.json" in line for line in process.stdout)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    try:
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


STOPPED_IN_AN_IMPORT = """
import os, signal, sys

class Stop:
    done = False
    def find_spec(self, name, path=None, target=None):
        if name == {module!r} and not self.done:
            self.done = True
            os.kill(os.getpid(), signal.{sent})

sys.meta_path.insert(0, Stop())
sys.argv = ["mpdiag", "scan", "job.py", *{options!r}]
from mpdiag.cli.main import process
process()
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["numpy.linalg", "torch.nn"])
def test_a_signal_that_comes_in_an_import_of_torch_or_numpy_stops_the_scan_after_it(tmp_path, sent, module):
    written(tmp_path)
    script = STOPPED_IN_AN_IMPORT.format(module=module, sent=sent, options=CAPTURE_ONLY)
    shown = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120
    )
    assert errors(shown)[0] == f"error[interrupted]: stopped by {'Ctrl-C' if sent == 'SIGINT' else sent}"
    assert shown.returncode == 3
    assert "Traceback" not in shown.stderr
    assert "REPORT" not in shown.stdout


def test_an_interruption_says_what_it_was():
    assert InterruptedScanError().message == "stopped by Ctrl-C"
    assert InterruptedScanError("SIGTERM").message == "stopped by SIGTERM"
