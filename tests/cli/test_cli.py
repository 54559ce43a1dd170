"""The command line as its users meet it: exit codes, the one-line errors, what lands where, what survives a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import mpdiag
from mpdiag.cli.main import main
from mpdiag.errors import MpdiagError
from mpdiag.saved import from_json

OURS = str(Path(main.__code__.co_filename).parents[1])
SMALL = ("--device", "cpu", "--steps", "2", "--verify-steps", "2", "--seeds", "1", "--plotly", "none")
CAPTURE_ONLY = (*SMALL, "--no-verify")

HEAD = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
MODEL = "def build_model():\n    return nn.Linear(2, 1)\n"
BATCHES = "def train_batches():\n    return [torch.full((4, 2), 1.0 + i) for i in range(3)]\n"
LOSS = "def compute_loss(model, batch):\n    return model(batch).pow(2).mean()\n"
WHOLE = HEAD + MODEL + BATCHES + LOSS
BOOM = "raise ValueError('the users own mistake')\n"
# every call of the loss, over all runs: 1 to 6 are the self-test's, 7 is the FP16 iteration's, 8 and 9 the capture's
COUNTED = HEAD + MODEL + BATCHES + "CALLS = [0]\n"
WARNS = (
    HEAD
    + MODEL
    + BATCHES
    + "def compute_loss(model, batch):\n    return (model(batch.clamp(-1, 1) * 255) * 1e-2).pow(2).mean()\n"
)
FAILS = WHOLE.replace("1.0 + i", "1e6 * (1 + i)")

Write = Callable[..., Path]


@dataclass(frozen=True)
class Result:
    """What one command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The line that says what is wrong."""
        return next((line for line in self.err.splitlines() if line.startswith("error[")), "")

    @property
    def slug(self) -> str:
        return self.error.removeprefix("error[").partition("]")[0]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file below the test's own folder and gives its path."""

    def writing(text: str, name: str = "job.py") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return writing


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs a command in this process from the test's own folder; imports and settings are put back."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPDIAG_DEBUG", raising=False)
    before = set(sys.modules)

    def command(*arguments: Any) -> Result:
        monkeypatch.setattr(sys, "argv", ["mpdiag", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return Result(int(ended.value.code or 0), shown.out, shown.err)

    yield command
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def started(*arguments: Any, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """A command in a process of its own, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mpdiag", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )


def finished(process: subprocess.Popen[str], seconds: float = 60) -> Result:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"still running after {seconds:.0f} s:\n{err[-2000:]}")
    return Result(process.returncode, out, err)


def in_process_of_its_own(*arguments: Any, cwd: Path, environment: dict[str, str] | None = None) -> Result:
    return finished(started(*arguments, cwd=cwd, environment=environment))


def refused(result: Result, slug: str, code: int) -> None:
    """One error line, one hint line, the right exit code, no frame of ours."""
    assert (result.slug, result.code) == (slug, code), result.err
    lines = [line for line in result.err.splitlines() if not line.startswith("· ")]
    assert [line.partition("[")[0].partition(":")[0] for line in lines[-2:]] == ["error", "hint"], result.err
    assert len(lines[-1]) > len("hint: "), "an empty hint"
    assert sum(line.startswith(("error[", "hint:")) for line in lines) == 2
    assert OURS not in result.err


def refused_at_once(result: Result, slug: str, code: int = 2) -> None:
    """As `refused`, and there is nothing on stderr but the two lines and the progress."""
    refused(result, slug, code)
    assert next(line for line in result.err.splitlines() if not line.startswith("· ")).startswith("error[")
    assert result.out == ""


def saved(path: Path) -> dict[str, Any]:
    """A JSON that other programs can read: strict, and one that mpdiag reads back."""

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = path.read_text(encoding="utf-8")
    from_json(text)
    loaded = json.loads(text, parse_constant=constant)
    assert isinstance(loaded, dict)
    return loaded


# the target cannot be had


@pytest.mark.parametrize("target", ["nowhere.py", "nowhere", "nowhere.py:build_model", "no.such.module:model", ""])
def test_a_target_that_is_not_there_is_refused(cli, target):
    refused_at_once(cli("scan", target, *SMALL), "target-not-found")


def test_a_folder_is_refused_and_said_to_be_one(cli, tmp_path):
    result = cli("scan", tmp_path, *SMALL)
    refused_at_once(result, "target-not-found")
    assert "is a folder" in result.error


def test_a_syntax_error_is_refused_with_its_file_and_line(cli, write):
    result = cli("scan", write("import torch\ndef build_model(:\n"), *SMALL)
    refused_at_once(result, "target-syntax")
    assert "job.py:2" in result.error


@pytest.mark.parametrize("text", ["", "x = 1\n", "# nothing\n", HEAD + BATCHES + LOSS])
def test_a_file_without_a_model_is_refused(cli, write, text):
    refused_at_once(cli("scan", write(text), *SMALL), "target-no-model")


def test_a_model_function_that_returns_something_else_is_refused(cli, write):
    text = WHOLE.replace("return nn.Linear(2, 1)", "return {'weights': 1}")
    result = cli("scan", write(text), *SMALL)
    refused(result, "target-no-model", 2)
    assert "dict" in result.error


def test_a_file_without_batches_is_refused(cli, write):
    refused_at_once(cli("scan", write(HEAD + MODEL + LOSS), *SMALL), "target-no-batches")


@pytest.mark.parametrize(
    "batches",
    [
        "def train_batches():\n    return []\n",
        "def train_batches():\n    return\n    yield\n",
        "_used = iter([torch.ones(4, 2)])\nlist(_used)\ntrain_batches = _used\n",
        "def train_batches():\n    return torch.utils.data.DataLoader([], batch_size=4)\n",
    ],
)
def test_batches_that_are_empty_are_refused(cli, write, batches):
    refused(cli("scan", write(HEAD + MODEL + batches + LOSS), *SMALL), "target-empty-batches", 2)


@pytest.mark.parametrize("returned", ["None", "3", "{'x': torch.ones(4, 2)}"])
def test_batches_that_are_none_are_refused(cli, write, returned):
    text = HEAD + MODEL + f"def train_batches():\n    return {returned}\n" + LOSS
    refused(cli("scan", write(text), *SMALL), "target-no-batches", 2)


def test_an_attribute_that_is_not_there_is_named(cli, write):
    result = cli("scan", f"{write(WHOLE)}:tiny", *SMALL)
    refused_at_once(result, "target-no-model")
    assert "tiny" in result.error


# the loss is none


@pytest.mark.parametrize(
    ("returned", "slug"),
    [
        ("model(batch)", "loss-not-scalar"),
        ("model(batch).pow(2).mean().item()", "loss-not-a-tensor"),
        ("None", "loss-not-a-tensor"),
        ("[model(batch).mean()]", "loss-not-a-tensor"),
        ("model(batch).pow(2).mean().detach()", "loss-no-grad"),
        ("torch.tensor(1.0)", "loss-no-grad"),
    ],
)
def test_a_loss_that_is_none_is_refused(cli, write, returned, slug):
    text = HEAD + MODEL + BATCHES + f"def compute_loss(model, batch):\n    return {returned}\n"
    refused(cli("scan", write(text), *SMALL), slug, 2)


def test_a_scan_that_saw_nothing_leaves_an_earlier_result_as_it_was(cli, write, tmp_path):
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()}
    result = cli("scan", write(WHOLE.replace("return model(batch).pow(2).mean()", "return {}")), *CAPTURE_ONLY)
    refused(result, "loss-not-a-tensor", 2)
    assert result.out == ""
    assert {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()} == before


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_summary_names_the_file_to_verify(cli, write, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))  # at some widths the command stands on two lines
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "my runs/one.json")
    assert "mpdiag verify 'my runs/one.json'" in " ".join(result.out.split())
    assert "mpdiag verify 'my runs/one.json'" in " ".join(cli("report", "my runs/one.json").out.split())


def test_a_loss_that_is_nan_at_the_first_step_ends_the_scan_and_keeps_what_was_seen(cli, write, tmp_path):
    result = cli("scan", write(WHOLE.replace(".mean()", ".mean() * float('nan')")), *SMALL)
    refused(result, "loss-not-finite", 3)
    assert "step 0" in result.error
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"].startswith("loss-not-finite")
    assert data["capture"]["steps"] == 1
    assert data["capture"]["losses"] == ["NaN"]
    assert data["verification"] is None
    assert (tmp_path / "reports/job.html").is_file()


@pytest.mark.parametrize("inputs", ["batch + torch.ones(4, 2, device='meta')", "batch.to('meta')"])
def test_a_tensor_on_another_device_has_a_slug_of_its_own(cli, write, inputs):
    text = WHOLE.replace("model(batch)", f"model({inputs})")
    result = cli("scan", write(text), *SMALL)
    refused(result, "wrong-device", 3)
    assert "in compute_loss" in result.err


def test_a_model_that_autocast_cannot_run_is_still_observed_in_fp32(cli, write, tmp_path):
    text = HEAD + MODEL + BATCHES + "def compute_loss(model, batch):\n    x = model(batch)\n"
    text += "    assert x.dtype is torch.float32, 'only in FP32'\n    return x.pow(2).mean()\n"
    result = cli("scan", write(text), *SMALL, "--fail-on", "never")
    assert result.code == 0, result.err
    data = saved(tmp_path / "reports/job.json")
    line = 1 + next(i for i, code in enumerate(text.splitlines()) if "assert" in code)
    assert data["capture"]["amp_error"].endswith(f"only in FP32, at job.py:{line}")
    (found,) = [f for f in data["advice"]["findings"] if f["code"] == "MP304"]
    assert found["source"] == f"job.py:{line}"
    assert data["capture"]["steps"] == 2


# the user's code raises


RAISING = {
    "importing": HEAD + BOOM,
    "building the model": HEAD + "def build_model():\n    " + BOOM + BATCHES + LOSS,
    "drawing batches": HEAD + MODEL + "def train_batches():\n    yield torch.ones(4, 2)\n    " + BOOM + LOSS,
    "building the optimizer": WHOLE + "def build_optimizer(model):\n    " + BOOM,
    "computing the loss": COUNTED
    + "def compute_loss(model, batch):\n    CALLS[0] += 1\n    if CALLS[0] == 10:\n        "
    + BOOM
    + "    return model(batch).pow(2).mean()\n",
    "running backward": COUNTED
    + """class Bad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        CALLS[0] += 1
        if CALLS[0] == 10:
            raise ValueError('the users own mistake')
        return grad

def compute_loss(model, batch):
    return Bad.apply(model(batch)).pow(2).mean()
""",
    "stepping the optimizer": COUNTED
    + LOSS
    + """class Bad(torch.optim.SGD):
    def step(self, closure=None):
        CALLS[0] += 1
        if CALLS[0] == 10:
            raise ValueError('the users own mistake')
        return super().step(closure)

def build_optimizer(model):
    return Bad(model.parameters(), lr=0.1)
""",
}


@pytest.mark.parametrize("doing", RAISING)
def test_what_the_users_code_raises_is_shown_without_our_frames(cli, write, doing):
    result = cli("scan", write(RAISING[doing]), *CAPTURE_ONLY)
    refused(result, "user-code", 3)
    assert "Traceback (most recent call last):" in result.err
    assert "ValueError: the users own mistake" in result.err
    assert doing in result.error
    assert "job.py" in result.err.partition("error[")[0], "the user's own line is missing"


@pytest.mark.parametrize("doing", ["computing the loss", "running backward", "stepping the optimizer"])
def test_what_was_seen_before_the_users_code_raised_is_kept(cli, write, tmp_path, doing):
    result = cli("scan", write(RAISING[doing]), *CAPTURE_ONLY)
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"].startswith("user-code: ValueError")
    assert data["capture"]["steps"] == 1
    assert {table["steps"] for table in data["capture"]["tables"]} == {1}
    assert data["advice"] is not None
    assert (tmp_path / "reports/job.html").is_file()
    assert "reports/job.json" in result.out


RAISING_METRICS = ["raise ValueError('the users own mistake')", "return 'high'", "return None", "return {'a': 'high'}"]


@pytest.mark.parametrize("body", RAISING_METRICS)
def test_a_metric_that_fails_in_every_run_is_the_users_error_and_no_verdict(cli, write, tmp_path, body):
    result = cli("scan", write(WHOLE + f"def evaluate(model):\n    {body}\n"), *SMALL)
    assert OURS not in result.err, result.err
    assert result.code in (2, 3), result.err
    data = saved(tmp_path / "reports/job.json")
    assert (data["verification"] or {}).get("verdict") in (None, "inconclusive")
    assert (tmp_path / "reports/job.html").is_file()
    assert result.slug in ("user-code", "metric-not-a-number")


def test_a_metric_that_is_nan_is_said_to_be_one(cli, write, tmp_path):
    result = cli("scan", write(WHOLE + "def evaluate(model):\n    return float('nan')\n"), *SMALL)
    assert result.code == 3, result.err
    data = saved(tmp_path / "reports/job.json")
    assert data["verification"]["trials"][0]["metric"] == {"metric": "NaN"}
    assert data["verification"]["verdict"] == "inconclusive"


@pytest.mark.parametrize("place", ["import", "loss"])
def test_a_target_that_exits_is_the_users_error_not_a_success(cli, write, place):
    text = HEAD + "import sys\nsys.exit(0)\n" if place == "import" else WHOLE.replace("return model", "exit(0)\n    #")
    result = cli("scan", write(text), *SMALL)
    refused(result, "user-code", 3)
    assert "SystemExit" in result.error


def test_an_exception_with_many_lines_gives_one_error_line(cli, write):
    result = cli("scan", write(HEAD + "raise RuntimeError('one\\ntwo\\nthree')\n"), *SMALL)
    refused(result, "user-code", 3)
    assert "three" in result.err
    assert "three" not in result.error


def test_an_exception_without_a_message_is_still_an_error_line(cli, write):
    result = cli("scan", write(HEAD + "raise AssertionError\n"), *SMALL)
    refused(result, "user-code", 3)
    assert "AssertionError" in result.error


def test_an_exception_whose_str_raises_is_still_an_error_line(cli, write):
    text = HEAD + "class Bad(Exception):\n    def __str__(self):\n        raise KeyError('no')\nraise Bad()\n"
    refused(cli("scan", write(text), *SMALL), "user-code", 3)


def test_a_base_exception_of_the_users_keeps_what_was_seen(cli, write, tmp_path):
    text = RAISING["computing the loss"].replace("ValueError", "Stop")
    text = text.replace("CALLS = [0]\n", "CALLS = [0]\nclass Stop(BaseException):\n    pass\n")
    result = cli("scan", write(text), *CAPTURE_ONLY)
    refused(result, "user-code", 3)
    assert saved(tmp_path / "reports/job.json")["capture"]["steps"] == 1


@pytest.mark.parametrize("model", ["nn.ReLU()", "nn.Identity()"])
def test_a_model_without_parameters_is_refused_in_one_line(cli, write, model):
    result = cli("scan", write(WHOLE.replace("nn.Linear(2, 1)", model)), *SMALL)
    assert OURS not in result.err, result.err
    assert result.code in (2, 3)
    assert result.slug


def test_an_optimizer_without_a_learning_rate_is_taken(cli, write):
    text = """class Sign(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data -= 0.01 * p.grad.sign()

def build_optimizer(model):
    return Sign(model.parameters())
"""
    result = cli("scan", write(WHOLE + text), *CAPTURE_ONLY)
    assert result.code == 0, result.err
    assert "Sign" in result.out


def test_debug_shows_our_frames_too(cli, write, tmp_path):
    path = write(HEAD + BOOM)
    shown = in_process_of_its_own("scan", path, *SMALL, cwd=tmp_path, environment={"MPDIAG_DEBUG": "1"})
    assert OURS in shown.err
    assert "ValueError: the users own mistake" in shown.err
    assert shown.code in (1, 3)


# scripts are not imported


SCRIPT = """
from pathlib import Path
Path(__file__).with_name('side-effect').write_text('imported')
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    loss = model(torch.ones(4, 2)).mean()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    "text",
    [SCRIPT, SCRIPT.replace("model", "net"), SCRIPT.replace("for _", "if __name__ == '__main__':\n  for _")],
)
def test_a_training_script_is_refused_before_it_is_imported(cli, write, tmp_path, text):
    if "__main__" in text:
        text = text.replace("\n    loss", "\n      loss").replace("\n    optimizer.step", "\n      optimizer.step")
    result = cli("scan", write(text, "train.py"), *SMALL)
    refused_at_once(result, "target-is-a-script")
    assert not (tmp_path / "side-effect").exists()


def test_a_script_named_with_an_attribute_it_has_is_the_users_own_choice(cli, write, tmp_path):
    cli("scan", f"{write(SCRIPT, 'train.py')}:model", *SMALL)
    assert (tmp_path / "side-effect").exists()


# options


@pytest.mark.parametrize(
    "option",
    [
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--steps", "many"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--verify-steps", "0"),
        ("--seeds", "0"),
        ("--time-budget", "0"),
        ("--time-budget", "-5"),
        ("--time-budget", "nan"),
        ("--time-budget", "inf"),
        ("--device", "tpu"),
        ("--fail-on", "info"),
        ("--plotly", "cdn"),
        ("--steps",),
        ("surplus",),
    ],
)
def test_a_bad_value_is_refused_in_one_line(cli, write, option):
    result = cli("scan", write(WHOLE), *option)
    refused_at_once(result, "usage")
    assert " --help" in result.err


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1, 2**64 - 1])
def test_a_large_seed_is_a_seed(cli, write, tmp_path, seed):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--seed", seed)
    assert result.code == 0, result.err
    assert saved(tmp_path / "reports/job.json")["capture"]["seed"] == seed


@pytest.mark.parametrize("seed", [2**64, 10**30])
def test_a_seed_that_torch_cannot_take_is_refused(cli, write, seed):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--seed", seed)
    assert OURS not in result.err, result.err
    assert result.code == 2
    assert "seed" in result.error


def test_an_unknown_option_gets_the_one_meant(cli, write):
    result = cli("scan", write(WHOLE), "--step", "3")
    refused_at_once(result, "usage")
    assert "--steps" in result.err


@pytest.mark.parametrize(("typed", "meant"), [("scna", "scan"), ("reprot", "report"), ("explian", "explain")])
def test_an_unknown_command_gets_the_one_meant(cli, typed, meant):
    result = cli(typed, "model.py")
    refused_at_once(result, "usage")
    assert f"did you mean `mpdiag {meant}`?" in result.err


def test_an_unknown_command_that_resembles_none_gets_the_help(cli):
    result = cli("xyzzy")
    refused_at_once(result, "usage")
    assert "mpdiag --help" in result.err


def test_scan_without_a_target_is_a_usage_error(cli):
    refused_at_once(cli("scan"), "usage")


def test_no_command_at_all_shows_the_help(cli):
    result = cli()
    assert result.code in (0, 2)
    assert any(line.strip().startswith("scan ") for line in (result.out + result.err).splitlines())
    assert "error[usage]: Usage:" not in result.err, "the whole help, squeezed into an error line"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused_with_the_way_out(cli, write):
    result = cli("scan", write(WHOLE), *SMALL, "--device", "cuda")
    refused_at_once(result, "no-cuda")
    assert "--device cpu" in result.err


def test_the_version_is_one_line_on_stdout(cli):
    result = cli("--version")
    assert re.fullmatch(r"mpdiag, version \d+\.\d+\.\d+\n", result.out)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["scan", "--help"], ["report", "-h"], ["explain", "--help"]])
def test_help_is_on_stdout(cli, arguments):
    result = cli(*arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: ")


def test_only_commands_that_are_built_are_in_the_help(cli):
    listed = re.findall(r"^  ([a-z]+) ", cli("--help").out.partition("Commands:")[2], re.MULTILINE)
    for name in listed:
        assert cli(name, "--help").code == 0
    assert {"scan", "report", "explain"} <= set(listed)


# what a scan leaves behind


def test_a_scan_writes_both_files_and_prints_both_paths(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *SMALL, "--fail-on", "never")
    assert result.code == 0, result.err
    assert "reports/job.html" in result.out
    assert "reports/job.json" in result.out
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"] is None
    assert data["capture"]["steps"] == 2
    assert data["verification"]["verdict"] in ("go", "go-with-changes", "no-go", "inconclusive")
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["job.html", "job.json"]
    assert (tmp_path / "reports/job.html").read_text("utf-8").lower().startswith("<!doctype html>")


def test_progress_is_on_stderr_and_the_summary_on_stdout(cli, write):
    result = cli("scan", write(WHOLE), *SMALL)
    assert "VERDICT" in result.out
    assert result.out.startswith("SCAN")
    assert all(line.startswith("· ") for line in result.err.splitlines())


def test_stdout_that_is_no_terminal_has_no_colour(cli, write):
    assert "\x1b" not in cli("scan", write(WHOLE), *SMALL).out


def test_json_on_stdout_is_alone(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *SMALL, "--json", "-")
    data = json.loads(result.out)
    assert data["schema_version"] == 1
    assert from_json(result.out).target is not None
    assert "VERDICT" in result.err
    assert not (tmp_path / "reports/job.json").exists()


def test_json_on_stdout_is_alone_though_the_capture_failed(cli, write):
    result = cli("scan", write(RAISING["computing the loss"]), *CAPTURE_ONLY, "--json", "-")
    refused(result, "user-code", 3)
    assert json.loads(result.out)["capture"]["steps"] == 1


NOISY = (
    "import os, sys\nprint('at import')\n"
    + WHOLE.replace("    return model(batch)", "    print('in the loss')\n    return model(batch)")
    + "def evaluate(model):\n    sys.stdout.write('in the metric')\n    return 1.0\n"
)


def test_a_target_that_prints_does_not_spoil_the_json_on_stdout(cli, write):
    result = cli("scan", write(NOISY), *SMALL, "--json", "-")
    assert json.loads(result.out)["schema_version"] == 1
    assert "at import" in result.err
    assert "in the loss" in result.err


def test_a_target_whose_children_print_does_not_spoil_the_json_on_stdout(tmp_path, write):
    path = write("import os\nos.system('echo from a child')\nos.write(1, b'past python')\n" + WHOLE)
    result = in_process_of_its_own("scan", path, *CAPTURE_ONLY, "--json", "-", cwd=tmp_path)
    assert json.loads(result.out)["schema_version"] == 1
    assert "from a child" in result.err


def test_the_jsons_place_may_be_chosen_and_its_folder_is_made(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "new/deep/run.json", "--html", "pages/run.html")
    assert result.code == 0, result.err
    assert saved(tmp_path / "new/deep/run.json")["target"]["name"] == "job"
    assert (tmp_path / "pages/run.html").is_file()
    assert not (tmp_path / "reports").exists()


def test_a_relative_out_that_is_not_there_yet_is_made(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--out", "a/b/c")
    assert result.code == 0, result.err
    assert {p.name for p in (tmp_path / "a/b/c").iterdir()} == {"job.html", "job.json"}


def test_a_second_scan_replaces_the_first(cli, write, tmp_path):
    path = write(WHOLE)
    assert cli("scan", path, *CAPTURE_ONLY).code == 0
    assert cli("scan", path, *CAPTURE_ONLY, "--seed", "7").code == 0
    assert saved(tmp_path / "reports/job.json")["capture"]["seed"] == 7


def test_a_target_that_changes_the_working_folder_does_not_move_the_results(cli, write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    result = cli("scan", write(f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n" + WHOLE), *CAPTURE_ONLY)
    assert result.code == 0, result.err
    assert (tmp_path / "reports/job.json").is_file()


def test_module_and_attribute_is_a_target(cli, write, tmp_path):
    write(WHOLE.replace("build_model", "tiny"), "package_of_mine/jobs.py")
    result = cli("scan", "package_of_mine.jobs:tiny", *CAPTURE_ONLY)
    assert result.code == 0, result.err
    names = {p.name for p in (tmp_path / "reports").iterdir()}
    assert names == {"package_of_mine.jobs-tiny.json", "package_of_mine.jobs-tiny.html"}


def test_file_and_attribute_is_a_target(cli, write, tmp_path):
    text = WHOLE + "def other():\n    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))\n"
    result = cli("scan", f"{write(text)}:other", *CAPTURE_ONLY)
    assert result.code == 0, result.err
    (data,) = (tmp_path / "reports").glob("*.json")
    assert saved(data)["target"]["parameters"] == 13


def test_two_models_of_one_file_have_reports_of_their_own(cli, write, tmp_path):
    path = write(WHOLE + "def other():\n    return nn.Linear(2, 5)\n")
    for name in ("build_model", "other"):
        assert cli("scan", f"{path}:{name}", *CAPTURE_ONLY).code == 0
    assert len(list((tmp_path / "reports").glob("*.json"))) == 2


@pytest.mark.parametrize("name", ["my model.py", "modèle-漢字.py", "a'b\"c.py", "-dash.py", "x.y.z.py", "[red].py"])
def test_spaces_and_unicode_in_a_path_are_nothing_special(cli, write, tmp_path, name):
    path = write(WHOLE, f"a folder with ünïcode/{name}")
    result = cli("scan", path, *CAPTURE_ONLY)
    assert result.code == 0, result.err
    (data,) = (tmp_path / "reports").glob("*.json")
    assert saved(data)["target"]["source"] == str(path)
    assert data.name in result.out.replace("\n", "")
    assert cli("report", data).code == 0


def test_include_and_exclude_choose_the_tensors(cli, write, tmp_path):
    path = write(WHOLE.replace("nn.Linear(2, 1)", "nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))"))

    def seen(*options: str) -> set[str]:
        result = cli("scan", path, *CAPTURE_ONLY, "--fail-on", "never", *options)
        assert result.code == 0, result.err
        return {t["name"] for t in saved(tmp_path / "reports/job.json")["capture"]["tables"]}

    everything = {"0", "1", "2", "0.weight", "0.bias", "2.weight", "2.bias", "Sequential"}
    assert seen() | {"Sequential"} == everything
    assert seen("--include", "0.*") == {"0.weight", "0.bias"}
    assert seen("--include", "0*", "--include", "2.bias") == {"0", "0.weight", "0.bias", "2.bias"}
    assert seen("--include", "*.*", "--exclude", "*.bias") == {"0.weight", "2.weight"}


def test_a_pattern_that_matches_nothing_is_not_a_clean_bill_of_health(cli, write, tmp_path):
    result = cli("scan", write(FAILS), *CAPTURE_ONLY, "--include", "typo.*")
    assert OURS not in result.err, result.err
    assert result.code in (2, 3), "no tensor was looked at, so nothing can be said to be fine"


# where results cannot be written


@pytest.mark.parametrize("option", ["--out", "--json", "--html"])
def test_a_place_below_a_file_is_refused_before_any_work(cli, write, option):
    write("a file", "plain")
    result = cli("scan", write("import os\nos._exit(9)\n"), "--no-verify", option, "plain/below")
    refused_at_once(result, "output-not-writable")
    assert "plain/below" in result.error


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_in_proc_is_refused(cli, write):
    refused_at_once(cli("scan", write(WHOLE), *SMALL, "--out", "/proc/mpdiag"), "output-not-writable")


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_an_output_that_is_a_folder_is_refused(cli, write, tmp_path, option):
    (tmp_path / "folder").mkdir()
    result = cli("scan", write(WHOLE), *SMALL, option, "folder")
    refused_at_once(result, "output-not-writable")
    assert "is a folder" in result.error


@pytest.mark.parametrize("name", ["job.json", "job.html"])
def test_a_foreign_file_in_the_way_is_left_as_it_is(cli, write, name):
    foreign = write('{"mine": true}' if name.endswith("json") else "<p>mine</p>", f"reports/{name}")
    before = foreign.read_bytes()
    result = cli("scan", write(WHOLE), *SMALL)
    refused_at_once(result, "output-exists")
    assert foreign.read_bytes() == before


def test_a_foreign_json_that_also_has_a_creation_date_is_left_as_it_is(cli, write):
    foreign = write('{"created": "2020-01-01", "precious": [1, 2, 3]}', "reports/job.json")
    refused_at_once(cli("scan", write(WHOLE), *SMALL), "output-exists")
    assert "precious" in foreign.read_text("utf-8")


def test_a_page_that_only_mentions_us_is_left_as_it_is(cli, write):
    foreign = write("<p>my notes on mpdiag</p>", "reports/job.html")
    refused_at_once(cli("scan", write(WHOLE), *SMALL), "output-exists")
    assert "my notes" in foreign.read_text("utf-8")


def test_a_foreign_file_that_was_named_is_replaced(cli, write, tmp_path):
    write("mine", "chosen.json")
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "chosen.json").code == 0
    assert saved(tmp_path / "chosen.json")["target"]["name"] == "job"


def test_json_and_page_may_not_be_one_file(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "same", "--html", "same")
    assert result.code == 2, "one of the two results was overwritten by the other"
    assert not (tmp_path / "same").exists()


def test_the_target_itself_is_never_overwritten(cli, write):
    path = write(WHOLE)
    for option in ("--json", "--html"):
        cli("scan", path, *CAPTURE_ONLY, option, path)
        assert path.read_text("utf-8") == WHOLE


def test_results_are_readable_by_others_as_the_umask_says(cli, write, tmp_path):
    before = os.umask(0o022)
    try:
        cli("scan", write(WHOLE), *CAPTURE_ONLY)
    finally:
        os.umask(before)
    assert (tmp_path / "reports/job.json").stat().st_mode & 0o777 == 0o644


def test_an_output_that_is_a_link_stays_one(cli, write, tmp_path):
    write("", "real/store.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "real/store.json")
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert saved(tmp_path / "real/store.json")["target"]["name"] == "job"


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_what_is_no_regular_file_is_not_replaced_by_one(write, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null and its like, which a test must never name as an output
    process = started("scan", write(WHOLE), *CAPTURE_ONLY, option, "pipe", cwd=tmp_path)
    result = finished(process, seconds=8)
    assert (tmp_path / "pipe").is_fifo()
    refused_at_once(result, "output-not-writable")


# exit codes


@pytest.mark.parametrize(
    ("text", "fail_on", "code"),
    [
        (WHOLE, "error", 0),
        (WHOLE, "never", 0),
        (WARNS, "error", 0),
        (WARNS, "warning", 1),
        (WARNS, "never", 0),
        (FAILS, "error", 1),
        (FAILS, "warning", 1),
        (FAILS, "never", 0),
    ],
)
def test_the_exit_code_follows_the_findings(cli, write, tmp_path, text, fail_on, code):
    result = cli("scan", write(text), *CAPTURE_ONLY, "--fail-on", fail_on)
    found = {f["severity"] for f in saved(tmp_path / "reports/job.json")["advice"]["findings"]}
    wanted = {WHOLE: set(), WARNS: {"warning"}, FAILS: {"error"}}[text]
    assert found - {"info"} >= wanted
    assert result.code == code, (found, result.err)


def test_a_verification_that_cannot_tell_gives_three_unless_told_never(cli, write):
    path = write(WHOLE)
    assert cli("scan", path, *SMALL).code == 3  # one seed gives no interval
    assert cli("scan", path, *SMALL, "--fail-on", "never").code == 0


# report


@pytest.fixture
def run_json(cli, write, tmp_path) -> Path:
    assert cli("scan", write(FAILS), *SMALL, "--fail-on", "never").code == 0
    return tmp_path / "reports/job.json"


def test_report_draws_all_five_formats(cli, run_json, tmp_path):
    text = cli("report", run_json)
    assert text.code == 0
    assert "VERDICT" in text.out
    page = cli("report", run_json, "--format", "html", "--plotly", "none").out
    assert page.lower().startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert page == (tmp_path / "reports/job.html").read_text("utf-8"), "the page drawn again is another"
    markdown = cli("report", run_json, "--format", "md").out
    assert markdown.startswith("#")
    rows = list(csv.DictReader(io.StringIO(cli("report", run_json, "--format", "csv").out)))
    tables = json.loads(run_json.read_text("utf-8"))["capture"]["tables"]
    assert [(r["name"], r["kind"]) for r in rows] == [(t["name"], t["kind"]) for t in tables]


def test_report_as_json_gives_back_every_byte(cli, run_json):
    result = cli("report", run_json, "--format", "json")
    assert result.out == run_json.read_text("utf-8")


@pytest.mark.parametrize("kind", ["text", "html", "json", "md", "csv"])
def test_report_writes_to_a_file_what_it_prints(cli, run_json, tmp_path, kind):
    printed = cli("report", run_json, "--format", kind, "--plotly", "none").out
    result = cli("report", run_json, "--format", kind, "--plotly", "none", "--out", f"drawn/it.{kind}")
    assert (result.code, result.out) == (0, "")
    assert (tmp_path / f"drawn/it.{kind}").read_text("utf-8") == printed


@pytest.mark.parametrize("kind", ["text", "html", "json", "md", "csv"])
@pytest.mark.parametrize("stage", ["target", "capture"])
def test_report_draws_a_scan_that_did_not_end(cli, write, tmp_path, kind, stage):
    text = WHOLE.replace("(model, batch)", "()") if stage == "target" else RAISING["computing the loss"]
    with pytest.raises(MpdiagError) as caught:
        mpdiag.scan(str(write(text)), device="cpu", steps=2, verify=False)
    (tmp_path / "reports").mkdir()
    mpdiag.save(caught.value.diagnosis, tmp_path / "reports/job.json")
    data = saved(tmp_path / "reports/job.json")
    assert (data["capture"] is None) == (stage == "target")
    result = cli("report", tmp_path / "reports/job.json", "--format", kind, "--plotly", "none")
    assert (result.code, result.err) == (0, "")
    assert "user-code" in result.out or kind == "csv"


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("", "not-a-diagnosis"),
        ("garbage", "not-a-diagnosis"),
        ("[]", "not-a-diagnosis"),
        ("null", "not-a-diagnosis"),
        ("{}", "not-a-diagnosis"),
        ('{"schema_version": 1}', "not-a-diagnosis"),
        ('{"schema_version": 99}', "schema-version"),
        ('{"schema_version": null}', "schema-version"),
        ('{"schema_version": "1"}', "schema-version"),
        ("[" * 100_000, "not-a-diagnosis"),
    ],
)
def test_report_refuses_what_is_no_diagnosis(cli, write, text, slug):
    result = cli("report", write(text, "run.json"))
    refused_at_once(result, slug)
    assert "run.json" in result.error, "which file?"


def test_report_refuses_half_a_file(cli, run_json, write):
    half = write(run_json.read_text("utf-8")[:-200], "half.json")
    refused_at_once(cli("report", half), "not-a-diagnosis")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("capture", "tables"), 3),
        (("capture", "tables"), [1]),
        (("capture", "tables", 0, "kind"), "weights"),
        (("capture", "tables", 0, "histogram"), None),
        (("capture", "steps"), "two"),
        (("capture", "losses"), "abc"),
        (("capture", "selftest"), None),
        (("advice", "loss_scale"), None),
        (("advice", "loss_scale", "log2_scale"), "high"),
        (("advice", "findings", 0, "severity"), "catastrophe"),
        (("advice", "findings", 0, "code"), None),
        (("target", "parameters"), None),
        (("environment",), None),
        (("environment", "cpu_threads"), {}),
        (("verification", "trials", 0, "losses"), None),
        (("verification", "verdict"), "maybe"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "html", "md", "csv"])
def test_report_never_shows_a_traceback_for_a_file_that_was_tampered_with(cli, run_json, write, path, value, kind):
    data = json.loads(run_json.read_text("utf-8"))
    *way, last = path
    inner = data
    for step in way:
        inner = inner[step]
    inner[last] = value
    result = cli("report", write(json.dumps(data), "tampered.json"), "--format", kind, "--plotly", "none")
    if result.code != 0:
        refused_at_once(result, "not-a-diagnosis")


def test_report_refuses_a_file_that_is_not_there_or_no_text(cli, tmp_path):
    refused_at_once(cli("report", "nowhere.json"), "no-such-file")
    refused_at_once(cli("report", tmp_path), "no-such-file")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    result = cli("report", "binary.json")
    assert result.code == 2
    assert OURS not in result.err


def test_report_refuses_an_unknown_format(cli, run_json):
    refused_at_once(cli("report", run_json, "--format", "pdf"), "usage")


def test_report_does_not_write_over_the_file_it_reads(cli, run_json):
    before = run_json.read_bytes()
    result = cli("report", run_json, "--format", "md", "--out", run_json)
    assert run_json.read_bytes() == before
    assert result.code == 2


# explain


def test_explain_lists_every_finding(cli):
    result = cli("explain")
    assert result.code == 0
    codes = [line.split()[0] for line in result.out.splitlines()]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"MP\d{3}", code) for code in codes)
    assert all(len(line.split()) > 3 for line in result.out.splitlines())


def test_explain_knows_a_code_in_either_case_and_by_name(cli):
    listed = cli("explain").out.splitlines()
    for line in listed:
        code, name = line.split()[:2]
        pages = {cli("explain", asked).out for asked in (code, code.lower(), name, name.upper())}
        assert len(pages) == 1
        (page,) = pages
        assert code in page
        assert name in page


@pytest.mark.parametrize("asked", ["MP999", "mp20", "nonsense", "", "MP201 ", "漢字"])
def test_explain_refuses_a_code_that_is_none(cli, asked):
    result = cli("explain", asked)
    if asked.strip() == "MP201":  # a pasted code may carry a space
        assert result.code in (0, 2)
        return
    refused_at_once(result, "unknown-code")
    assert "mpdiag explain" in result.err


def test_explain_offers_the_code_that_was_meant(cli):
    assert "did you mean MP20" in cli("explain", "MP20").err


def test_every_finding_of_a_scan_can_be_explained(cli, run_json):
    findings = json.loads(run_json.read_text("utf-8"))["advice"]["findings"]
    assert findings
    for finding in findings:
        assert cli("explain", finding["code"]).code == 0


# processes


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


ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]


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


# a scan that is stopped


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
