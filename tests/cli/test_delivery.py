"""What a scan leaves behind where its disk or its stdout fail it, or a renderer does."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest
import torch

import report_samples as samples
from cli_samples import CAPTURE_ONLY, SMALL
from delivery_samples import PLANNED, WHOLE, errors, names, ran, scanned, written
from mpdiag.cli.main import main
from mpdiag.drift import observed_parts
from mpdiag.errors import UsageError
from mpdiag.report import html, terminal
from mpdiag.saved import from_json, to_json

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


OURS: dict[str, Any] = {}
exec(
    compile("def broken(*_, **__):\n    raise ZeroDivisionError('a fault of ours')\n", terminal.__file__, "exec"), OURS
)
broken = OURS["broken"]  # a frame of ours raises: what raises in the user's file is theirs


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
