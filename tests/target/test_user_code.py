"""Whose fault an exception is, and how much of it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mpdiag
from mpdiag.errors import UserCodeError, safe_text
from mpdiag.target.user_code import guarded

OURS = Path(mpdiag.__file__).parent
HOOK = OURS / "capture/modules.py"
SESSION = OURS / "training/session.py"
TORCH = Path(torch.__file__).parent / "nn/functional.py"
THEIRS = Path("/home/someone/job.py")


def frame(file: Path, name: str, inner: Any) -> Any:
    """A function that stands in a file, and calls the next one in."""
    names: dict[str, Any] = {"inner": inner}
    exec(compile(f"def {name}():\n    return inner()\n", str(file), "exec"), names)
    return names[name]


def blamed(*frames: tuple[Path, str]) -> str:
    """Who is, where these call each other from left to right and the last one calls what raises in torch."""
    call: Any = frame(TORCH, "kernel", torch.tensor([1.0, 2.0]).item)
    for file, name in reversed(frames):
        call = frame(file, name, call)
    try:
        with guarded("computing the loss"):
            call()
    except UserCodeError:
        return "theirs"
    except RuntimeError:
        return "ours"
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    ("frames", "whose"),
    [
        ([(SESSION, "step"), (THEIRS, "loss")], "theirs"),
        ([(SESSION, "step"), (THEIRS, "loss"), (HOOK, "_forward")], "ours"),
        ([(SESSION, "step"), (THEIRS, "loss"), (HOOK, "__torch_dispatch__")], "theirs"),
        ([(SESSION, "step"), (THEIRS, "loss"), (HOOK, "_forward"), (HOOK, "__torch_dispatch__")], "ours"),
        ([(SESSION, "step"), (THEIRS, "loss"), (OURS / "training/emulation.py", "kernel")], "theirs"),
        ([(SESSION, "step"), (THEIRS, "loss"), (HOOK, "hook"), (OURS / "training/emulation.py", "kernel")], "ours"),
        ([(SESSION, "step"), (HOOK, "hook"), (OURS / "target/batches.py", "tensors_in")], "ours"),
        ([(SESSION, "step"), (HOOK, "hook"), (OURS / "target/batches.py", "tensors_in"), (THEIRS, "data")], "theirs"),
        ([(HOOK.parent / "run.py", "observe_training"), (SESSION, "_backward")], "theirs"),
    ],
    ids=["loss", "hook", "mode", "hook in a mode", "emulation", "hook under emulation", "walk", "property", "backward"],
)
def test_the_innermost_frame_that_does_not_pass_a_call_on_is_to_blame(frames, whose):
    assert blamed(*frames) == whose


# what is shown


def sparse_kernel() -> None:
    torch.ops.aten.ne.Scalar(torch.eye(2).to_sparse(), 1)


def test_of_an_operator_without_a_kernel_the_other_backends_are_not_listed():
    with pytest.raises(UserCodeError) as caught, guarded("computing the loss"):
        sparse_kernel()
    error = caught.value
    assert error.message == (
        "NotImplementedError while computing the loss: Could not run 'aten::ne.Scalar' with arguments from the "
        "'SparseCPU' backend"
    )
    assert error.traceback.endswith("with arguments from the 'SparseCPU' backend\n")
    assert "in sparse_kernel" in error.traceback


def test_the_users_own_words_are_shown_to_the_last_line():
    with pytest.raises(UserCodeError) as caught, guarded("computing the loss"):
        raise ValueError("one\ntwo\nthree")
    assert caught.value.message.endswith(": one")
    assert caught.value.traceback.endswith("ValueError: one\ntwo\nthree\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one. two", "one. two"),
        ("x" * 300, "x" * 300),
        ("x" * 400, "x" * 400),  # no sentence ends in it
        (f"one. {'two' * 60}. {'three' * 60}", f"one. {'two' * 60}"),
        (f"{'one' * 120}. two", "one" * 120),
        ("", ""),
    ],
)
def test_of_a_long_line_the_sentences_that_fit_are_shown_and_the_first_one_always(text, shown):
    assert safe_text(ValueError(text)) == shown


def test_a_text_that_cannot_be_read_is_said_to_be_so():
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert safe_text(MuteError()) == "(its text cannot be read)"
