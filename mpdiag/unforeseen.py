"""An exception that nobody expected: our own fault, unless the user's code raised it in the midst of ours."""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path

from mpdiag.errors import MpdiagError, UserCodeError, place_of, safe_text

_OURS = str(Path(__file__).resolve().parent)
_INSTALLED = ("site-packages", "dist-packages")


def as_error(unforeseen: BaseException) -> MpdiagError:
    """The exception in our terms: `user-code` if the user's own code lies beneath our last frame, else `internal`.

    So does a signal handler of theirs (a timeout by SIGALRM): Python runs it wherever the main thread just is.
    """
    frames = traceback.extract_tb(unforeseen.__traceback__)
    last = max((i for i, frame in enumerate(frames) if frame.filename.startswith(_OURS)), default=-1)
    beneath = frames[last + 1 :]
    theirs = [frame for frame in beneath if not _is_library(frame.filename)]
    if not theirs:
        return MpdiagError(
            "internal",
            f"{type(unforeseen).__name__} in mpdiag: {safe_text(unforeseen)}",
            "please report it with the traceback that MPDIAG_DEBUG=1 shows",
        )
    lines = [*traceback.format_list(beneath), *traceback.format_exception_only(unforeseen)]
    return UserCodeError(
        "user-code",
        f"{type(unforeseen).__name__} while running your {theirs[-1].name}(): {safe_text(unforeseen)}",
        "the traceback above is your code's; mend it there",
        "".join(["Traceback (most recent call last):\n", *lines]),
        place_of(theirs[-1]),
    )


def _is_library(file: str) -> bool:
    torch = getattr(sys.modules.get("torch"), "__file__", None)  # built from source it lies anywhere
    folders = [sysconfig.get_path("stdlib"), *([str(Path(torch).parent)] if torch else [])]
    return file.startswith(("<", *folders)) or not set(_INSTALLED).isdisjoint(Path(file).parts)
