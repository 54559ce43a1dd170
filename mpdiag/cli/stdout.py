"""Printing a result where the reader may be gone or the disk full."""

from __future__ import annotations

import contextlib
import errno
import os

import click

from mpdiag.errors import MpdiagError


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


def told(text: str) -> None:
    """A line on stderr for whoever follows; that nobody can read it is no reason to stop."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)
