"""One measurement in a process of its own: memory starts empty there, and a crash or an OOM ends nothing but itself.

    python -m mpdiag.measure.child    reads {"task": "module:function", "request": {...}} from stdin, a line of JSON

A child may be begun before it is known what it is to do: a first line {"prepare": "module:function", "request": {...}}
has it load what it will need, while another child measures.

The parent's word for what went wrong is a reason, never a number.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpdiag.errors import MpdiagError, safe_text

LAST_WORDS = 300  # characters of a crashed child's stderr that are shown
_FOLDER = str(Path(__file__).resolve().parents[2])  # the child finds this very mpdiag, installed or not


_AT_WORK: weakref.WeakSet[Child] = weakref.WeakSet()
_STARTING = threading.Lock()  # a child that is begun while all are ended is either among them or begun after


@dataclass(frozen=True)
class Reply:
    """What a child measured; None with a reason where it did not come to that. slug: of the error it met."""

    value: dict[str, Any] | None
    reason: str | None = None
    slug: str | None = None


class Child:
    """A child at work, or begun and waiting for `ask`. `reply` waits for it; several may run side by side."""

    def __init__(self, task: str, request: dict[str, Any], seconds: float, prepares: bool = False) -> None:
        """Begin `task`; with `prepares` it only makes ready for what `ask` will say."""
        self._seconds = seconds
        self._answer = tempfile.NamedTemporaryFile(prefix="mpdiag-", suffix=".json")  # noqa: SIM115 # lives as long as the child
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(filter(None, (_FOLDER, os.environ.get("PYTHONPATH"))))
        with _STARTING:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mpdiag.measure.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,  # what the user's code prints is not ours to show twice
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the parent's, who then ends the child and its workers
            )
            _AT_WORK.add(self)
        self._send({"prepare" if prepares else "task": task, "request": request, "answer": self._answer.name})

    def _send(self, words: dict[str, Any]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already; `reply` tells how
            stdin.write(json.dumps(words).encode() + b"\n")
            stdin.flush()
            if "task" in words:
                stdin.close()

    def ask(self, task: str, request: dict[str, Any], seconds: float) -> None:
        """Give a child that has made itself ready its task."""
        self._seconds = seconds
        self._send({"task": task, "request": request})

    @property
    def withdrew(self) -> bool:
        """Whether it ended without a fault and without an answer, while it made itself ready."""
        return self._process.poll() == 0 and not self._answered()

    def _answered(self) -> bool:
        self._answer.seek(0)
        return bool(self._answer.read(1))

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def reply(self) -> Reply:
        """Its answer, or why there is none: it took longer than its seconds, was killed, or raised."""
        try:
            code = self._process.wait(self._seconds)
        except subprocess.TimeoutExpired:
            self.end()
            return Reply(None, f"the process that measures it took longer than {self._seconds:.0f} s")
        except BaseException:
            self.end()
            raise
        self._answer.seek(0)
        text = self._answer.read()
        if not text:
            how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with code {code}"
            said = self._last_words()
            return Reply(None, f"the process that measures it {how}" + (f": {said}" if said else ""))
        try:
            return Reply(**json.loads(text))
        except ValueError:  # it was killed, or the disk was full, in the middle of writing
            return Reply(None, "the process that measures it left only a part of its answer")

    def end(self) -> None:
        """Kill it with whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][-LAST_WORDS:] if lines else ""


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has no name
        return f"signal {number}"


def end_children() -> None:
    """Kill every child that is still at work, whoever waits for it."""
    with _STARTING:
        at_work = list(_AT_WORK)
    for child in at_work:
        child.end()


def in_child(task: str, request: dict[str, Any], seconds: float) -> Reply:
    """Run `module:function` of this package on a request in a fresh process; both ways JSON."""
    return Child(task, request, seconds).reply()


def _end_with_parent() -> None:
    """End this process soon after its parent is gone: a killed scan must not leave one holding the GPU."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """The child's side."""
    asked = json.loads(sys.stdin.readline())
    answer = Path(asked["answer"])
    _end_with_parent()
    try:
        if "prepare" in asked:
            _call(asked["prepare"], asked["request"])
            line = sys.stdin.readline()
            if not line:
                return  # nobody needs it
            asked = json.loads(line)
        reply: dict[str, Any] = {"value": _call(asked["task"], asked["request"])}
    except MpdiagError as error:
        reply = {"value": None, "reason": error.message, "slug": error.slug}
    except Exception as error:
        slug = "out-of-memory" if type(error).__name__ == "OutOfMemoryError" else None
        reply = {"value": None, "reason": f"{type(error).__name__}: {safe_text(error)}", "slug": slug}
    answer.write_text(json.dumps(reply))


def _call(task: str, request: dict[str, Any]) -> Any:
    module, _, function = task.partition(":")
    return getattr(importlib.import_module(module), function)(request)


if __name__ == "__main__":
    main()
