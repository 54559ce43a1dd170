"""Printing a result where the reader may be gone, the disk full, or a stream replaced by the target."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from mpdiag.errors import MpdiagError

_REPLACED: list[Any] = []
"""What targets had put there, for the process's life: a wrapper of our stream's buffer closes it when it is freed."""


@contextmanager
def streams_kept() -> Iterator[None]:
    """Within it a target may replace or close stdout and stderr; afterwards they are those from before."""
    before = {"stdout": (1, sys.stdout), "stderr": (2, sys.stderr)}
    try:
        yield
    finally:
        for name, (number, kept) in before.items():
            if getattr(sys, name) is not kept:
                _REPLACED.append(getattr(sys, name))
                with contextlib.suppress(Exception):
                    _REPLACED[-1].flush()
            setattr(sys, name, kept if _can_be_written(kept) else _opened_again(number))


def _can_be_written(stream: TextIO) -> bool:
    try:
        return not stream.closed
    except ValueError:  # its buffer was taken from it
        return False


def _opened_again(number: int) -> TextIO:
    try:
        return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    except OSError:  # closed for good
        return open(os.devnull, "w", encoding="utf-8")


def printed(text: str) -> None:
    """Print a result on stdout. A reader that went away has what it wanted; raises MpdiagError for other failures."""
    try:
        click.echo(text, nl=False)
    except OSError as error:
        failure = stdout_failed(error)
        if failure is not None:
            raise failure from None


def stdout_failed(error: OSError) -> MpdiagError | None:
    """What to say of a write that failed, None for a broken pipe; nothing reaches stdout from here on.

    Not even Python at its exit may try again: it would end with a complaint and a code of its own.
    """
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if error.errno == errno.EPIPE:  # `mpdiag report x.json | head`
        return None
    return MpdiagError("output-not-writable", f"stdout: {error.strerror or error}", "write to another place")


def told(text: str, stream: TextIO | None = None) -> None:
    """A line on stderr, or on `stream`, for whoever follows; that nobody can read it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
        click.echo(text, file=stream, err=True)
