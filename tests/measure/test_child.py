"""A measurement in a process of its own: what comes back when it ends well, and when it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mpdiag.measure import largest_batch
from mpdiag.measure.child import Child, Reply, in_child
from mpdiag.measure.memory import STOPPED, memory_of_arms, run_side_by_side
from mpdiag.training.precision import Precision

SAMPLES = str(Path(__file__).parents[1] / "samples")  # child_tasks lies there


@pytest.fixture(autouse=True)
def tasks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (SAMPLES, os.environ.get("PYTHONPATH")))))


def ask(task: str, seconds: float = 60, **request: Any) -> Reply:
    return in_child(f"child_tasks:{task}", request, seconds)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and is not yet collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Any, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_task_answers_from_another_process() -> None:
    reply = ask("double", number=21)
    assert reply.reason is reply.slug is None
    assert reply.value is not None
    assert reply.value["twice"] == 42
    assert reply.value["pid"] != os.getpid()


def test_a_child_can_make_ready_before_it_is_told_its_task() -> None:
    child = Child("child_tasks:make_ready", {"number": 3}, 60, prepares=True)
    assert child.alive
    child.ask("child_tasks:ready", {}, 60)
    assert child.reply().value == {"ready": [3], "pid": child._process.pid}


def test_a_child_that_is_not_needed_any_more_ends_with_whoever_began_it() -> None:
    child = Child("child_tasks:make_ready", {"number": 3}, 60, prepares=True)
    child._process.stdin.close()  # type: ignore[union-attr] # as when the parent is gone
    assert child._process.wait(30) == 0


def test_the_next_process_makes_ready_while_one_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(largest_batch, "SEARCH", "child_tasks:ready")
    monkeypatch.setattr(largest_batch, "PREPARE", "child_tasks:make_ready")
    with largest_batch.Processes() as processes:
        first = processes.run("child_tasks:ready", {"number": 7}, 60)
        spare = processes._next
        second = processes.run("child_tasks:double", {"number": 7}, 60)
        assert processes._next is None  # nothing loads beside a batch that is timed
    assert spare is not None
    assert first.value == {"ready": [], "pid": first.value and first.value["pid"]}
    assert second.value is not None
    assert second.value["pid"] == spare._process.pid
    with largest_batch.Processes() as processes:
        processes.run("child_tasks:ready", {"number": 7}, 60)
        spare = processes._next
    assert spare is not None
    assert not alive(spare._process.pid)


@pytest.mark.parametrize("waits", [True, False])
def test_a_job_that_cannot_be_made_ready_without_the_card_is_loaded_when_its_turn_comes(
    waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(largest_batch, "SEARCH", "child_tasks:ready")
    monkeypatch.setattr(largest_batch, "PREPARE", "child_tasks:make_ready")
    with largest_batch.Processes() as processes:
        processes.run("child_tasks:ready", {"leaves": True}, 60)
        spare = processes._next
        assert spare is not None
        if waits:
            assert until(lambda: not spare.alive)
        assert processes.run("child_tasks:double", {"number": 1}, 60).value is not None


def test_half_an_answer_is_a_reason() -> None:
    child = Child("child_tasks:double", {"number": 21}, 60)
    child._process.wait()
    Path(child._answer.name).write_text('{"value": {"twice": 4')
    assert child.reply() == Reply(None, "the process that measures it left only a part of its answer")


def test_a_signal_without_a_name_is_a_reason_too() -> None:
    child = Child("child_tasks:slow", {}, 60)
    child._process.send_signal(40)
    assert (child.reply().reason or "").startswith("the process that measures it was killed by signal 40")


def test_children_that_begin_while_all_are_ended_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, begun = threading.Event(), []

    class Noted(Child):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            begun.append(self)
            if len(begun) == 2:  # the moment at which another thread stops them all
                stopped.set()
                begun[0].end()

    monkeypatch.setattr("mpdiag.measure.memory.Child", Noted)
    replies = run_side_by_side([{}] * 3, 60, "child_tasks:slow", stopped)
    assert [reply.value for reply in replies] == [None] * 3
    assert not any(alive(child._process.pid) for child in begun)


def test_once_stopped_no_further_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpdiag.measure.memory.cannot_start_again", lambda job, device: None)
    monkeypatch.setattr("mpdiag.measure.memory.Child", None)
    stopped = threading.Event()
    stopped.set()
    arms = {"fp32": Precision("FP32"), "fp16": Precision("FP16")}
    found = memory_of_arms(None, arms, 0, torch.device("cuda"), 60.0, 8, lambda line: None, None, stopped)  # type: ignore[arg-type] # no job is opened
    assert all(use.reason == STOPPED for use in found.values())


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_a_signal_ends_is_a_reason(name: str) -> None:
    reply = ask("killed", signal=name)
    assert reply.value is None
    assert (reply.reason or "").startswith(f"the process that measures it was killed by {name}")


def test_a_child_that_leaves_without_an_answer_is_a_reason_with_its_last_words() -> None:
    assert ask("left") == Reply(None, "the process that measures it ended with code 7: last words")


def test_a_child_that_takes_too_long_is_ended() -> None:
    child = Child("child_tasks:slow", {}, 1.0)
    assert child.reply() == Reply(None, "the process that measures it took longer than 1 s")
    assert not alive(child._process.pid)


def test_an_exception_is_a_reason_of_one_line() -> None:
    assert ask("raises") == Reply(None, "ValueError: first line")


def test_an_error_of_ours_keeps_its_slug() -> None:
    assert ask("raises_usage") == Reply(None, "what is wrong", "some-slug")


def test_a_lack_of_memory_has_a_slug_of_its_own() -> None:
    reply = ask("out_of_memory")
    assert reply.slug == "out-of-memory"
    assert (reply.reason or "").startswith("OutOfMemoryError: CUDA out of memory")


@pytest.mark.parametrize("task", ["no_such_module:f", "child_tasks:no_such_function"])
def test_a_task_that_does_not_exist_is_a_reason(task: str) -> None:
    reply = in_child(task, {}, 60)
    assert reply.value is None
    assert reply.reason


def test_several_children_work_side_by_side() -> None:
    children = [Child("child_tasks:double", {"number": n}, 60) for n in (1, 2, 3)]
    values = [child.reply().value for child in children]
    assert [value and value["twice"] for value in values] == [2, 4, 6]
    assert len({value and value["pid"] for value in values}) == 3


def test_ending_a_child_ends_what_it_started(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    child = Child("child_tasks:with_a_worker", {"file": str(told)}, 60)
    assert until(lambda: told.exists() and len(told.read_text().split()) == 2)
    child.end()
    pids = [int(pid) for pid in told.read_text().split()]
    assert until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.slow
def test_a_child_ends_soon_after_its_parent_was_killed(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    code = (
        "from mpdiag.measure.child import in_child\n"
        f"in_child('child_tasks:with_a_worker', {{'file': {str(told)!r}}}, 60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(SAMPLES).parents[1])
    try:
        assert until(lambda: told.exists() and len(told.read_text().split()) == 2)
        child = int(told.read_text().split()[0])
        parent.kill()
        parent.wait()
        assert until(lambda: not alive(child))
    finally:
        parent.kill()
        if told.exists():
            for pid in told.read_text().split():
                if alive(int(pid)):
                    os.kill(int(pid), signal.SIGKILL)
