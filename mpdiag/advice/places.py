"""Where in the user's code a finding is, by what it is about: for those that do not know it themselves."""

from __future__ import annotations

from dataclasses import replace

from mpdiag.diagnosis import Capture, Finding


def with_source(finding: Finding, capture: Capture | None) -> Finding:
    """The finding with the line of its subject, where it has none and the capture saw the subject called."""
    if finding.source is not None or capture is None:
        return finding
    return replace(finding, source=source_of(finding.subject, capture))


def source_of(subject: str, capture: Capture) -> str | None:
    """file:line of a module's call, else of the module's that holds it; None for what is no part of the model."""
    for name in (subject, subject.rpartition(".")[0]):
        lines = [table.source for table in capture.tables if table.name == name and table.source]
        if lines:
            return lines[0]
    return None
