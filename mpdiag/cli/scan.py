"""`mpdiag scan TARGET`."""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpdiag import settings
from mpdiag.cli.files import apart, writable, write
from mpdiag.cli.process import interrupted_once, stdout_kept_clean
from mpdiag.errors import MpdiagError

if TYPE_CHECKING:
    from mpdiag.api import ScanOptions
    from mpdiag.diagnosis import Diagnosis

_SEVERITY = {"error": 2, "warning": 1, "info": 0}


def _places(text: str) -> tuple[int, ...]:
    try:
        places = tuple(int(part) for part in text.split(","))
    except ValueError:
        places = (-1,)
    if min(places) < 0:
        raise click.BadParameter("it has to be steps of training, such as 0,100,1000", param_hint="'--at'")
    return places


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise click.BadParameter("it has to be a finite number of seconds", param_hint="'--time-budget'")
    return seconds


@click.command(short_help="Observe a training job, advise a loss scale, verify mixed precision.")
@click.argument("target")
@click.option("--steps", type=click.IntRange(min=1), default=settings.CAPTURE_STEPS, show_default=True,
              help="FP32 steps to observe.")  # fmt: skip
@click.option(
    "--at",
    default="0",
    metavar="STEPS",
    callback=lambda _, __, value: _places(value),
    show_default=True,
    help="Begin observing at these steps of training, such as 0,100,1000: shows how the window moves.",
)
@click.option("--skip", type=click.IntRange(min=0), default=0, show_default=True,
              help="Train so many unobserved steps between two observed ones.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the first run.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
              help="Where to run; on a CPU the CUDA autocast policy is emulated.")  # fmt: skip
@click.option("--depth", type=click.Choice(settings.DEPTHS), default=settings.DEPTHS[0], show_default=True,
              help="ops: look at every operation between the modules too, in a second, slower pass.")  # fmt: skip
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Train in mixed precision beside FP32.")  # fmt: skip
@click.option("--verify-steps", type=click.IntRange(min=1), default=settings.VERIFY_STEPS, show_default=True,
              help="Steps of each verification run.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=settings.SEEDS, show_default=True,
              help="Paired seeds of the verification.")  # fmt: skip
@click.option("--time-budget", type=click.FloatRange(min=0, min_open=True), default=settings.TIME_BUDGET_SECONDS,
              show_default=True, metavar="SECONDS", callback=lambda _, __, value: _finite(value),
              help="For the verification's training runs; what is cut is named.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, metavar="DIR",
              help="Folder for <name>.json, .html and .plan.json.")  # fmt: skip
@click.option("--json", "json_path", metavar="PATH", help="Write the JSON here; - prints it alone on stdout.")
@click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="PATH", help="Write the page here.")
@click.option("--plotly", type=click.Choice(["inline", "none"]), default="inline", show_default=True,
              help="Carry plotly's script in the page (about 2 MB), or keep static figures only.")  # fmt: skip
@click.option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error", show_default=True,
              help="Least severity that gives exit code 1.")  # fmt: skip
@click.option("--include", multiple=True, metavar="GLOB", help="Observe only tensors with such names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not observe tensors with such names.")
def scan(
    target: str, steps: int, at: tuple[int, ...], skip: int, seed: int, device: str, depth: str, verify: bool,
    verify_steps: int, seeds: int, time_budget: float, out: Path, json_path: str | None, html_path: Path | None,
    plotly: str, fail_on: str, include: tuple[str, ...], exclude: tuple[str, ...],
) -> int:  # fmt: skip
    """Observe TARGET's FP32 training, advise a loss scale, verify mixed precision.

    TARGET is a file (model.py), file.py:attr or package.module:attr. It defines build_model() and train_batches(),
    and optionally compute_loss(model, batch), build_optimizer(model) and evaluate(model).
    """
    source, _, attribute = target.rpartition(":")
    if not source or attribute.endswith(".py") or "/" in attribute:
        source, attribute = target, ""
    name = Path(source).stem if source.endswith(".py") else Path(source).name
    stem = re.sub(r"[^\w.-]+", "-", f"{name}-{attribute}" if attribute else name)
    to_stdout = json_path == "-"
    data = None
    if not to_stdout:
        data = writable(Path(json_path) if json_path else out / f"{stem}.json", asked=json_path is not None)
    page = writable(html_path or out / f"{stem}.html", asked=html_path is not None)
    beside = data or page
    plan = writable(beside.with_name(f"{beside.stem}.plan.json"), asked=False)
    apart(Path(source), data, page, plan)

    from mpdiag.api import ScanOptions

    options = ScanOptions(
        steps=steps, seed=seed, device=device, verify=verify, verify_steps=verify_steps, seeds=seeds,
        time_budget_seconds=time_budget, include=include, exclude=exclude, depth=depth, at=at, skip=skip,
    )  # fmt: skip
    with interrupted_once():
        diagnosis, failure = _scan(target, options, data)
        _deliver(diagnosis, data, page, plan, plotly)
    if failure is not None:
        raise failure
    return exit_code(diagnosis, fail_on)


def _scan(target: str, options: ScanOptions, data: Path | None) -> tuple[Diagnosis, MpdiagError | None]:
    """The diagnosis, whole or as far as it went, and what stopped it."""
    from mpdiag.api import scan as run_scan
    from mpdiag.saved import to_json

    def checkpoint(diagnosis: Diagnosis) -> None:
        if data is not None:
            write(data, to_json(diagnosis))

    try:
        with stdout_kept_clean(wanted=data is None):
            diagnosis = run_scan(
                target,
                options,
                command=shlex.join(["mpdiag", *sys.argv[1:]]),
                report=lambda line: click.echo(f"· {line}", err=True),
                checkpoint=checkpoint,
            )
    except MpdiagError as error:
        if error.diagnosis is None:
            raise
        return error.diagnosis, error
    return diagnosis, None


def _deliver(diagnosis: Diagnosis, data: Path | None, page: Path, plan: Path, plotly: str) -> None:
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
