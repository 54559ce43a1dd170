"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mpdiag import settings
from mpdiag.settings import MOST_SEEDS, MOST_STEPS

Command = Callable[..., Any]

MOST_GB = 1_000_000.0
"""Of a card's memory, a petabyte: no card has it."""


def _finite(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Click's ranges let NaN through: it is neither below their minimum nor above their maximum."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("it has to be a finite number", param=parameter)
    return value


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


def _how_much(steps: int | None, seeds: int | None, shown: bool | str) -> Callable[[Command], Command]:
    return _stacked(
        click.option("--verify-steps", type=click.IntRange(1, MOST_STEPS), default=steps, show_default=shown,
                     help="Steps of each verification run."),
        click.option("--seeds", type=click.IntRange(1, MOST_SEEDS), default=seeds, show_default=shown,
                     help="Paired seeds of the verification."),
    )  # fmt: skip


how_much = _how_much(settings.VERIFY_STEPS, settings.SEEDS, True)
how_much_again = _how_much(None, None, "as RUN.json was asked for")

how_to_verify = _stacked(
    click.option("--time-budget", type=click.FloatRange(min=0, min_open=True), default=settings.TIME_BUDGET_SECONDS,
                 show_default=True, metavar="SECONDS", callback=_finite,
                 help="For the search of FP32 islands and the verification, on a GPU with what it measures; the "
                      "capture comes on top. What is cut is named."),
    click.option("--costs/--no-costs", default=True, show_default=True,
                 help="On a GPU: measure time, memory, tensor cores, energy; without, training has all the time."),
    click.option("--largest-batch", is_flag=True,
                 help="Search the largest batch that trains, for each arm (on a GPU); in a time of its own beside "
                      f"--time-budget: as much again, at least {settings.LARGEST_BATCH_SECONDS:.0f} s an arm."),
    click.option("--memory-limit", type=click.FloatRange(0, MOST_GB, min_open=True), metavar="GB",
                 callback=_finite,
                 help="Search it as on a card of so many GB (1e9 bytes)."),
    click.option("--control-costs", is_flag=True,
                 help="On a GPU: measure also what pure FP16 takes, though nobody should train in it."),
)  # fmt: skip

how_to_show = _stacked(
    click.option("--html", "html_path", type=click.Path(path_type=Path), metavar="PATH", help="Write the page here."),
    click.option("--plotly", type=click.Choice(["inline", "none"]), default="inline", show_default=True,
                 help="Carry plotly's script in the page (about 2 MB), or keep static figures only."),
    click.option("--fail-on", type=click.Choice(["error", "warning", "never"]), default="error", show_default=True,
                 help="Least severity that gives exit code 1."),
)  # fmt: skip
