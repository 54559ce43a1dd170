"""A diagnosis in the making, of which every failure keeps what was seen until then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from mpdiag.diagnosis import Capture, Diagnosis
from mpdiag.errors import InterruptedScanError, MpdiagError, safe_text


class Draft:
    """The diagnosis as it grows: `checkpoint` gets it after each stage."""

    def __init__(self, diagnosis: Diagnosis, checkpoint: Callable[[Diagnosis], None]) -> None:
        self.diagnosis = diagnosis
        self._checkpoint = checkpoint
        self.parts: list[tuple[list[int], Capture]] = []  # where several points of training were observed
        self.finish: Callable[[], None] = lambda: None  # what the running stage still has to hand over

    def update(self, **parts: object) -> None:
        """Add parts by their field names, and checkpoint."""
        self.diagnosis = replace(self.diagnosis, **parts)  # type: ignore[arg-type] # field names, checked by tests
        self._checkpoint(self.diagnosis)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how many seconds a stage took, however it ends."""
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = {**self.diagnosis.elapsed_seconds, stage: round(time.perf_counter() - began, 3)}
            self.diagnosis = replace(self.diagnosis, elapsed_seconds=seconds)

    @contextmanager
    def kept_on_failure(self) -> Iterator[None]:
        """Whatever stops the scan becomes an MpdiagError whose `diagnosis` holds what was seen until then."""
        try:
            yield
        except BaseException as stopped:
            error = _as_error(stopped)
            self.finish()
            self.diagnosis = replace(self.diagnosis, reason=f"{error.slug}: {error.message}")
            if self.diagnosis.target is not None:
                error.diagnosis = self.diagnosis
            if error is stopped:
                raise
            raise error from stopped


def _as_error(stopped: BaseException) -> MpdiagError:
    """What stopped a scan, in our terms; anything unforeseen is our own fault and says so."""
    if isinstance(stopped, MpdiagError):
        return stopped
    if isinstance(stopped, KeyboardInterrupt):
        return InterruptedScanError()
    return MpdiagError(
        "internal",
        f"{type(stopped).__name__} in mpdiag: {safe_text(stopped)}",
        "please report it with the traceback that MPDIAG_DEBUG=1 shows",
    )
