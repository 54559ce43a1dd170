"""What mpdiag cut of the paper's jobs to keep the time, grouped by what it was: a line each, and where."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PATTERNS = (
    (re.compile(r"arm (?P<arm>\S+), seed (?P<seed>\d+): (?P<why>.*)"), "seed {seed} {why}", "{arm}"),
    (
        re.compile(r"only (?P<had>\d+) of (?P<asked>\d+) (?P<what>steps|seeds) were \w+[,:] (?P<why>.*)"),
        "fewer {what} than asked for",
        "{had} of {asked}, {why}",
    ),
    (
        re.compile(r"(?P<what>[^:]+): not measured[,:] (?P<why>.*), the time budget had (?P<left>\S+ s) left"),
        "{what}: not measured, {why}, and less was left of the time budget",
        "{left}",
    ),
)
"""What a line of the JSON may look like, the group it is told under, and what is left to say of the place."""

_SECONDS = re.compile(r"\d+\.\d{2,}(?= s\b)")  # a tenth is enough


def cut_lines(cut: Sequence[tuple[str, str]]) -> list[str]:
    """A Markdown line for each sort of cut; cut: (job and state, the line of its JSON), in the page's order."""
    groups: dict[str, dict[str, list[str]]] = {}
    for place, line in cut:
        group, detail = _sorted(_SECONDS.sub(lambda found: f"{float(found[0]):.1f}", line))
        groups.setdefault(group, {}).setdefault(place, []).extend([detail] if detail else [])
    return [f"- {group[:1].upper()}{group[1:]}: {_places(places)}." for group, places in groups.items()]


def _sorted(line: str) -> tuple[str, str]:
    """The group that a line belongs to, and what of it is of its place alone."""
    for pattern, group, detail in _PATTERNS:
        if found := pattern.fullmatch(line):
            return group.format(**found.groupdict()), detail.format(**found.groupdict())
    return line, ""


def _places(places: dict[str, list[str]]) -> str:
    told = (f"{place} ({', '.join(dict.fromkeys(details))})" if details else place for place, details in places.items())
    return "; ".join(told)
