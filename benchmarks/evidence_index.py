"""reports/README.md: a line a scan, with where and when it was made, and the benchmarks' pages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from mpdiag.advice.from_runs import OF_RUNS
from mpdiag.diagnosis import Diagnosis, Environment
from mpdiag.report.digest import verdict_of

VERIFYING = {"prediction", "verify", *OF_RUNS}  # stages that `mpdiag verify` has; the others are the scan's

HEAD = """# Evidence

Real runs, written by `python benchmarks/evidence.py` on the machine each row names. Nothing here is edited by hand. The
JSONs are as the runs left them, but for the machine's folders in a command. Losses and metrics were compared, by rules
fixed before, by the version that ran; verdicts, ratios of costs and findings of the runs are made of that by this
version, and so are the pages. When: UTC, as a scan began.

Scans may run side by side on different GPUs of one host, each pinned to cores of its own; a JSON does not tell which
GPU it had.{overlaps}

| report | on | when | command | its stages took | verdict |
| --- | --- | --- | --- | --- | --- |"""


def index_page(scans: Mapping[str, Diagnosis], pages: Mapping[str, str], paper: bool) -> str:
    """scans: by name; pages: what each benchmark's page is about, by name; paper: whether there is a paper.md."""
    together = [f"{one} and {other}" for one, other in overlapping(scans)]
    lines = [HEAD.replace("{overlaps}", f" By their times these did: {', '.join(together)}." if together else "")]
    lines += [_line(name, d) for name, d in scans.items()]
    if paper:
        lines += ["", "- [paper.md](paper.md): the paper's kinds of jobs again, by `python benchmarks/paper.py`."]
    lines += ["", *(f"- [{name}.md]({name}.md): {about}" for name, about in pages.items()), ""]
    return "\n".join(lines)


def _line(name: str, d: Diagnosis) -> str:
    on, when, took = _machine(d.environment), d.created, f"{_seconds(d):.0f} s"
    if d.captured_on is not None or d.verified is not None:
        verified = d.verified or "at a time that its record does not tell"
        scanned = _machine(d.captured_on or d.environment)
        on, when = f"verified on {on}; scanned on {scanned}", f"scanned {when}; verified {verified}"
        took = f"scanning {_seconds(d, verifying=False):.0f} s, verifying {_seconds(d, verifying=True):.0f} s"
    verdict, reason = verdict_of(d)
    links = f"[{name}]({name}.html) ([JSON]({name}.json))"
    return f"| {links} | {on} | {when} | `{d.command}` | {took} | {verdict}: {reason} |"


def _machine(environment: Environment) -> str:
    gpu = f"{environment.gpu}, driver {environment.driver}" if environment.gpu else "a CPU"
    return f"{gpu}, torch {environment.torch}"


def _seconds(d: Diagnosis, verifying: bool | None = None) -> float:
    """Of all its stages, or of those that verify (True) or come before (False)."""
    return sum(s for stage, s in d.elapsed_seconds.items() if verifying is None or (stage in VERIFYING) == verifying)


def overlapping(scans: Mapping[str, Diagnosis]) -> Iterator[tuple[str, str]]:
    """The pairs on one kind of machine of which one began before the other's stages can have ended."""
    began = {name: _span(d) for name, d in scans.items()}
    for one, other in itertools.combinations(scans, 2):
        mine, theirs = began[one], began[other]
        if mine is None or theirs is None or scans[one].environment != scans[other].environment:
            continue
        if mine[0] < theirs[1] and theirs[0] < mine[1]:
            yield one, other


def _span(d: Diagnosis) -> tuple[datetime, datetime] | None:
    """From when on its runs were made here, and until when at least; None where its record does not tell."""
    began = d.verified or (None if d.captured_on else d.created)
    if began is None:
        return None
    start = datetime.fromisoformat(began)
    return start, start + timedelta(seconds=_seconds(d, verifying=True if d.verified else None))
