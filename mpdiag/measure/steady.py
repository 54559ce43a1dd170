"""A run in its steady state: warm, batches on the device, nothing observed; what every measurement steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import torch

from mpdiag.target import Job, Start
from mpdiag.target.batches import samples_in
from mpdiag.training.precision import Precision, in_force
from mpdiag.training.session import Session, build_session

ON_DEVICE_BATCHES = 8  # distinct batches rotated through a timed run; more would only fill memory
LARGEST_SCALE = torch.finfo(torch.float32).max  # a GradScaler does not grow beyond it


class SteadyRun:
    """One arm, ready to be stepped again and again: no hooks, no reading of the loss, no loader.

    batches: those on the device, which take turns. batch_sizes: theirs, empty where no tensor tells one.
    """

    def __init__(self, session: Session, batches: list[Any], batch_dim: int = 0) -> None:
        self.session = session
        sizes = [samples_in(batch, batch_dim) for batch in batches]
        self.batch_sizes = tuple(size for size in sizes if size is not None) if None not in sizes else ()
        self.batches = batches
        self._batches = cycle(batches)

    @property
    def samples(self) -> int | float | None:
        """Of one step, the mean over the batches; a whole number where they are of one size, None where not known."""
        sizes = self.batch_sizes
        return None if not sizes else fmean(sizes) if len(set(sizes)) > 1 else sizes[0]

    def step(self) -> None:
        """One iteration; only for inside `in_force_again`."""
        self.session.step(next(self._batches))

    def skips_watched(self) -> AbstractContextManager[Callable[[], bool]]:
        """`skips_watched` of this run's scaler; for around a block of steps."""
        return skips_watched(self.session.scaler)

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
            run = SteadyRun(session, placed, start.batch_dim)
            for _ in range(warmup_steps):
                run.step()
        yield run


@contextmanager
def skips_watched(scaler: torch.amp.GradScaler | None) -> Iterator[Callable[[], bool]]:
    """Yields a function: has the scaler skipped a step since? It synchronizes, as does the beginning; steps do not.

    Compared is what the scaler's scale and count of steps would be had none been skipped. The scale alone cannot
    tell: where it grows and falls again it ends where it began. The optimizers cannot either: a fused one is called
    for every step and skips inside its kernel.
    """
    if scaler is None or not scaler.is_enabled():
        yield lambda: False
        return
    before, updates, update = scaler.state_dict(), 0, scaler.update

    def counted(*given: Any) -> None:
        nonlocal updates
        updates += 1
        update(*given)

    def skipped() -> bool:
        after = scaler.state_dict()
        return (after["scale"], after["_growth_tracker"]) != _unskipped(before, updates)

    scaler.update = counted  # type: ignore[method-assign, assignment] # for this block only
    try:
        yield skipped
    finally:
        del scaler.update  # the class's own is back


def _unskipped(state: dict[str, Any], updates: int) -> tuple[float, int]:
    """(scale, steps since it last changed) of a scaler after so many updates, none of them for a skipped step."""
    scale, since = state["scale"], state["_growth_tracker"] + updates
    grown, since = divmod(since, state["growth_interval"])
    for _ in range(grown):
        if scale * state["growth_factor"] <= LARGEST_SCALE:
            scale *= state["growth_factor"]
    return scale, since
