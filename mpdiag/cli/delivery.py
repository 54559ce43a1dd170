"""What scan and verify leave behind: the files, the summary, the exit code; also when they are stopped."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpdiag.cli.files import write
from mpdiag.cli.process import stdout_kept_clean
from mpdiag.errors import MpdiagError

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis

_SEVERITY = {"error": 2, "warning": 1, "info": 0}


def attempted(work: Callable[[dict[str, Any]], Diagnosis], data: Path | None) -> tuple[Diagnosis, MpdiagError | None]:
    """The diagnosis that `work` makes, whole or as far as it went, and what stopped it.

    work gets the keywords command, report and checkpoint of api.scan. data: where each checkpoint is written.
    """
    from mpdiag.saved import to_json

    def checkpoint(diagnosis: Diagnosis) -> None:
        if data is not None:
            write(data, to_json(diagnosis))

    shown = {
        "command": shlex.join(["mpdiag", *sys.argv[1:]]),
        "report": lambda line: click.echo(f"· {line}", err=True),
        "checkpoint": checkpoint,
    }
    try:
        with stdout_kept_clean(wanted=data is None):
            return work(shown), None
    except MpdiagError as error:
        if error.diagnosis is None:
            raise
        return error.diagnosis, error


def deliver(diagnosis: Diagnosis, data: Path | None, page: Path, plan: Path, plotly: str) -> None:
    """Write the files and print the summary; with `--json -` stdout is the JSON's alone."""
    from mpdiag.advice.configs import configs_for
    from mpdiag.plan import plan_of, plan_to_json
    from mpdiag.report.html import render as render_html
    from mpdiag.report.terminal import render as render_text
    from mpdiag.saved import to_json

    text = to_json(diagnosis)
    if data is None:
        click.echo(text, nl=False)
    else:
        write(data, text)
    write(page, render_html(diagnosis, plotly=plotly, configs=configs_for(diagnosis)))
    stream = sys.stderr if data is None else sys.stdout
    click.echo(render_text(diagnosis, color=stream.isatty()), err=data is None, nl=False)
    kept = plan_of(diagnosis)
    if kept is not None:
        write(plan, plan_to_json(kept))
    elif plan.exists():  # not ours to remove: a model in production may be loading it
        click.echo(f"warning: {_shown(plan)} is an earlier scan's plan; this scan found none", err=True)
    paths = [_shown(p) for p in (page, data, plan if kept else None) if p is not None]
    click.echo(
        "\n" + "\n".join(f"{'REPORT' if i == 0 else '':<9} {path}" for i, path in enumerate(paths)), err=data is None
    )


def _shown(path: Path) -> str:
    """As short as it can be typed from here."""
    with contextlib.suppress(OSError, ValueError):  # the folder may be gone, or on another drive
        return str(path.relative_to(Path.cwd().resolve()))
    return str(path)


def exit_code(diagnosis: Diagnosis, fail_on: str) -> int:
    """0, 1 or 3 as the contract says."""
    if fail_on == "never":
        return 0
    found = [f.severity for f in diagnosis.advice.findings] if diagnosis.advice else []
    if any(_SEVERITY[s] >= _SEVERITY[fail_on] for s in found):
        return 1
    run = diagnosis.verification
    if run is None:
        return 0
    if run.verdict == "go-with-changes" and run.train_with not in ("fp16", "fp16-plan"):
        return 1  # FP16 failed: what was asked for cannot be done, though BF16 can
    return {"no-go": 1, "inconclusive": 3}.get(run.verdict or "", 0)
