"""An interruption that Python or the target lost on its way: it is raised again where the scan next says something."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

import report_samples as samples
from mpdiag.cli.delivery import attempted
from mpdiag.cli.process import Interruption, interruptible
from mpdiag.errors import InterruptedScanError, MpdiagError


def lost(number: int = signal.SIGINT) -> None:
    """The signal comes while an object is destroyed, where Python cannot raise: it says so and goes on."""

    class Worker:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)

    Worker()


@pytest.fixture
def unraised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What Python had to drop."""
    dropped: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda seen: dropped.append(f"{seen.exc_type.__name__}"))
    return dropped


@pytest.mark.parametrize("where", ["report", "checkpoint"])
@pytest.mark.parametrize(("sent", "spoken"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_a_ctrl_c_that_python_dropped_stops_the_scan_at_its_next_word(unraised, capsys, where, sent, spoken):
    diagnosis = samples.full()

    def work(shown: dict[str, Any]) -> Any:
        shown["checkpoint"](diagnosis)
        lost(sent)
        assert unraised == ["KeyboardInterrupt"]
        shown[where](diagnosis if where == "checkpoint" else "the next stage")
        pytest.fail("the scan went on")

    with interruptible() as interruption:
        kept, stopped = attempted(work, None, interruption)
    assert kept is diagnosis
    assert isinstance(stopped, InterruptedScanError)
    assert stopped.message == f"stopped by {spoken}"
    assert "the next stage" not in capsys.readouterr().err


def test_what_was_not_interrupted_goes_on():
    with interruptible() as interruption:
        interruption.arrive()


def test_an_interruption_that_is_being_handled_is_not_raised_again():
    with interruptible() as interruption:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            interruption.arrive()
        with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
            interruption.arrive()


def test_once_delivery_has_begun_nothing_is_raised_again(unraised):
    with interruptible() as interruption:
        lost()
        interruption.deliver()
        interruption.arrive()


def test_another_failure_of_the_scan_is_not_hidden_by_what_was_lost(unraised):
    def work(shown: dict[str, Any]) -> Any:
        lost()
        try:
            raise MpdiagError("some-slug", "the disk is full", "make room")
        except MpdiagError:
            shown["report"]("while it is handled")
            raise

    with interruptible() as interruption, pytest.raises(MpdiagError, match="the disk is full"):
        attempted(work, None, interruption)


def test_a_child_of_the_target_is_not_stopped_by_what_its_parent_lost(unraised):
    with interruptible() as interruption:
        lost()
        interruption._process = -1  # as in a child that inherits it
        interruption.arrive()


def test_without_handlers_of_its_own_nothing_is_lost():
    Interruption().arrive()
