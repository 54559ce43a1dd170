"""What a scan may be told."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mpdiag.drift import observed_parts
from mpdiag.errors import UsageError
from mpdiag.settings import (
    CAPTURE_STEPS,
    DEPTHS,
    MOST_SEEDS,
    MOST_STEPS,
    SEEDS,
    TIME_BUDGET_SECONDS,
    VERIFY_STEPS,
)

WITHIN = f"counts start at 1, steps end at {MOST_STEPS:,}, seeds at {MOST_SEEDS:,}; a budget is finite"


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
    control_costs: bool = False

    @property
    def parts(self) -> list[range]:
        """The training steps to observe."""
        return observed_parts(self.steps, self.at, self.skip)

    @property
    def last_step(self) -> int:
        """The last of them."""
        return max(part[-1] for part in self.parts)

    @property
    def batch_searched(self) -> bool:
        """Whether the largest batch is asked for; a limit of memory is meant for nothing else."""
        return self.largest_batch or self.memory_limit_bytes is not None

    def __post_init__(self) -> None:
        wrong = {
            "steps": not 1 <= self.steps <= MOST_STEPS,
            "seed": not 0 <= self.seed < 2**64,  # what torch takes
            "verify_steps": not 1 <= self.verify_steps <= MOST_STEPS,
            "seeds": not 1 <= self.seeds <= MOST_SEEDS,
            "time_budget_seconds": not 0 < self.time_budget_seconds < math.inf,
            "device": self.device not in ("auto", "cpu", "cuda"),
            "depth": self.depth not in DEPTHS,
            "at": not self.at or min(self.at) < 0,
            "skip": not 0 <= self.skip <= MOST_STEPS,
            "memory_limit_bytes": self.memory_limit_bytes is not None and self.memory_limit_bytes < 1,
        }
        for name, bad in wrong.items():
            if bad:
                message = f"{name} cannot be {getattr(self, name)!r}"
                raise UsageError("bad-option", message, WITHIN)
        last = max(self.at) + (self.steps - 1) * (self.skip + 1)
        if last >= MOST_STEPS:
            message = f"the last step to observe would be {last:,}; {MOST_STEPS:,} steps of training are the most"
            raise UsageError("bad-option", message, "lower --steps, --at or --skip")
        if self.batch_searched and not (self.costs and self.verify):
            off = "--no-verify" if self.costs else "--no-costs"
            message = f"the largest batch was asked for, and {off} leaves out what finds it"
            raise UsageError("options-clash", message, f"drop {off}, or --largest-batch and --memory-limit")
        if self.control_costs and not (self.costs and self.verify):
            off = "--no-verify" if self.costs else "--no-costs"
            message = f"what pure FP16 costs was asked for, and {off} leaves out what measures it"
            raise UsageError("options-clash", message, f"drop {off}, or --control-costs")


def with_keywords(options: ScanOptions, changed: dict[str, Any]) -> ScanOptions:
    """The options with these changed by name. Raises UsageError `bad-option` for a name that is none."""
    known = [field.name for field in fields(ScanOptions)]
    for name in changed:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UsageError("bad-option", f"there is no option {name}", f"{hint}they are {', '.join(known)}")
    return replace(options, **changed)


def in_python(function: str, subject: str, options: ScanOptions) -> str:
    """The call as it would be typed in Python, with the options that are not at their defaults."""
    default = ScanOptions()
    said = [(field.name, getattr(options, field.name)) for field in fields(options)]
    told = [f"{name}={value!r}" for name, value in said if value != getattr(default, name)]
    return f"mpdiag.{function}({', '.join([repr(subject), *told])})"
