"""What can go wrong, as one line and one way out.

An error carries a slug (stable, searchable), a message that says what is wrong and where, and a hint that
says what to type or change. The command line prints `error[slug]: message` and `hint: hint`.
"""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis


LONG_TEXT = 300  # characters: torch names every backend there is in one line
_NO_KERNEL = ". This could be because the operator doesn't exist for this backend"  # ... and 25 lines of those that do


def safe_text(error: BaseException) -> str:
    """The first line of an exception's text, of a long one its first sentences; also when its __str__ raises."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        return "(its text cannot be read)"
    return _shortened(lines[0].partition(_NO_KERNEL)[0]) if lines else ""


def without_backends(text: str) -> str:
    """The text without torch's list of the backends that do have an operator."""
    head, found, _ = text.partition(_NO_KERNEL)
    return f"{head}\n" if found else text


def _shortened(line: str) -> str:
    """As many whole sentences as LONG_TEXT has room for, the first one always."""
    if len(line) <= LONG_TEXT:
        return line
    first, *others = line.split(". ")
    for sentence in others:
        if len(first) + len(sentence) + 2 > LONG_TEXT:
            return first
        first = f"{first}. {sentence}"
    return first


class MpdiagError(Exception):
    """An expected failure: exit code 3, could not do its work.

    `diagnosis` is what had been seen by then, or None; the command line still writes it.
    """

    exit_code = 3

    def __init__(self, slug: str, message: str, hint: str) -> None:
        super().__init__(message)
        self.slug = slug
        self.message = message
        self.hint = hint
        self.diagnosis: Diagnosis | None = None

    @property
    def placed(self) -> str:
        """The message, with where it happened if that is known apart from it."""
        return self.message


class UsageError(MpdiagError):
    """What was asked for cannot be: exit code 2."""

    exit_code = 2


class UserCodeError(MpdiagError):
    """The user's own code raised; `traceback` is theirs alone, without a frame of ours; line: its file:line."""

    def __init__(self, slug: str, message: str, hint: str, traceback: str, line: str | None = None) -> None:
        super().__init__(slug, message, hint)
        self.traceback = traceback
        self.line = line

    @property
    def placed(self) -> str:
        """The message with the line that raised, for records, which hold no traceback."""
        return self.message if self.line is None else f"{self.message}, at {self.line}"


def reason_of(error: BaseException) -> str:
    """An exception as the reason why something is missing: an expected failure's message, else its kind and words."""
    return error.message if isinstance(error, MpdiagError) else f"{type(error).__name__}: {safe_text(error)}"


class InterruptedScanError(MpdiagError):
    """Ctrl-C, or another signal by its name: what was seen so far is kept in `diagnosis`."""

    def __init__(self, signal: str = "") -> None:
        super().__init__(
            "interrupted",
            f"stopped by {signal or 'Ctrl-C'}",
            "`--time-budget` and `--no-verify` make a scan shorter",
        )


def place_of(frame: traceback.FrameSummary) -> str:
    """file:line of a frame, from the working folder if it is below it."""
    with suppress(ValueError, OSError):  # another folder, or one that is gone
        return f"{Path(frame.filename).relative_to(Path.cwd())}:{frame.lineno}"
    return f"{frame.filename}:{frame.lineno}"
