"""The digest as Markdown, for a pull request or a CI summary."""

from __future__ import annotations

import re

from mpdiag.diagnosis import Diagnosis
from mpdiag.report.digest import digest_of
from mpdiag.report.next_steps import SNIPPET_FOLLOWS
from mpdiag.report.plain_numbers import tidy


def render(diagnosis: Diagnosis) -> str:
    """VERDICT, WHY, FINDINGS (all of them), NEXT and NOT DONE under headings."""
    parts = digest_of(diagnosis, every_finding=True)
    name = diagnosis.target.name if diagnosis.target else "scan"
    lines = [f"# mpdiag: {_text(name)}", "", *(f"- {_text(line)}" for line in parts.heading), ""]
    lines += [f"**{parts.verdict}**: {_text(parts.verdict_reason)}", ""]
    lines += _list("Why", tuple(f"{topic}: {text}" if topic else text for topic, text in parts.why))
    if parts.findings:
        lines += ["## Findings", "", "| severity | code | finding |", "| --- | --- | --- |"]
        lines += [f"| {s} | {c} | {_text(m)} |" for s, c, m in parts.findings]
        lines.append("")
    lines += _list("Next", tuple(step for step in parts.next_steps if step != SNIPPET_FOLLOWS))
    if parts.snippet:
        lines += ["Train with:", "", "```python", parts.snippet.rstrip(), "```", ""]
    lines += _list("Not done", parts.not_done)
    return "\n".join(lines).rstrip() + "\n"


def _list(title: str, items: tuple[str, ...]) -> list[str]:
    return [f"## {title}", "", *(f"- {_text(item)}" for item in items), ""] if items else []


def _text(line: str) -> str:
    """Names and messages as text: nothing in them becomes markup, at the start of a line or inside it."""
    escaped = re.sub(r"([\\`*_<>|\[\]&#~])", r"\\\1", tidy(" ".join(line.split())))
    return re.sub(r"^([-+=]|\d+(?=[.)]))", _escaped_start, escaped)


def _escaped_start(match: re.Match[str]) -> str:
    """A leading mark with a backslash; after a leading number the backslash goes before its dot."""
    start = match[0]
    return f"{start}\\" if start.isdigit() else f"\\{start}"
