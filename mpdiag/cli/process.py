"""What a scan needs of its process: an interruption that keeps what was seen, and a stdout that is the result's alone.

A target is anybody's code: it may swallow a Ctrl-C, fork, print, or leave stdout in any state.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SPOKEN = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_ALARMS = [getattr(signal, name) for name in ("SIGALRM", "SIGVTALRM", "SIGPROF") if hasattr(signal, name)]
_HEAVY = ("torch", "numpy")  # their C code swallows what is raised while it imports, and leaves a module half made
_ASK_AGAIN_SECONDS = 0.05  # nobody feels so short a wait


class Interruption:
    """SIGINT and SIGTERM as KeyboardInterrupt, whose text says which it was: "Ctrl-C" or "SIGTERM".

    Each signal raises, so that a target which swallows one does not go on for ever. Those wait that come while an
    earlier one is being handled (what was seen is being put together) or once delivery has begun. One that comes
    while torch or NumPy is being imported comes again when that is done; one that got lost, at the next `arrive`.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._raised: list[KeyboardInterrupt] = []
        self._delivering = False
        self._postponed: set[int] = set()
        self._code: int | None = None

    def deliver(self) -> None:
        """From here on nothing interrupts: the results are being written."""
        self._delivering = True

    def arrive(self) -> None:
        """Raise again what was raised and never arrived: in a destructor or a fork's callback Python drops it."""
        if self._raised and not self._delivering and sys.exc_info()[1] is None and os.getpid() == self._process:
            self._raise(str(self._raised[-1]))

    def end(self, code: int) -> None:
        """From here on a signal ends the process at once, with the code that it would have ended with anyway.

        Not ignored: a thread or an exit function of the target's may never end.
        """
        self._code = code
        for number in _SPOKEN:
            signal.signal(number, self)  # the target may have put its own there

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals."""
        if os.getpid() != self._process:
            _as_python_would(number)
        elif self._code is not None:
            os._exit(self._code)
        elif not self._delivering and _imports_heavily(frame):
            self._postpone(number)
        elif not self._delivering and not self._is_handled():
            self._raise(_SPOKEN[signal.Signals(number)])

    def _raise(self, spoken: str) -> NoReturn:
        self._raised.append(KeyboardInterrupt(spoken))
        raise self._raised[-1]

    def _postpone(self, number: int) -> None:
        def again() -> None:
            time.sleep(_ASK_AGAIN_SECONDS)
            self._postponed.discard(number)
            os.kill(self._process, number)

        if number not in self._postponed:
            self._postponed.add(number)
            _thread.start_new_thread(again, ())  # not threading: its locks may be held by what was interrupted

    def _is_handled(self) -> bool:
        """Whether somebody's except or finally is busy with one of ours right now; a swallowed one is not."""
        error = sys.exc_info()[1]
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            if any(error is each for each in self._raised):
                return True
            seen.add(id(error))
            error = error.__cause__ or error.__context__
        return False


def _imports_heavily(frame: FrameType | None) -> bool:
    """Whether torch or NumPy, or a module of theirs, is being imported where the signal came."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_find_and_load" and code.co_filename.startswith("<frozen importlib"):
            name = frame.f_locals.get("name")
            if isinstance(name, str) and name.partition(".")[0] in _HEAVY:
                return True
        frame = frame.f_back
    return False


def _as_python_would(number: int) -> None:
    """A child of the target inherits our handler; it is to end as if there were none."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within it Ctrl-C and SIGTERM are an Interruption's: the process's own where there is one."""
    lasting = signal.getsignal(signal.SIGINT)
    if isinstance(lasting, Interruption):
        yield lasting
        return
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption) for number in _SPOKEN}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible_to_the_end() -> Interruption:
    """The same for the rest of the process, whose main thread this is."""
    interruption = Interruption()
    for number in _SPOKEN:
        signal.signal(number, interruption)
    atexit.register(_ignore_signals)  # first of all, so that it runs last
    return interruption


def _ignore_signals() -> None:
    """Python gives up its handlers next, and takes up to a second more to clear torch away: results are out by now.

    An alarm that the target handles would end the process then, with another code.
    """
    for number in (*_SPOKEN, *_ALARMS):
        signal.signal(number, signal.SIG_IGN)


def leave_if_forked(started: int, error: BaseException | None = None) -> None:
    """End this process without a word if it is not `started`: a child that the target forked has nothing to report."""
    if os.getpid() != started:
        _leave(error)


def _leave(error: BaseException | None) -> NoReturn:
    seen: set[int] = set()
    code: object = 1 if error is not None else 0
    while error is not None and id(error) not in seen:
        if isinstance(error, SystemExit):  # what the child itself wanted to say to its parent
            code = error.code if isinstance(error.code, int) else 1 if error.code else 0
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else 1)


def streams_opened() -> None:
    """Where stdin, stdout or stderr were closed (`>&-`), let them lead nowhere.

    Else the next file that is opened takes the number, and what anybody prints lands in it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 # for the process's life


@contextmanager
def stdout_kept_clean(wanted: bool) -> Iterator[None]:
    """Within it, whatever the user's code or its children print goes to stderr, if wanted."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
