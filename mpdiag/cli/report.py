"""`mpdiag report RUN.json`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from mpdiag.cli.delivery import typed, typed_elsewhere, with_real_name
from mpdiag.cli.files import apart, readable, writable, write
from mpdiag.cli.stdout import printed


@click.command(short_help="Draw a saved scan again, without torch.")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN.json")
@click.option("--format", "kind", type=click.Choice(["text", "html", "json", "md", "csv", "configs"]), default="text",
              show_default=True, help="What to make of it.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="PATH", help="Write here instead of stdout.")
@click.option("--plotly", type=click.Choice(["inline", "none"]), default="inline", show_default=True,
              help="html: carry plotly's script in the page, or static figures only.")  # fmt: skip
def report(run: Path, kind: str, out: Path | None, plotly: str) -> int:
    """Draw a saved scan again: terminal text, HTML page, JSON, Markdown, CSV of its tensors, configurations to paste.

    Needs no torch.
    """
    from html import escape

    from mpdiag.advice.configs import configs_for
    from mpdiag.api import load
    from mpdiag.report import configs, html, markdown, table, terminal
    from mpdiag.saved import to_json

    if out is not None:
        apart(run, out)
        out = writable(out, asked=True)
    diagnosis, name = load(readable(run)), typed_elsewhere(run.absolute())
    plan = f"{run.stem}.plan.json"
    if kind == "text":
        text = terminal.render(diagnosis, color=out is None and sys.stdout.isatty())
        text = with_real_name(text, typed(run.absolute()))
    elif kind == "html":
        text = html.render(diagnosis, plotly=plotly, configs=configs_for(diagnosis, plan))
        text = with_real_name(text, escape(name))
    elif kind == "json":
        text = to_json(diagnosis)
    elif kind == "md":
        text = with_real_name(markdown.render(diagnosis), re.sub(r"([\\`*_<>|\[\]&#~])", r"\\\1", name))
    elif kind == "configs":
        text = configs.render(diagnosis, configs_for(diagnosis, plan))
    else:
        text = table.render(diagnosis)
    if out is None:
        printed(text)
    else:
        write(out, text)
    return 0
