"""The time that a stage may take, and the words for a time budget that was cut."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping


class Deadline:
    """Counts down from `seconds`. cut: one sentence for each thing that was left out for want of time."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds = seconds
        self.cut: list[str] = []
        self._until = time.perf_counter() + seconds

    @property
    def left(self) -> float:
        """Seconds; below zero once it is over."""
        return self._until - time.perf_counter()


def short(seconds: float) -> str:
    """Seconds as one reads them: 0.8 s, 23 s."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def left_of(whole_seconds: float, left_seconds: float, spent: Mapping[str, float]) -> str:
    """What is left of a time budget and where the rest went, such as "the time budget of 27.3 s had 0.8 s left ...".

    spent: seconds by what took them, or is to have them.
    """
    told = ", ".join(f"{what} {short(seconds)}" for what, seconds in spent.items() if seconds >= 0.05)
    had = f"the time budget of {whole_seconds:g} s had {short(max(left_seconds, 0.0))} left for training"
    return f"{had} ({told})" if told else had
