"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mpdiag import settings

Command = Callable[..., Any]


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise click.BadParameter("it has to be a finite number of seconds", param_hint="'--time-budget'")
    return seconds


def _stacked(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


where_to_run = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True,
    help="Where to run; on a CPU the CUDA autocast policy is emulated.",
)  # fmt: skip

how_to_verify = _stacked(
    click.option("--verify-steps", type=click.IntRange(min=1), default=settings.VERIFY_STEPS, show_default=True,
                 help="Steps of each verification run."),
    click.option("--seeds", type=click.IntRange(min=1), default=settings.SEEDS, show_default=True,
                 help="Paired seeds of the verification."),
    click.option("--time-budget", type=click.FloatRange(min=0, min_open=True), default=settings.TIME_BUDGET_SECONDS,
                 show_default=True, metavar="SECONDS", callback=lambda _, __, value: _finite(value),
                 help="For the verification; on a GPU with what it measures. What is cut is named."),
    click.option("--costs/--no-costs", default=True, show_default=True,
                 help="On a GPU: measure time, memory, tensor cores, energy; without, training has all the time."),
    click.option("--largest-batch", is_flag=True,
                 help="Search the largest batch that trains, for each arm (on a GPU; takes minutes of its own)."),
    click.option("--memory-limit", type=click.FloatRange(min=0, min_open=True), metavar="GB",
                 help="Search it as on a card of so many GB (1e9 bytes)."),
)  # fmt: skip

how_to_show = _stacked(
    click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="PATH", help="Write the page here."),
    click.option("--plotly", type=click.Choice(["inline", "none"]), default="inline", show_default=True,
                 help="Carry plotly's script in the page (about 2 MB), or keep static figures only."),
    click.option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error", show_default=True,
                 help="Least severity that gives exit code 1."),
)  # fmt: skip
