"""Where in the user's own code the call is that is running now."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path
from types import FrameType

import torch

from mpdiag.training import emulation, rounding

_TORCH, _OURS = (
    str(Path(folder).resolve()) for folder in (Path(torch.__file__).parent, Path(__file__).resolve().parents[1])
)
_EMULATION = (emulation.__file__, rounding.__file__)  # stand between the user's call and the operator: looked through
_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")
_MODULE = os.path.join("torch", "nn", "modules", "module.py")
_ENGINE = os.path.join("torch", "autograd", "graph.py")


def users_line() -> str | None:
    """file:line of the innermost frame of the user's own code, relative to the working folder.

    The walk ends where it reaches us again: what called mpdiag is not part of the job.
    """
    frame = _caller()
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.startswith(_OURS):
            if filename not in _EMULATION:
                return None
        elif not filename.startswith(("<", _TORCH)):
            return _shown(filename, frame.f_lineno, os.getcwd())
        frame = frame.f_back
    return None


def rerun_in_backward() -> bool:
    """Whether what runs inside a backward pass is a piece of the forward pass again (activation checkpointing)."""
    frame = _caller()
    while frame is not None:
        filename = frame.f_code.co_filename
        if filename.endswith(_ENGINE):
            return False  # from here on outwards is what called backward
        if filename.endswith((_CHECKPOINT, _MODULE)):
            return True
        frame = frame.f_back
    return False


def _caller() -> FrameType | None:
    """The innermost frame that is not ours."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame


@cache
def _shown(filename: str, line: int, folder: str) -> str:
    path = Path(filename)
    return f"{path.relative_to(folder) if path.is_relative_to(folder) else path}:{line}"
