"""The processes that measure each arm's memory, at work beside this one until their result is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mpdiag.costs.memory import MemoryUse
from mpdiag.device.memory import CudaAllocator
from mpdiag.measure.child import end_children
from mpdiag.measure.memory import memory_of_arms
from mpdiag.target import Job
from mpdiag.training.precision import Precision

CROWDED = 0.8  # of the card: children run beside the training only where all fit well

Report = Callable[[str], None]


class MemoryStage:
    """Begun once, asked once, or stopped. begun: whether there is a result to wait for."""

    def __init__(self, job: Job, seed: int, device: torch.device) -> None:
        self._job, self._seed, self._device = job, seed, device
        self._pool = ThreadPoolExecutor(1)
        self._stopped = threading.Event()
        self._found: Future[dict[str, MemoryUse]] | None = None

    @property
    def begun(self) -> bool:
        """Whether the processes are at work, or have ended."""
        return self._found is not None

    def begin_beside(self, arms: dict[str, Precision], samples: int | None, seconds: float, report: Report) -> None:
        """Begin while the arms are trained here, where the card holds all of them well; else not at all.

        A peak is the same with company; a time would not be, so nothing is timed before they have ended.
        """
        allocator = CudaAllocator(self._device)
        _, total = allocator.card()
        own = allocator.peaks().reserved_bytes
        if own * (len(arms) + 1) < CROWDED * total:
            self.begin(arms, samples, seconds, report, own)

    def begin(
        self, arms: dict[str, Precision], samples: int | None, seconds: float, report: Report,
        expected_bytes: int | None = None,
    ) -> None:  # fmt: skip
        """Begin now. expected_bytes: what an arm takes, None where that is not known."""
        job, seed, device, stopped = self._job, self._seed, self._device, self._stopped
        given = (job, arms, seed, device, seconds, samples, report, expected_bytes, stopped)
        self._found = self._pool.submit(memory_of_arms, *given)

    def result(self) -> tuple[MemoryUse, ...]:
        """Wait for all of them. Raises whatever starting a process raises."""
        assert self._found is not None
        return tuple(self._found.result().values())

    def stop(self) -> None:
        """End the processes: they hold the GPU, and this process at its exit."""
        self._stopped.set()
        end_children()
        self.close()

    def close(self) -> None:
        """Nothing more will be begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)
