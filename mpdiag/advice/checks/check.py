"""What a check is."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.diagnosis import Advice, Capture, Diagnosis, Finding, LossScaleAdvice, Verification


class Rule(ABC):
    """One diagnosis: a stable code and a kebab-case name. Its docstring is its page; its `find` is a subclass's."""

    code: ClassVar[str]
    name: ClassVar[str]

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


class Check(Rule):
    """A rule that the FP32 capture answers; `find` yields a Finding per occurrence, nothing when all is well."""

    @abstractmethod
    def find(self, capture: Capture, loss_scale: LossScaleAdvice) -> Iterator[Finding]:
        """Every occurrence in a capture."""


class TrialCheck(Rule):
    """A rule that the verification's runs answer."""

    @abstractmethod
    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """Every occurrence in a verification."""


class RunCheck(Rule):
    """A rule that takes more than one stage of a scan: the machine, the capture and what was measured."""

    @abstractmethod
    def find(self, diagnosis: Diagnosis) -> Iterator[Finding]:
        """Every occurrence in a diagnosis."""


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
