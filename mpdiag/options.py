"""What a scan may be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from mpdiag.drift import observed_parts
from mpdiag.errors import UsageError
from mpdiag.settings import CAPTURE_STEPS, DEPTHS, SEEDS, TIME_BUDGET_SECONDS, VERIFY_STEPS


@dataclass(frozen=True)
class ScanOptions:
    """What a scan may be told; the defaults and their reasons are in settings.py."""

    steps: int = CAPTURE_STEPS
    seed: int = 0
    device: str = "auto"
    verify: bool = True
    verify_steps: int = VERIFY_STEPS
    seeds: int = SEEDS
    time_budget_seconds: float = TIME_BUDGET_SECONDS
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    at: tuple[int, ...] = (0,)
    skip: int = 0
    depth: str = DEPTHS[0]
    start_from: str | Path | None = None
    costs: bool = True
    largest_batch: bool = False
    memory_limit_bytes: int | None = None

    @property
    def parts(self) -> list[range]:
        """The training steps to observe."""
        return observed_parts(self.steps, self.at, self.skip)

    @property
    def last_step(self) -> int:
        """The last of them."""
        return max(part[-1] for part in self.parts)

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 1,
            "seed": not 0 <= self.seed < 2**64,  # what torch takes
            "verify_steps": self.verify_steps < 1,
            "seeds": self.seeds < 1,
            "time_budget_seconds": not 0 < self.time_budget_seconds < math.inf,
            "device": self.device not in ("auto", "cpu", "cuda"),
            "depth": self.depth not in DEPTHS,
            "at": not self.at or min(self.at) < 0,
            "skip": self.skip < 0,
        }
        for name, bad in wrong.items():
            if bad:
                message = f"{name} cannot be {getattr(self, name)!r}"
                raise UsageError("bad-option", message, "counts start at 1, a budget is a finite number of seconds")
