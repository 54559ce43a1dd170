"""What of the training runs' time went into building models and into the metric: more steps do not take more of it."""

from __future__ import annotations

from mpdiag.target import Job


class RunSeconds:
    """Seconds by part ("build", "evaluate"), from here on, of the rehearsal and the training runs, in `parts`."""

    def __init__(self, job: Job) -> None:
        self._job, self._before, self._runs = job, dict(job.seconds), 0
        self.parts: dict[str, float] = {}

    def look(self, runs: int) -> None:
        """Note the parts where another run has ended: what costs are measured with later builds models too."""
        if runs != self._runs:
            self._runs = runs
            self.parts = {part: spent - self._before.get(part, 0.0) for part, spent in self._job.seconds.items()}
