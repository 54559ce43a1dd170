"""Target files in text, and what the tests of the command line ask of one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mpdiag.cli.main import main
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


class Result(NamedTuple):
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


ASCII = [
    {"PYTHONIOENCODING": "ascii"},
    {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"PYTHONIOENCODING": "latin-1"},
]
