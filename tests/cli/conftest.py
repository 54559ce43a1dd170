"""What the tests of the command line share."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_samples import FAILS, SMALL, Result, Write
from mpdiag.cli.main import main


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


@pytest.fixture
def run_json(cli, write, tmp_path) -> Path:
    assert cli("scan", write(FAILS), *SMALL, "--fail-on", "never").code == 0
    return tmp_path / "reports/job.json"
