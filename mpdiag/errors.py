"""What can go wrong, as one line and one way out.

An error carries a slug (stable, searchable), a message that says what is wrong and where, and a hint that
says what to type or change. The command line prints `error[slug]: message` and `hint: hint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpdiag.diagnosis import Diagnosis


def safe_text(error: BaseException) -> str:
    """The first line of an exception's text, also when its __str__ raises."""
    try:
        lines = str(error).strip().splitlines()
    except Exception:
        return "(its text cannot be read)"
    return lines[0] if lines else ""


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


class InterruptedScanError(MpdiagError):
    """Ctrl-C, or another signal by its name: what was seen so far is kept in `diagnosis`."""

    def __init__(self, signal: str = "") -> None:
        super().__init__(
            "interrupted",
            f"stopped by {signal or 'Ctrl-C'}",
            "`--time-budget` and `--no-verify` make a scan shorter",
        )
