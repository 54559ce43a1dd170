"""Ids that live: built from names, equal between runs, unique on the page; and who links to whom."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mpdiag.diagnosis import Finding, TensorKind, TensorTable

OPERATIONS = "operations"  # the id of their table's section
_OF_OPERATIONS = ("MP106", "MP107", "MP108", "MP109", "MP110", "MP111", "MP305", "MP306", "MP307", "MP308")
GRADIENTS = (TensorKind.WEIGHT_GRADIENT, TensorKind.ACTIVATION_GRADIENT)


def slug(text: str) -> str:
    """Letters, digits, dots, dashes and underscores of a name; whatever else becomes one dash."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-") or "unnamed"


class Anchors:
    """Hands out each id once; the second asker of the same gets `-2`, in the order of the record."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def claim(self, wanted: str) -> str:
        """The id to use for what would like to be called `wanted`."""
        given, number = wanted, 1
        while given in self._taken:
            number += 1
            given = f"{wanted}-{number}"
        self._taken.add(given)
        return given


class TensorLinks:
    """From a tensor's name (and a guess of its kind) to the id of its table row."""

    def __init__(self, tables: Iterable[TensorTable], anchors: Anchors) -> None:
        self._rows: dict[str, dict[TensorKind, str]] = {}
        self._inside: dict[str, dict[TensorKind, str]] = {}
        self.ids: list[str] = []
        for table in tables:
            anchor = anchors.claim(f"tensor-{table.kind}-{slug(table.name)}")
            self.ids.append(anchor)
            self._rows.setdefault(table.name, {}).setdefault(table.kind, anchor)
            parts = table.name.split(".")
            for end in range(1, len(parts)):
                self._inside.setdefault(".".join(parts[:end]), {}).setdefault(table.kind, anchor)

    def binding(self, named: str) -> tuple[str, str | None]:
        """(shown, row) of a tensor as the advice names it, `name (kind)`; other words have no row."""
        name, _, kind = named.removesuffix(")").rpartition(" (")
        if name and kind in list(TensorKind):
            return name, self.find(name, (TensorKind(kind),))
        return named, self.find(named)

    def find(self, name: str, preferred: Iterable[TensorKind] = GRADIENTS) -> str | None:
        """The row of a name: of the first preferred kind that it has, else of any.

        A module without a row of its own leads to the first row inside it, its activation rather than its weights.
        None for any other name.
        """
        kinds = self._rows.get(name) or self._inside.get(name, {})
        return next((kinds[k] for k in (*preferred, *TensorKind) if k in kinds), None)

    def of_finding(self, finding: Finding) -> str | None:
        """The row a finding is about, by its subject and by the kind that its words name.

        What is about an operation between the modules leads to the table of operations.
        """
        if finding.code in _OF_OPERATIONS or (finding.code == "MP105" and "operation" in finding.evidence):
            return OPERATIONS
        words = f"{finding.name} {finding.message}".lower().replace("-", " ").replace("_", " ")
        # longest first: "activation gradient" also contains "activation"
        spoken = sorted(TensorKind, key=lambda kind: -len(kind))
        named = [kind for kind in spoken if kind.replace("_", " ") in words]
        if "gradient" in words or "grad " in words:
            named += GRADIENTS
        return self.find(finding.subject, named)
