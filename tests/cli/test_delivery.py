"""What a scan leaves behind where its process, its disk or its stdout fail it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import prediction_samples
import report_samples as samples
from mpdiag.cli.main import main
from mpdiag.drift import observed_parts
from mpdiag.errors import InterruptedScanError, UsageError
from mpdiag.report import html, markdown, terminal
from mpdiag.saved import from_json, to_json

SMALL = ("--device", "cpu", "--steps", "2", "--verify-steps", "2", "--seeds", "1", "--plotly", "none")
CAPTURE_ONLY = (*SMALL, "--no-verify")
WHOLE = """
import os, shutil, sys, time
import torch
from torch import nn

CALLS = [0]

def build_model():
    return nn.Linear(2, 1)

def train_batches():
    return [torch.full((4, 2), 1.0 + i) for i in range(3)]

def at_capture():
    pass

def compute_loss(model, batch):
    CALLS[0] += 1
    if CALLS[0] == 9:  # 1 to 6 are the self-test's, 7 is the FP16 iteration's
        at_capture()
    return model(batch).pow(2).mean()
"""
SLOW = WHOLE.replace("    if CALLS[0] == 9", "    if CALLS[0] > 9:\n        time.sleep(0.1)\n    if CALLS[0] == 9")
# its second layer overflows in FP16, so that the search finds an island and there is a plan
PLANNED = WHOLE.replace("nn.Linear(2, 1)", "nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1))")
PLANNED = PLANNED.replace("    return model(batch)", "    return 1e-6 * model(batch)").replace(
    "return nn.Seq", "m = nn.Seq"
)
PLANNED = PLANNED.replace(
    "nn.Linear(4, 1))", "nn.Linear(4, 1))\n    with torch.no_grad():\n        m[1].weight.fill_(3e5)\n    return m", 1
)


def written(folder: Path, at_capture: str = "pass", text: str = WHOLE) -> Path:
    """A target in `folder` whose second observed step does something."""
    path = folder / "job.py"
    body = textwrap.indent(textwrap.dedent(at_capture).strip(), "    ")
    path.write_text(text.replace("def at_capture():\n    pass", f"def at_capture():\n{body}"), "utf-8")
    return path


def scanned(folder: Path, *options: str, shell: str = "", environment: dict[str, str] | None = None) -> Any:
    """`mpdiag scan job.py` in a process of its own; `shell` follows the command, such as a redirection."""
    return ran(folder, "scan", "job.py", *options, shell=shell, environment=environment)


def ran(folder: Path, *words: str, shell: str = "", environment: dict[str, str] | None = None) -> Any:
    command = f'"$@" {shell}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "mpdiag", *words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def errors(shown: Any) -> list[str]:
    return [line for line in shown.stderr.splitlines() if line.startswith(("error[", "hint:"))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# stdout


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    written(folder, text=PLANNED)
    shown = scanned(folder, *CAPTURE_ONLY)
    assert names(folder / "reports") == ["job.html", "job.json", "job.plan.json"], shown.stdout + shown.stderr
    return folder, shown.returncode


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["| true", "> /dev/full", ">&-", ">&- 2>&-", "2>&1 | true"])
def test_every_file_is_written_whatever_becomes_of_stdout(planned, tmp_path, shell):
    written(tmp_path, text=PLANNED)
    shown = scanned(tmp_path, *CAPTURE_ONLY, shell=shell)
    assert names(tmp_path / "reports") == ["job.html", "job.json", "job.plan.json"]
    assert "Traceback" not in shown.stderr
    assert "Exception ignored" not in shown.stderr
    if "full" in shell:
        assert shown.returncode == 3
        assert errors(shown)[0].startswith("error[output-not-writable]: stdout: ")
        assert "reports/job.json" in errors(shown)[1]
    else:
        assert shown.returncode == planned[1], "the verdict's code"
        assert errors(shown) == []


@pytest.mark.parametrize("shell", [">&-", "| true"])
def test_report_to_a_closed_stdout_is_no_crash(tmp_path, shell):
    (tmp_path / "run.json").write_text(to_json(samples.minimal()), "utf-8")
    shown = ran(tmp_path, "report", "run.json", shell=shell)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_what_the_target_prints_past_python_lands_in_no_file_of_ours(tmp_path):
    written(tmp_path, "os.write(1, b'astray')")
    shown = scanned(tmp_path, *CAPTURE_ONLY, shell=">&-")
    assert shown.returncode == 0, shown.stderr
    assert all("astray" not in path.read_text("utf-8") for path in (tmp_path / "reports").iterdir())


# a disk that fails


FULL = """
import resource, signal
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
"""


def test_a_folder_that_was_deleted_meanwhile_is_made_again(tmp_path):
    written(tmp_path, "shutil.rmtree('reports')")
    shown = scanned(tmp_path, *CAPTURE_ONLY)
    assert (shown.returncode, errors(shown)) == (0, [])
    assert names(tmp_path / "reports") == ["job.html", "job.json"]


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path):
    from mpdiag.cli.files import writable, write

    longest = os.pathconf(tmp_path, "PC_NAME_MAX")
    path = writable(tmp_path / ("x" * (longest - len(".json")) + ".json"), asked=False)
    assert write(path, "{}").read_text("utf-8") == "{}"
    assert names(tmp_path) == [path.name]
    with pytest.raises(UsageError) as caught:
        writable(tmp_path / ("x" * longest + ".json"), asked=False)
    assert caught.value.slug == "output-not-writable"


@pytest.mark.parametrize("failing", [FULL, "shutil.rmtree('reports'); open('reports', 'w').close()"])
def test_what_cannot_be_written_is_still_printed(tmp_path, failing):
    written(tmp_path, failing)
    shown = scanned(tmp_path, *CAPTURE_ONLY)
    assert shown.returncode == 3, shown.stderr
    assert "VERDICT" in shown.stdout
    assert "observed 2 FP32" in shown.stdout
    assert [line.partition(":")[0] for line in errors(shown)] == ["error[output-not-writable]", "hint"]
    assert "Traceback" not in shown.stderr
    assert "reports/job.json" not in shown.stdout, "a path that is not there"


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(tmp_path):
    at_capture = "shutil.rmtree('reports'); open('reports', 'w').close()"
    text = WHOLE.replace(
        "    return model(batch)", "    if CALLS[0] == 12:\n        os.remove('reports')\n    return model(batch)"
    )
    written(tmp_path, at_capture, text)
    shown = scanned(tmp_path, *SMALL, "--fail-on", "never")
    assert (shown.returncode, errors(shown)) == (0, []), shown.stderr
    assert [line for line in shown.stderr.splitlines() if line.startswith("warning: ")], "it was not said"
    assert shown.stderr.count("the scan goes on") == 1
    assert from_json((tmp_path / "reports/job.json").read_text("utf-8")).verification is not None


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


# in this process


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Runs a command here: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("MPDIAG_DEBUG", raising=False)

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mpdiag", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return command


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_verify_does_not_write_over_the_checkpoint_of_the_run(cli, tmp_path, option):
    path = written(tmp_path)
    torch.save({"weight": torch.ones(1, 2), "bias": torch.ones(1)}, tmp_path / "half.pt")
    before = (tmp_path / "half.pt").read_bytes()
    code, _, err = cli("scan", path, *CAPTURE_ONLY, "--start-from", "half.pt")
    assert code == 0, err
    code, _, err = cli("verify", "reports/job.json", *SMALL_VERIFY, option, "half.pt")
    assert (tmp_path / "half.pt").read_bytes() == before
    assert code == 2
    assert err.startswith("error[output-clash]: ")
    assert "half.pt" in err


SMALL_VERIFY = ("--device", "cpu", "--verify-steps", "2", "--seeds", "1", "--plotly", "none")


def test_verify_writes_its_page_over_no_run_that_it_read(cli, tmp_path):
    cli("scan", written(tmp_path), *CAPTURE_ONLY)
    before = (tmp_path / "reports/job.json").read_bytes()
    for place in ("other.json", "-"):
        code, _, _ = cli("verify", "reports/job.json", *SMALL_VERIFY, "--json", place, "--html", "reports/job.json")
        assert code == 2
        assert (tmp_path / "reports/job.json").read_bytes() == before


def test_verify_prints_the_json_alone_on_stdout(cli, tmp_path):
    cli("scan", written(tmp_path), *CAPTURE_ONLY)
    before = (tmp_path / "reports/job.json").read_bytes()
    code, out, err = cli("verify", "reports/job.json", *SMALL_VERIFY, "--json", "-", "--fail-on", "never")
    assert code == 0, err
    assert from_json(out).verification is not None
    assert "VERDICT" in err
    assert (tmp_path / "reports/job.json").read_bytes() == before
    assert not [name for name in names(tmp_path) if name.startswith("-")]


def test_progress_says_how_long_it_has_taken(cli, tmp_path):
    _, _, err = cli("scan", written(tmp_path), *CAPTURE_ONLY)
    first = err.splitlines()[0]
    assert first.startswith("· 0 s  load "), first


@pytest.mark.parametrize(
    "option",
    [
        ("--memory-limit", "nan"),
        ("--memory-limit", "inf"),
        ("--memory-limit", "1e300"),
        ("--steps", 10**12),
        ("--skip", 10**10),
        ("--at", "0,99999999999"),
        ("--verify-steps", 10**12),
        ("--seeds", 10**12),
        ("--steps", 10**6, "--skip", 10**6),
    ],
)
def test_a_number_that_nobody_means_is_refused_at_once(cli, tmp_path, option):
    code, out, err = cli("scan", written(tmp_path, text="raise SystemError"), *option)
    assert (code, out) == (2, "")
    assert err.startswith(("error[usage]: ", "error[bad-option]: "))
    assert option[0] in err


def test_ten_million_steps_are_no_list_of_ten_million():
    parts = observed_parts(10_000_000, (0, 5), 3)
    assert [(part[0], part[-1], len(part)) for part in parts] == [
        (0, 39_999_996, 10_000_000),
        (5, 40_000_001, 10_000_000),
    ]
    assert all(isinstance(part, range) for part in parts)


def broken(*_: object, **__: object) -> str:
    raise ZeroDivisionError("a fault of ours")


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_of_a_renderer_is_an_error_line(cli, tmp_path, monkeypatch, debug):
    monkeypatch.setattr(terminal, "render", broken)
    (tmp_path / "run.json").write_text(to_json(samples.minimal()), "utf-8")
    if debug:
        monkeypatch.setenv("MPDIAG_DEBUG", "1")
        monkeypatch.setattr(sys, "argv", ["mpdiag", "report", "run.json"])
        with pytest.raises(ZeroDivisionError):
            main()
        return
    code, out, err = cli("report", "run.json")
    assert (code, out) == (3, "")
    first, second = err.splitlines()
    assert first == "error[internal]: ZeroDivisionError in mpdiag: a fault of ours"
    assert second.startswith("hint: ")
    assert "MPDIAG_DEBUG=1" in second


def test_a_page_that_cannot_be_drawn_costs_neither_the_json_nor_the_summary(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "render", broken)
    code, out, err = cli("scan", written(tmp_path), *CAPTURE_ONLY)
    assert code == 3
    assert "VERDICT" in out
    assert names(tmp_path / "reports") == ["job.json"]
    assert err.count("error[internal]") == 1
    assert "reports/job.json" in err.splitlines()[-1]


# files that were tampered with


def test_a_scan_killed_before_its_verification_is_not_said_to_have_done_without():
    killed = dataclasses.replace(samples.full(), verification=None, reason=None)
    shown = " ".join(terminal.render(killed, width=200).split())
    assert "not verified: the scan was stopped before the verification" in shown
    assert "mixed precision was not run" not in shown
    assert "the scan was stopped before the verification" in html.render(killed, plotly="none")
    assert "mixed precision was not run" not in markdown.render(killed)


def tampered(value: object, *path: str | int) -> str:
    """The sample's JSON with another value at a place in it."""
    made = samples.full()
    run = dataclasses.replace(made.verification, prediction=prediction_samples.FOUND)
    record = json.loads(to_json(dataclasses.replace(made, verification=run)))
    inner = record
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return json.dumps(record)


SCALE = ("advice", "loss_scale")
FORECAST = ("verification", "prediction")


@pytest.mark.parametrize("value", [10**30, -(10**30), 2001])
@pytest.mark.parametrize(
    "path",
    [
        (*SCALE, "curve", 0, "log2_scale"),
        (*SCALE, "log2_scale"),
        (*SCALE, "lower_log2"),
        (*FORECAST, "tensors", 0, "log2_scale"),
        ("capture", "tables", 0, "histogram", "lowest"),
        ("capture", "tables", 0, "noise_floor_log2"),
        ("verification", "trials", 0, "final_log2_scale"),
    ],
)
def test_an_exponent_that_no_number_has_is_refused(path, value):
    with pytest.raises(UsageError) as refused:
        from_json(tampered(value, *path))
    assert refused.value.slug == "not-a-diagnosis"
    assert str(path[-1]) in refused.value.message


@pytest.mark.parametrize("value", [153, -153])
def test_a_scale_that_fp32_cannot_hold_is_refused(value):
    with pytest.raises(UsageError):
        from_json(tampered(value, *SCALE, "log2_scale"))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (152, (*SCALE, "log2_scale")),
        (-152, (*SCALE, "log2_scale")),
        (2000, (*SCALE, "upper_log2")),
        (152, (*SCALE, "curve", 0, "log2_scale")),
        (2000, ("capture", "tables", 0, "histogram", "lowest")),
        ("NaN", (*SCALE, "curve", 0, "underflow")),
        ("Infinity", (*SCALE, "curve", 0, "overflow")),
        ("NaN", (*SCALE, "underflow_before")),
        ("NaN", (*FORECAST, "tensors", 0, "predicted_underflow")),
        ("Infinity", (*FORECAST, "tensors", 0, "observed_underflow")),
        (None, (*FORECAST, "p95_error_points")),
        (None, (*FORECAST, "alone_median_error_points")),
        ("NaN", (*FORECAST, "median_error_points")),
        ("NaN", ("elapsed_seconds", "verify")),
        ("Infinity", ("elapsed_seconds", "verify")),
    ],
)
def test_what_still_loads_can_be_drawn(value, path):
    loaded = from_json(tampered(value, *path))
    for drawn in (html.render(loaded), terminal.render(loaded), markdown.render(loaded), to_json(loaded)):
        assert drawn
