"""A diagnosis in the making, of which every failure keeps what was seen until then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from mpdiag.diagnosis import Capture, Diagnosis
from mpdiag.errors import InterruptedScanError, MpdiagError, UserCodeError
from mpdiag.unforeseen import as_error

KEEP_SECONDS = 5.0  # writing a large diagnosis takes up to a second


class Draft:
    """The diagnosis as it grows: `checkpoint` gets it after each stage. before: what it is to stand in for."""

    def __init__(
        self, diagnosis: Diagnosis, checkpoint: Callable[[Diagnosis], None], before: Diagnosis | None = None
    ) -> None:
        self.before = before
        self.diagnosis = diagnosis
        self._checkpoint = checkpoint
        self._kept = 0.0
        self.parts: list[tuple[list[int], Capture]] = []  # where several points of training were observed
        self.finish: Callable[[], None] = self.restore  # what the running stage still has to hand over

    def restore(self) -> None:
        """Be again what this stands in for, if anything: with nothing new, what was found before is worth more."""
        if self.before is not None:
            self.diagnosis = self.before

    def update(self, **parts: object) -> None:
        """Add parts by their field names, choose the format anew from all that is known, and checkpoint."""
        from mpdiag.advice.format_choice import with_format_choice

        known = replace(self.diagnosis, **parts)  # type: ignore[arg-type] # field names, checked by tests
        self.diagnosis = with_format_choice(known)
        self._checkpoint(self.diagnosis)
        self._kept = time.perf_counter()

    def keep(self, so_far: Callable[[], Diagnosis]) -> None:
        """Checkpoint what a long stage has so far, at most every few seconds: a killed process leaves that much."""
        if time.perf_counter() - self._kept > KEEP_SECONDS:
            self._checkpoint(so_far())
            self._kept = time.perf_counter()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how many seconds a stage took, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = {**self.diagnosis.elapsed_seconds, stage: round(time.perf_counter() - began, 3)}
            self.diagnosis = replace(self.diagnosis, elapsed_seconds=seconds)

    def apart(self, stage: str, parts: Mapping[str, float]) -> None:
        """Note parts of a stage's seconds by themselves, those that took any."""
        spent = self.diagnosis.elapsed_seconds
        told = {part: round(seconds, 3) for part, seconds in parts.items() if round(seconds, 3) > 0}
        rest = {stage: round(max(spent.get(stage, 0.0) - sum(told.values()), 0.0), 3)} if told else {}
        self.diagnosis = replace(self.diagnosis, elapsed_seconds={**spent, **rest, **told})

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Whatever stops the scan becomes an MpdiagError whose `diagnosis` holds what was seen until then."""
        try:
            yield
        except BaseException as stopped:
            error = _as_error(stopped)
            self.finish()
            self.diagnosis = replace(self.diagnosis, reason=f"{error.slug}: {error.message}", hint=_way_out(error))
            if self.diagnosis.target is not None:
                error.diagnosis = self.diagnosis
            if error is stopped:
                raise
            raise error from stopped


def _way_out(error: MpdiagError) -> str | None:
    """What to do first, for a report, which shows no traceback; None for who stopped it himself."""
    if isinstance(error, InterruptedScanError):
        return None
    if isinstance(error, UserCodeError) and error.slug == "user-code":
        return f"mend {error.line or 'the target file'}, which raises, and scan again: {error.message}"
    return error.hint


def _as_error(stopped: BaseException) -> MpdiagError:
    """What stopped a scan, in our terms."""
    if isinstance(stopped, MpdiagError):
        return stopped
    if isinstance(stopped, KeyboardInterrupt):
        return InterruptedScanError(str(stopped))
    return as_error(stopped)
