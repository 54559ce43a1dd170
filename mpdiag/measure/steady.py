"""A run in its steady state: warm, batches on the device, nothing observed; what every measurement steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from typing import Any

import torch

from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.training.precision import Precision, in_force
from mpdiag.training.session import Session, build_session

ON_DEVICE_BATCHES = 8  # distinct batches rotated through a timed run; more would only fill memory


class SteadyRun:
    """One arm, ready to be stepped again and again: no hooks, no reading of the loss, no loader.

    samples: the batch size, None where no tensor tells it. batches: those on the device.
    """

    def __init__(self, session: Session, batches: list[Any]) -> None:
        self.session = session
        self.samples = samples_in(batches[0])
        self.batches = batches
        self._batches = cycle(batches)

    def step(self) -> None:
        """One iteration; only for inside `in_force_again`."""
        self.session.step(next(self._batches))

    @property
    def loss_scale(self) -> float:
        """The scaler's present scale (synchronizes); 1 without a scaler. It falls where a step was skipped."""
        return 1.0 if self.session.scaler is None else self.session.scaler.get_scale()

    @contextmanager
    def in_force_again(self) -> Iterator[Callable[[], None]]:
        """Put this arm's precision in force for a block of steps, and take it back: arms can take turns."""
        with in_force(self.session.precision, self.session.device) as region:
            self.session.region = region
            yield self.step


@contextmanager
def steady_run(
    job: Job, start: Start, precision: Precision, device: torch.device, warmup_steps: int
) -> Iterator[SteadyRun]:
    """Build an arm from a start and warm it up. Raises MpdiagError with what the user's code raised."""
    with ExitStack() as stack:
        with in_force(precision, device) as region:
            session = stack.enter_context(build_session(job, start, precision, device, region))
            placed = [session.place(batch) for batch in islice(start.batches, ON_DEVICE_BATCHES)]
            run = SteadyRun(session, placed)
            for _ in range(warmup_steps):
                run.step()
        yield run
