"""The verdict on one screen."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpdiag.diagnosis import Diagnosis
from mpdiag.report.digest import Digest, digest_of
from mpdiag.report.next_steps import SNIPPET_FOLLOWS
from mpdiag.report.plain_numbers import tidy

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

_STYLE = {
    "go": "bold green",
    "go-with-changes": "bold yellow",
    "no-go": "bold red",
    "inconclusive": "bold yellow",
    "error": "red",
    "warning": "yellow",
    "info": "cyan",
}
WIDTH = 110  # long enough for a finding, short enough to read


def render(diagnosis: Diagnosis, color: bool = False, width: int | None = None) -> str:
    """VERDICT, WHY, FINDINGS, NEXT, NOT DONE, as text of at most `width` columns (None: the terminal's, up to 110)."""
    from rich.console import Console

    columns = width or min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    stream = io.StringIO()
    console = Console(
        file=stream, width=columns, force_terminal=color, no_color=not color, highlight=False, legacy_windows=False
    )
    _print(console, digest_of(diagnosis))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()).rstrip() + "\n"


def _print(console: Console, parts: Digest) -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=9, no_wrap=True)
    grid.add_column(overflow="fold")

    def section(label: str, lines: Sequence[RenderableType]) -> None:
        for index, line in enumerate(lines):
            grid.add_row(Text(label if index == 0 else "", style="bold"), line)
        if lines:
            grid.add_row("", "")

    section("SCAN", [Text(line, style="dim") for line in parts.heading])
    verdict = Text(parts.verdict, style=_STYLE.get(parts.verdict, "bold"))
    section("VERDICT", [verdict.append(Text(f": {tidy(parts.verdict_reason)}", style="default"))])
    why = [(Text(topic, style="dim"), Text(tidy(text))) for topic, text in _told_once(parts.why)]
    section("WHY", [_pairs(why)] if why else [])
    found = [
        (Text(f"{severity} {code}", style=_STYLE[severity]), Text(tidy(text)))
        for severity, code, text in parts.findings
    ]
    more = [Text(parts.more_findings, style="dim")] if parts.more_findings else []
    section("FINDINGS", [*([_pairs(found)] if found else []), *more])
    steps = [Text(tidy(line)) for line in parts.next_steps]
    if parts.snippet and SNIPPET_FOLLOWS in parts.next_steps:
        place = parts.next_steps.index(SNIPPET_FOLLOWS) + 1
        steps[place:place] = [Text(f"    {line}", style="green") for line in parts.snippet.rstrip().splitlines()]
    section("NEXT", steps)
    open_ends = [(Text("-", style="dim"), Text(tidy(line), style="dim")) for line in parts.not_done]
    section("NOT DONE", [_pairs(open_ends)] if open_ends else [])
    console.print(grid)


def _told_once(why: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The lines with each topic at the first of its lines alone."""
    before = ["", *(topic for topic, _ in why)]
    return [("" if topic == last else topic, text) for last, (topic, text) in zip(before, why, strict=False)]


def _pairs(rows: Sequence[tuple[Text, Text]]) -> Table:
    """Two columns: what it is about, and the text, which wraps under itself."""
    from rich.table import Table

    table = Table.grid(padding=(0, 1))
    widest = min(20, max(len(topic) for topic, _ in rows))
    table.add_column(overflow="fold", min_width=widest, max_width=widest)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
