"""Which FP16 runs a finding of the verification is about: those with the plan's islands, and those that need them."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mpdiag.advice.checks.check import TrialCheck, number
from mpdiag.diagnosis import Advice, Finding, Trial, Verification

ARMS = ("fp16-plan", "fp16")  # the arms that train as mpdiag advises, the one with FP32 islands first
MENDED = "mended_by_plan"  # in the evidence: plain FP16 does it, and the plan's runs do not


def advised(verification: Verification) -> list[Trial]:
    """The runs of the FP16 arm that the advice is about: with the islands where the verdict wants them."""
    return runs_of(ARMS[0] if verification.train_with == ARMS[0] else ARMS[1], verification)


def runs_of(arm: str, verification: Verification) -> list[Trial]:
    """The runs of one arm."""
    return [trial for trial in verification.trials if trial.arm == arm]


class Fp16Check(TrialCheck):
    """A rule about FP16's runs: those as advised, and plain FP16's too where the plan is there to mend them."""

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one for each of the two, and plain FP16's is a warning where the plan's runs are sound."""
        planned, plain = (runs_of(arm, verification) for arm in ARMS)
        wanted = verification.train_with == ARMS[0]
        with_plan = self.of(planned, verification, advice) if planned else None
        sound = bool(planned) and with_plan is None and all(map(_sound, planned))
        if wanted and with_plan is not None:
            yield with_plan
        found = self.of(plain, verification, advice) if plain else None
        if found is None:
            return
        if wanted:
            subject = f"{found.subject} without the plan"
            found = replace(found, subject=subject, message=f"without the plan's FP32 modules, {found.message}")
        if sound:
            told = f"{found.message}; with the plan's modules in FP32 it does not happen"
            severity = "warning" if wanted and found.severity == "error" else found.severity
            found = replace(found, severity=severity, message=told, evidence={**found.evidence, MENDED: True})
        yield found

    @abstractmethod
    def of(self, runs: Sequence[Trial], verification: Verification, advice: Advice) -> Finding | None:
        """What these runs of one arm show."""


def _sound(trial: Trial) -> bool:
    return trial.error is None and all(map(math.isfinite, trial.losses))


def cause(trials: Sequence[Trial]) -> tuple[str, str | None]:
    """(what overflowed first in these runs, in words; its module), or ("" or why that is not known, None)."""
    seen = [trial.overflow for trial in trials if trial.overflow is not None]
    first = next((each for each in seen if each.module is not None), None)
    if first is None or first.module is None:
        return (f"what overflows is not known: {seen[0].reason}" if seen else ""), None
    name = said(first.module)
    if first.abs_max_fp32 is None:
        return f"the first output that is not finite is that of {name}", first.module
    return (
        f"the first output that is not finite is that of {name}, which reaches {number(first.abs_max_fp32)} in FP32",
        first.module,
    )


def said(module: str) -> str:
    """A name in a sentence: an index alone would be taken for a number."""
    return f'module "{module}"' if module.replace(".", "").isdecimal() else module
