"""Writing results: whole or not at all, through links, and never over a file that is not ours."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from mpdiag.errors import MpdiagError, UsageError

_HINT = "choose another place with --out, --json or --html"
_NOT_REGULAR = "is not a regular file"
_HANDED_OVER = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")  # what a shell makes of <(...) and |, with a writer to it


def writable(path: Path, asked: bool) -> Path:
    """Where a result will go, absolute and with links followed; its folder is made and tried before any work is done.

    asked: the user named this very file. Raises UsageError `output-not-writable`, or `output-exists` when a file
    nobody named is in the way and was not written by mpdiag.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        head = b""
        if path.exists():
            if path.is_dir():
                raise OSError(0, "is a folder")
            if not stat.S_ISREG(path.stat().st_mode):  # a pipe, a device: not to be replaced by a file
                raise OSError(0, _NOT_REGULAR)
            with path.open("rb") as stream:
                head = stream.read(4096)
    except OSError as error:
        raise UsageError("output-not-writable", f"{path}: {error.strerror or error}", _HINT) from None
    if not asked and head.strip() and not _ours(head):
        raise UsageError("output-exists", f"{path} exists and was not written by mpdiag", _HINT)
    return path


def readable(path: Path) -> Path:
    """A file to be read. Raises UsageError `no-such-file` for a pipe that has a name, or a device: it may never end."""
    handed_over = str(path).startswith(_HANDED_OVER)
    with contextlib.suppress(OSError):  # not there: who reads it says so
        mode = path.stat().st_mode
        if not (handed_over or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UsageError("no-such-file", f"{path}: {_NOT_REGULAR}", "give a JSON written by `mpdiag scan`")
    return path


def apart(*paths: Path | None) -> None:
    """Raise UsageError `output-clash` when two of these are one file: a result would destroy another, or its source."""
    seen: set[str] = set()
    for path in paths:
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in seen:
            raise UsageError("output-clash", f"{path} would be written over", _HINT)
        seen.add(real)


def _ours(head: bytes) -> bool:
    return head.startswith(b'{\n "schema_version"') or b'<meta name="generator" content="mpdiag' in head


def write(path: Path, text: str) -> Path:
    """Write a file in one move, so that a reader or a kill never sees half of it; a folder that is gone is made again.

    Gives back the path. Raises MpdiagError `output-not-writable`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # a short name of its own: one made from path.name could be too long where path.name itself is not
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            # a path or name that is no valid text still has to be written somehow
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        hint = f"make room, or {_HINT}"
        raise MpdiagError("output-not-writable", f"{path}: {error.strerror or error}", hint) from None
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
