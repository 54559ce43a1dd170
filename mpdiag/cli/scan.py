"""`mpdiag scan TARGET`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mpdiag import settings
from mpdiag.cli.delivery import attempted, deliver, exit_code
from mpdiag.cli.files import apart, writable
from mpdiag.cli.options import how_much, how_to_show, how_to_verify, where_to_run
from mpdiag.cli.process import interruptible
from mpdiag.settings import MOST_STEPS

if TYPE_CHECKING:
    from mpdiag.cli.process import Interruption
    from mpdiag.diagnosis import Diagnosis
    from mpdiag.errors import MpdiagError
    from mpdiag.options import ScanOptions


def _places(text: str) -> tuple[int, ...]:
    try:
        places = tuple(int(part) for part in text.split(","))
    except ValueError:
        places = (-1,)
    if min(places) < 0:
        raise click.BadParameter("it has to be steps of training, such as 0,100,1000", param_hint="'--at'")
    return places


@click.command(short_help="Observe a training job, advise a loss scale, verify mixed precision.")
@click.argument("target")
@click.option("--steps", type=click.IntRange(1, MOST_STEPS), default=settings.CAPTURE_STEPS, show_default=True,
              help="FP32 steps to observe.")  # fmt: skip
@click.option(
    "--at",
    default="0",
    metavar="STEPS",
    callback=lambda _, __, value: _places(value),
    show_default=True,
    help="Begin observing at these steps of training, such as 0,100,1000: shows how the window moves.",
)
@click.option("--skip", type=click.IntRange(0, MOST_STEPS), default=0, show_default=True,
              help="Train so many unobserved steps between two observed ones.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the first run.")
@where_to_run
@click.option("--depth", type=click.Choice(settings.DEPTHS), default=settings.DEPTHS[0], show_default=True,
              help="ops: look at every operation between the modules too, in a second, slower pass.")  # fmt: skip
@click.option("--start-from", metavar="CHECKPOINT",
              help="Start every run from these weights (and optimizer state) that torch.save wrote.")  # fmt: skip
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Train in mixed precision beside FP32.")  # fmt: skip
@how_much
@how_to_verify
@click.option("--out", type=click.Path(path_type=Path), default=Path("reports"), show_default=True, metavar="DIR",
              help="Folder for <name>.json, .html and .plan.json.")  # fmt: skip
@click.option("--json", "json_path", metavar="PATH", help="Write the JSON here; - prints it alone on stdout.")
@how_to_show
@click.option("--include", multiple=True, metavar="GLOB", help="Observe only tensors with such names.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Do not observe tensors with such names.")
def scan(
    target: str, steps: int, at: tuple[int, ...], skip: int, seed: int, device: str, depth: str, start_from: str | None,
    verify: bool, verify_steps: int, seeds: int, time_budget: float, costs: bool, largest_batch: bool,
    memory_limit: float | None, control_costs: bool, out: Path, json_path: str | None, html_path: Path | None,
    plotly: str, fail_on: str, include: tuple[str, ...], exclude: tuple[str, ...],
) -> int:  # fmt: skip
    """Observe TARGET's FP32 training, advise a loss scale, verify mixed precision.

    TARGET is a file (model.py), file.py:attr or package.module:attr. It defines build_model(), train_batches() and
    compute_loss(model, batch), which may be loss_fn(output, target) instead, or a .loss on the model's output; and
    optionally build_optimizer(model) and evaluate(model).
    """
    from mpdiag.options import ScanOptions

    options = ScanOptions(
        steps=steps, seed=seed, device=device, verify=verify, verify_steps=verify_steps, seeds=seeds,
        time_budget_seconds=time_budget, include=include, exclude=exclude, depth=depth, at=at, skip=skip,
        start_from=start_from, costs=costs, largest_batch=largest_batch,
        memory_limit_bytes=None if memory_limit is None else int(memory_limit * 1e9), control_costs=control_costs,
    )  # fmt: skip
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
    apart(Path(source), Path(start_from) if start_from else None, data, page, plan)
    with interruptible() as interruption:
        diagnosis, stopped = _scan(target, options, data, interruption)
        failure = deliver(diagnosis, stopped, data, page, plan, plotly)
    if failure is not None:
        raise failure
    return exit_code(diagnosis, fail_on)


def _scan(
    target: str, options: ScanOptions, data: Path | None, interruption: Interruption
) -> tuple[Diagnosis, MpdiagError | None]:
    """The diagnosis, whole or as far as it went, and what stopped it."""
    from mpdiag.api import scan as run_scan

    return attempted(lambda shown: run_scan(target, options, **shown), data, interruption)
