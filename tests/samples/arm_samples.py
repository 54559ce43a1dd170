"""Made-up runs and comparisons for the tests of the verification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpdiag.diagnosis import Comparison, LossScaleAdvice, Trial
from mpdiag.verify.compare import compare_arms

SCALE = LossScaleAdvice(14, "dynamic", 2, 14, {}, 0.1, 0.0, 0.1, 0.0, "", "", 2000)


def trial(arm: str, seed: int, loss: float | Sequence[float] = 1.0, metric: Any = None, **more: Any) -> Trial:
    """A run of four steps with a constant loss, or with the losses given."""
    losses = (float(loss),) * 4 if isinstance(loss, int | float) else tuple(loss)
    named = {"accuracy": metric} if isinstance(metric, int | float) else metric
    return Trial(arm, arm.upper(), True, seed, len(losses), losses, named, **more)


def pairs(base: Sequence[float], other: Sequence[float], arm: str = "fp16") -> list[Trial]:
    made = [trial("fp32", seed, loss) for seed, loss in enumerate(base)]
    return made + [trial(arm, seed, loss) for seed, loss in enumerate(other)]


def metrics(base: Sequence[float], other: Sequence[float]) -> list[Trial]:
    made = [trial("fp32", seed, 1 + seed / 10, value) for seed, value in enumerate(base)]
    return made + [trial("fp16", seed, 1 + seed / 10, value) for seed, value in enumerate(other)]


def coarse(base: Sequence[float], other: Sequence[float], more: Sequence[float] = ()) -> list[Trial]:
    """Runs whose losses differ, with a metric that moves in steps; `more`: a control's values."""
    made = [trial("fp32", seed, 1 + seed / 10, value) for seed, value in enumerate(base)]
    made += [trial("fp16", seed, 1.0001 + seed / 10, value) for seed, value in enumerate(other)]
    return made + [trial("control", seed, 2 + seed / 10, value) for seed, value in enumerate(more)]


def one(trials: Sequence[Trial], quantity: str = "loss", arm: str = "fp16", higher: bool = True) -> Comparison:
    found = [c for c in compare_arms(trials, higher) if c.quantity == quantity and c.candidate == arm]
    assert len(found) == 1
    return found[0]


def judged(arm: str, verdict: str, quantity: str = "loss", reason: str | None = None, **more: Any) -> Comparison:
    fields: dict[str, Any] = {"difference": 0.25, "interval": (0.1, 0.4), "margin": 0.05} | more
    return Comparison(
        quantity=quantity, unit="", baseline="fp32", candidate=arm, baseline_value=1.0, candidate_value=1.25, seeds=3,
        verdict=verdict, reason=reason, **fields,
    )  # fmt: skip
