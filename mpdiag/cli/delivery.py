"""What scan and verify leave behind: the files, the summary, the exit code; also when they are stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpdiag.cli.files import write
from mpdiag.cli.process import Interruption, leave_if_forked, stdout_kept_clean
from mpdiag.cli.stdout import printed, streams_kept, told
from mpdiag.errors import InterruptedScanError, MpdiagError

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis

_Made = TypeVar("_Made")
_SEVERITY = {"error": 2, "warning": 1, "info": 0}


@dataclass
class _Keeper:
    """Writes each checkpoint. One that cannot be written must not end a training: delivery tries again."""

    data: Path | None
    tell: Callable[[str], None]
    process: int = field(default_factory=os.getpid)
    latest: Diagnosis | None = None
    warned: bool = False

    def __call__(self, diagnosis: Diagnosis) -> None:
        from mpdiag.saved import to_json

        leave_if_forked(self.process, sys.exc_info()[1])
        self.latest = diagnosis
        if self.data is None or diagnosis.capture is None:  # nothing seen yet: no reason to replace an earlier result
            return
        try:
            write(self.data, to_json(diagnosis))
        except MpdiagError as error:
            if not self.warned:
                self.tell(f"warning: {error.message}; the scan goes on and tries again at its end")
            self.warned = True


def attempted(
    work: Callable[[dict[str, Any]], Diagnosis], data: Path | None, interruption: Interruption
) -> tuple[Diagnosis, MpdiagError | None]:
    """The diagnosis that `work` makes, whole or as far as it went, and what stopped it.

    work gets the keywords command, report and checkpoint of api.scan. data: where each checkpoint is written.
    """
    began, stderr = time.monotonic(), sys.stderr
    keeper = _Keeper(data, lambda line: told(line, stderr))

    def report(line: str) -> None:
        interruption.arrive()
        told(f"· {time.monotonic() - began:.0f} s  {line}", stderr)

    def checkpoint(diagnosis: Diagnosis) -> None:
        keeper(diagnosis)
        interruption.arrive()

    shown = {"command": shlex.join(["mpdiag", *sys.argv[1:]]), "report": report, "checkpoint": checkpoint}
    try:
        with stdout_kept_clean(wanted=data is None), streams_kept():
            diagnosis = work(shown)
            interruption.deliver()
    except (MpdiagError, KeyboardInterrupt) as stopped:
        interruption.deliver()
        leave_if_forked(keeper.process, stopped)
        if isinstance(stopped, MpdiagError):
            if stopped.diagnosis is None or stopped.diagnosis.capture is None:
                raise
            return stopped.diagnosis, stopped
        if keeper.latest is None:
            raise
        return keeper.latest, InterruptedScanError(str(stopped))  # it came between the last stage and here
    leave_if_forked(keeper.process)
    return diagnosis, None


def deliver(
    diagnosis: Diagnosis, stopped: MpdiagError | None, data: Path | None, page: Path, plan: Path, plotly: str
) -> MpdiagError | None:
    """Write the files, then print the summary; with `--json -` (data None) stdout is the JSON's alone.

    Whatever fails, the rest is still written and printed. Gives back what is to be the command's error: what stopped
    the scan, else the first failure here; the others are told as warnings.
    """
    from html import escape

    from mpdiag.advice.configs import configs_for
    from mpdiag.plan import plan_of, plan_to_json
    from mpdiag.report.html import render as render_html
    from mpdiag.report.terminal import render as render_text
    from mpdiag.saved import to_json

    failed: list[MpdiagError] = []

    def tried(what: Callable[[], _Made], otherwise: _Made) -> _Made:
        try:
            return what()
        except MpdiagError as error:
            failed.append(error)
        except Exception as error:
            failed.append(internal(error))
        return otherwise

    def written(path: Path | None, made: Callable[[], str]) -> Path | None:
        return None if path is None else tried(lambda: write(path, made()), None)

    def drawn() -> str:
        text = render_html(diagnosis, plotly=plotly, configs=configs_for(diagnosis, plan.name))
        return text if in_data is None else with_real_name(text, escape(typed_elsewhere(in_data)))

    kept = tried(lambda: plan_of(diagnosis), None)
    in_data = written(data, lambda: to_json(diagnosis))  # first: from it the others can be made again
    on_page = written(page, drawn)
    in_plan = written(plan, lambda: plan_to_json(kept)) if kept is not None else None
    stream = sys.stderr if data is None else sys.stdout
    summary = tried(lambda: render_text(diagnosis, color=stream.isatty()), "")
    if in_data is not None:
        summary = with_real_name(summary, typed(in_data))
    paths = [shown(path) for path in (on_page, in_data, in_plan) if path is not None]
    if paths:
        summary += "\n" + "".join(f"{'REPORT' if i == 0 else '':<9} {path}\n" for i, path in enumerate(paths))
    if data is None:
        tried(lambda: printed(to_json(diagnosis)), None)
        told(summary.removesuffix("\n"))
    else:
        tried(lambda: printed(summary), None)
    if kept is None and plan.exists():  # not ours to remove: a model in production may be loading it
        told(f"warning: {shown(plan)} is an earlier scan's plan; this scan found none")
    if in_data is not None:
        for error in [*failed, *([stopped] if isinstance(stopped, InterruptedScanError) else [])]:
            error.hint = f"what was seen is in {shown(in_data)}; {error.hint}"
    ended = [*([stopped] if stopped else []), *failed]
    for error in ended[1:]:
        told(f"warning: {' '.join(error.message.split())}")
    return ended[0] if ended else None


def internal(error: Exception) -> MpdiagError:
    """What nobody expected, as an error line; with MPDIAG_DEBUG set it is raised instead, for its traceback."""
    if os.environ.get("MPDIAG_DEBUG"):
        raise error
    from mpdiag.unforeseen import as_error

    return as_error(error)


def with_real_name(text: str, name: str) -> str:
    """A report, which knows no files, with the command to type: RUN.json is this one. name: quoted and escaped."""
    # the summary is broken into lines already, perhaps within the command
    return re.sub(r"(mpdiag\s+verify\s+)RUN\.json", lambda match: match[1] + name, text)


def typed(data: Path) -> str:
    """The file as it is typed in a shell from here, for whoever scans."""
    return shlex.quote(shown(data))


def typed_elsewhere(data: Path) -> str:
    """The same for a page or text that travels: of a file that is not below this folder the name alone."""
    return shlex.quote(data.name) if Path(shown(data)).is_absolute() else typed(data)


def shown(path: Path) -> str:
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
