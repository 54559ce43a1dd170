"""Running the user's code: what it raises reaches them as their own traceback, without ours."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from mpdiag.errors import MpdiagError, UserCodeError, place_of, safe_text, without_backends

_OURS = str(Path(__file__).resolve().parents[1])
_TORCH = str(Path(torch.__file__).resolve().parent)
_HOOKS = str(Path(_OURS) / "capture")
# of ours too, they pass on calls that the user's code makes, and so what these raise
_PASS_ON = (_TORCH, *(str(Path(_OURS) / name) for name in ("target", "training/emulation.py", "training/rounding.py")))
_MODES = ("__torch_dispatch__", "__torch_function__", "stand_in")
_DEVICE_WORDS = ("same device", "Input type", "Expected object of device", "is not on the expected device")

_CPU_MEMORY = "DefaultCPUAllocator"  # "can't allocate memory" on Linux, "not enough memory" on Windows


@contextmanager
def guarded(doing: str) -> Iterator[None]:
    """Turn an exception of the user's code into a UserCodeError that says what was being done.

    KeyboardInterrupt passes through, so that Ctrl-C is never taken for a fault of the model. A mismatch of
    devices and a lack of memory get slugs of their own.
    """
    try:
        yield
    except MpdiagError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # anything the user's code may raise, sys.exit() and GeneratorExit included
        if _is_ours(error):
            raise
        raise _translated(error, doing) from error


def _translated(error: BaseException, doing: str) -> UserCodeError:
    first = safe_text(error)
    slug, hint = "user-code", "the traceback above is your code's; mend it there"
    if any(words in first for words in _DEVICE_WORDS):
        slug = "wrong-device"
        hint = "create tensors on the model's device (next(model.parameters()).device); mpdiag moves model and batches"
    elif _is_out_of_memory(error, first):
        slug, hint = "out-of-memory", "yield smaller batches from train_batches()"
    elif isinstance(error, SystemExit):
        hint = "a target file must not call sys.exit() when it is imported or used"
    message = f"{type(error).__name__} while {doing}: {first}"
    return UserCodeError(slug, message, hint, trimmed(error), _users_line(error))


def _users_line(error: BaseException) -> str | None:
    """file:line, from the working folder if it is below it, of the innermost frame that is neither ours nor torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith((_OURS, _TORCH, "<"))]
    return place_of(theirs[-1]) if theirs else None


def _is_out_of_memory(error: BaseException, first: str) -> bool:
    """Of a GPU, of Python and NumPy, or of torch on a CPU, which raises a plain RuntimeError."""
    return type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError) or _CPU_MEMORY in first


def _is_ours(error: BaseException) -> bool:
    """Whether a hook of ours raised, itself or in a call of torch's, not the user's code: then the fault is ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(_HOOKS):
        return True
    callers = (frame for frame in reversed(frames) if not frame.filename.startswith(_PASS_ON))
    caller = next((frame for frame in callers if not (_is_hook(frame) and frame.name in _MODES)), None)
    return caller is not None and _is_hook(caller)


def _is_hook(frame: traceback.FrameSummary) -> bool:
    return frame.filename.startswith(_HOOKS)


def trimmed(error: BaseException) -> str:
    """The traceback without frames of mpdiag, of importlib and of torch's call machinery at its top."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_OURS, "<frozen"))]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames)] if frames else []
    return "".join(lines + [without_backends(text) for text in traceback.format_exception_only(error)])
