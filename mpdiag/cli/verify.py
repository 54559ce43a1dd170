"""`mpdiag verify RUN.json`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpdiag.cli.delivery import attempted, deliver, exit_code
from mpdiag.cli.delivery import shown as shown_path
from mpdiag.cli.files import apart, readable, writable, write
from mpdiag.cli.options import how_much_again, how_to_show, how_to_verify, where_to_run
from mpdiag.cli.process import interruptible
from mpdiag.cli.stdout import told as said
from mpdiag.errors import UsageError

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis

ELSEWHERE = ("target-not-found", "no-such-file")  # the target's file, or its checkpoint


@click.command(short_help="Finish a saved scan here: train in mixed precision beside FP32.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN.json")
@where_to_run
@how_much_again
@how_to_verify
@click.option("--json", "json_path", metavar="PATH",
              help="Write the JSON here instead of into RUN.json; - prints it alone on stdout.")  # fmt: skip
@how_to_show
def verify(
    run: Path, device: str, verify_steps: int | None, seeds: int | None, time_budget: float, costs: bool,
    largest_batch: bool, memory_limit: float | None, control_costs: bool, json_path: str | None,
    html_path: Path | None, plotly: str, fail_on: str,
) -> int:  # fmt: skip
    """Finish on this machine what RUN.json began elsewhere: the same job, seeds, steps, loss scale and FP32 islands.

    The target file is looked for where the scan found it, so run it from the same folder. What RUN.json holds of the
    capture stays as it is; the verification in it is replaced, and kept in RUN.before-verify.json if it had runs.
    Writes RUN.json and the page beside it.
    """
    from mpdiag.api import load
    from mpdiag.finish import verify_saved

    saved = load(readable(run))
    data = None if json_path == "-" else writable(Path(json_path) if json_path else run, asked=True)
    beside = data or run.resolve()
    page = writable(html_path or beside.with_suffix(".html"), asked=html_path is not None)
    plan = writable(beside.with_name(f"{beside.stem}.plan.json"), asked=False)
    sources = (saved.target.source, saved.target.start_from) if saved.target else ()
    kept = None if data == run.resolve() else run  # with no other place for the JSON, RUN.json is to be replaced
    apart(*(Path(source) for source in sources if source), kept, data, page, plan)
    told = {
        "device": device, "verify_steps": verify_steps, "seeds": seeds, "time_budget_seconds": time_budget,
        "costs": costs, "largest_batch": largest_batch,
        "memory_limit_bytes": None if memory_limit is None else int(memory_limit * 1e9),
        "control_costs": control_costs,
    }  # fmt: skip
    changed: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    earlier = _set_aside(data, saved) if data == run.resolve() else None
    with interruptible() as interruption:
        try:
            diagnosis, stopped = attempted(lambda shown: verify_saved(saved, **changed, **shown), data, interruption)
        except BaseException as error:
            _no_longer_needed(earlier)  # it could not begin: RUN.json is as it was
            if isinstance(error, UsageError) and error.slug in ELSEWHERE:
                error.hint = "run it from the folder where you scanned: verify looks for the same files"
            raise
        if diagnosis.verification == saved.verification:
            _no_longer_needed(earlier)
        elif earlier is not None:
            said(f"the earlier verification is kept: {shown_path(earlier)}")
        failure = deliver(diagnosis, stopped, data, page, plan, plotly)
    if failure is not None:
        raise failure
    return exit_code(diagnosis, fail_on)


def _set_aside(data: Path, saved: Diagnosis) -> Path | None:
    """A copy of RUN.json under a name that is free, where its verification has runs: they may be the better ones."""
    if saved.verification is None or not saved.verification.trials:
        return None
    names = (f"{data.stem}.before-verify{f'-{i}' if i else ''}.json" for i in count())
    path = next(path for name in names if not (path := data.with_name(name)).exists())
    return write(path, data.read_text(encoding="utf-8"))


def _no_longer_needed(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)
