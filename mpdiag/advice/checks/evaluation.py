"""MP609: the user's evaluate() under FP16 and BF16, which may fail where the training does not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from mpdiag.advice.checks.check import TrialCheck
from mpdiag.advice.checks.fp16_runs import advised
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Advice, Finding, Trial, Verification
from mpdiag.finding import Certainty

EVALUATION_FAILS = "MP609"
_BF16 = "bf16"


class EvaluationFails(TrialCheck):
    """evaluate() gives no metric under FP16 or BF16, though the training runs and FP32 has one.

    Why it is bad: the metric cannot be judged, so the verdict goes by the loss alone. It says nothing about the
    training: an operation of evaluate() has no 16-bit kernel, or NumPy does not know BF16.

    Threshold: none; it raised, or left a name out. Warning where it is FP16's, information where it is BF16's alone.

    Remedy: cast the model's output to FP32 in evaluate(), then verify again.

    Source: the runs themselves; the error is the evidence.
    """

    code: ClassVar[str] = EVALUATION_FAILS
    name: ClassVar[str] = "evaluation-fails"
    certainty: ClassVar[Certainty] = Certainty.SEEN
    has_limit: ClassVar[bool] = False

    def find(self, verification: Verification, advice: Advice) -> Iterator[Finding]:
        """At most one, for the first format that lacks a metric; the other is named with it."""
        known = {t.seed: t.metric for t in verification.trials if t.arm == BASELINE and t.metric}
        arms = {"FP16": advised(verification), "BF16": [t for t in verification.trials if t.arm == _BF16]}
        lacking = {arm: found for arm, trials in arms.items() if (found := _lacking(trials, known))}
        if not lacking:
            return
        trial, names = next(iter(lacking.values()))
        why = trial.not_measured.get("metric", "it gave no metric") if trial.metric is None else "it gives other names"
        yield self.finding(
            "warning" if "FP16" in lacking else "info",
            "evaluate()",
            f"evaluate() gives no {' and '.join(names)} under {' and '.join(lacking)}: {why}",
            "cast the model's output to FP32 in evaluate(), for the training itself went well, and verify again",
            {"error": why, "seed": trial.seed},
            "y = model(x).float()  # in evaluate()\n",
        )


def _lacking(trials: list[Trial], known: dict[int, dict[str, float]]) -> tuple[Trial, list[str]] | None:
    """The first run that trained to its end without a metric that FP32 has with its seed, and which."""
    for trial in trials:
        names = [name for name in known.get(trial.seed, {}) if name not in (trial.metric or {})]
        if names and not trial.error:
            return trial, names
    return None
