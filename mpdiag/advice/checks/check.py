"""What a check is."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.diagnosis import Capture, Finding, LossScaleAdvice


class Check(ABC):
    """One diagnosis: a stable code, a kebab-case name, and `find`, which yields a Finding per occurrence."""

    code: ClassVar[str]
    name: ClassVar[str]

    @abstractmethod
    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """Every occurrence in a capture; nothing when all is well."""

    def finding(
        self,
        severity: str,
        subject: str,
        message: str,
        remedy: str,
        evidence: dict[str, float | str | None],
        snippet: str | None = None,
        source: str | None = None,
    ) -> Finding:
        """A Finding under this check's code and name."""
        return Finding(self.code, self.name, severity, subject, message, evidence, remedy, snippet, source)

    @classmethod
    def page(cls) -> str:
        """What `mpdiag explain` prints."""
        return f"{cls.code} {cls.name}\n\n{inspect.cleandoc(cls.__doc__ or '')}\n"


def number(value: float) -> str:
    """A magnitude for people: 66,246 or 0.003."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def island(module: str) -> str:
    """Code that keeps one module in FP32 inside an autocast region."""
    path = re.sub(r"\.?(?<![^.])(\d+)(?=\.|$)", r"[\1]", module)  # the items of a ModuleList or Sequential
    return (
        f"# in the forward that calls {module}\n"
        'with torch.autocast("cuda", enabled=False):\n'
        f"    y = self{path if path.startswith('[') else f'.{path}'}(x.float())\n"
    )
