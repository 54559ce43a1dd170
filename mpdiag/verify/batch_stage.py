"""The largest batch of every arm, searched in a time of its own: nothing is taken from the time budget for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.measure.largest_batch import find_largest_batch
from mpdiag.settings import LARGEST_BATCH_SECONDS
from mpdiag.target import Job
from mpdiag.training.precision import Precision
from mpdiag.verify.costs_asked import CostsAsked

Report = Callable[[str], None]


def search_seconds(arms: int, time_budget_seconds: float) -> float:
    """For all arms together: as much again as the time budget, at least LARGEST_BATCH_SECONDS an arm."""
    return max(time_budget_seconds, LARGEST_BATCH_SECONDS * arms)


def largest_batches(
    job: Job, arms: dict[str, Precision], seed: int, device: torch.device, asked: CostsAsked, report: Report
) -> Iterator[LargestBatch]:
    """One record an arm, each as it is found; what an arm leaves of its seconds the next ones have."""
    until = time.monotonic() + search_seconds(len(arms), asked.time_budget_seconds)
    for place, (name, precision) in enumerate(arms.items()):
        share = (until - time.monotonic()) / (len(arms) - place)
        report(f"search the largest batch that {name} can train, {share:.0f} s")
        yield find_largest_batch(job, precision, seed, device, share, asked.memory_limit_bytes, report, name)
