"""Which costs a verification is to measure."""

from __future__ import annotations

from dataclasses import dataclass

from mpdiag.settings import TIME_BUDGET_SECONDS


@dataclass(frozen=True)
class CostsAsked:
    """What to measure. costs: anything at all. memory_limit_bytes: of the card to search the largest batch for.

    time_budget_seconds: the whole of it, as asked for: that search has as much again. controls: also what pure FP16
    costs, which is no candidate.
    """

    costs: bool = True
    largest_batch: bool = False
    memory_limit_bytes: int | None = None
    time_budget_seconds: float = TIME_BUDGET_SECONDS
    controls: bool = False
