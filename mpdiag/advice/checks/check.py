"""What a check is."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

from mpdiag.diagnosis import Advice, Capture, Diagnosis, Finding, LossScaleAdvice, Verification
from mpdiag.finding import Certainty


class Rule(ABC):
    """One diagnosis: a stable code and a kebab-case name. Its docstring is its page; its `find` is a subclass's.

    certainty: what its findings rest on; a finding that rests on more says so itself. has_limit: whether a number
    decides, which then stands in each finding's evidence as `limit`; False where something is there or is not.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    certainty: ClassVar[Certainty]
    has_limit: ClassVar[bool] = True

    def finding(
        self,
        severity: str,
        subject: str,
        message: str,
        remedy: str,
        evidence: dict[str, bool | int | float | str | None],
        snippet: str | None = None,
        source: str | None = None,
        certainty: Certainty | None = None,
    ) -> Finding:
        """A Finding under this check's code and name; certainty: where it is not the check's own."""
        sure = certainty or self.certainty
        return Finding(self.code, self.name, severity, subject, message, evidence, remedy, snippet, source, sure)

    @classmethod
    def page(cls) -> str:
        """What `mpdiag explain` prints."""
        about = inspect.cleandoc(cls.__doc__ or "")
        return f"{cls.code} {cls.name}\n\n{about}\n\nHow sure: {cls.certainty}: {cls.certainty.meaning}.\n"


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


def owner(parameter: str) -> str:
    """The module that holds a parameter, by their names; a parameter of the model itself has none, and stays."""
    return parameter.rpartition(".")[0] or parameter


def island(module: str) -> str:
    """Code that keeps one module in FP32 inside an autocast region."""
    path = re.sub(r"\.?(?<![^.])(\d+)(?=\.|$)", r"[\1]", module)  # the items of a ModuleList or Sequential
    return (
        f"# in the forward that calls {module}\n"
        'with torch.autocast("cuda", enabled=False):\n'
        f"    y = self{path if path.startswith('[') else f'.{path}'}(x.float())\n"
    )
