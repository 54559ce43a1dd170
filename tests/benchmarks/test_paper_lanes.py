"""When benchmarks/paper.py runs what: the lanes of GPUs, the deadline, and whether the plan fits."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import paper_jobs
import paper_lanes
import paper_scan

JOB = paper_jobs.JOBS["lstm_lm"]
WHOLE_CARD = paper_scan.Asked(largest_batch=True)


def lane_task(name: str, seconds: float, fixed: float = 0.0, later: bool = False) -> paper_lanes.Task:
    return paper_lanes.Task(name, "late", seconds, fixed, later)


def test_the_longest_task_begins_first_and_those_that_are_there_but_for_gaps_last():
    made = [lane_task("a", 1), lane_task("b", 3, later=True), lane_task("c", 2)]
    queue = paper_lanes.Queue(made, paper_lanes.Clock(None))
    assert [queue.take() for _ in range(4)] == [
        (lane_task("c", 2), 1.0), (lane_task("a", 1), 1.0), (lane_task("b", 3, later=True), 1.0), None,
    ]  # fmt: skip


def test_near_the_deadline_a_task_gets_less_time_and_one_that_would_get_too_little_waits():
    queue = paper_lanes.Queue([lane_task("a", 200), lane_task("b", 120, 20)], paper_lanes.Clock(100))
    taken = queue.take()
    assert taken is not None
    assert taken[0].name == "b"
    assert taken[1] == pytest.approx(0.8, abs=0.01)
    assert queue.take() is None
    assert [task.name for task in queue.tasks] == ["a"]


def test_every_lane_has_one_task_at_a_time_and_all_are_done():
    at_work: dict[str, int] = {"0": 0, "1": 0}
    done, both = [], threading.Barrier(2, timeout=10)

    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        at_work[lane] += 1
        assert at_work[lane] == 1
        both.wait()  # only passes where two lanes work at the same time
        at_work[lane] -= 1
        done.append(task.name)

    queue = paper_lanes.Queue([lane_task(name, 1) for name in "abcd"], paper_lanes.Clock(None))
    assert paper_lanes.in_lanes(queue, ["0", "1"], do) == []
    assert sorted(done) == ["a", "b", "c", "d"]


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: [])(0)) < 2, reason="takes two cores of Linux")
def test_processes_of_two_lanes_share_no_core():
    program = "import os; print(*os.sched_getaffinity(0))"
    seen: dict[str, set[str]] = {}
    all_cores, both = os.sched_getaffinity(0), threading.Barrier(2, timeout=10)

    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        both.wait()
        seen[lane] = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())

    queue = paper_lanes.Queue([lane_task(name, 1) for name in "ab"], paper_lanes.Clock(None))
    assert paper_lanes.in_lanes(queue, ["0", "1"], do) == []
    assert len(seen["0"]) == len(seen["1"]) == len(all_cores) // 2
    assert not seen["0"] & seen["1"]
    assert os.sched_getaffinity(0) == all_cores


def test_a_fault_in_one_lane_is_raised_when_the_others_are_done():
    def do(task: paper_lanes.Task, lane: str, share: float) -> None:
        if task.name == "a":
            raise ValueError("broken")

    queue = paper_lanes.Queue([lane_task("a", 2), lane_task("b", 1)], paper_lanes.Clock(None))
    with pytest.raises(ValueError, match="broken"):
        paper_lanes.in_lanes(queue, ["0", "1"], do)
    assert queue.tasks == []


STOPPABLE = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path("kept").write_text("what there is")
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
pathlib.Path("ready").touch()
time.sleep(60)
"""


def ended_when_ready(folder: Path, program: str) -> str:
    """How a process ends that the deadline meets when it can take the signal."""
    clock = paper_lanes.Clock(None)

    def stop() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.02)
        clock.stop()

    threading.Thread(target=stop, daemon=True).start()
    return paper_lanes.ended([sys.executable, "-c", program], folder, dict(os.environ), folder / "said", 60, clock)


def test_at_the_deadline_a_process_may_still_write_what_it_has(tmp_path):
    assert ended_when_ready(tmp_path, STOPPABLE) == "at the deadline"
    assert (tmp_path / "kept").read_text() == "what there is"


def test_a_process_that_was_writing_its_results_at_the_deadline_was_not_ended_by_it(tmp_path):
    assert ended_when_ready(tmp_path, STOPPABLE.replace("exit(1)", "exit(0)")) == ""


def test_a_process_that_hangs_is_ended_after_its_time(tmp_path):
    words = [sys.executable, "-c", "print('begun', flush=True); import time; time.sleep(60)"]
    how = paper_lanes.ended(words, tmp_path, dict(os.environ), tmp_path / "said", 1, paper_lanes.Clock(None))
    assert how == "after 1 s"


def test_what_is_planned_fits_into_few_calls_of_nine_minutes_on_four_gpus():
    """Each of the calls that the docstring names, packed as the lanes do it; what one leaves, --missing does."""
    for state, calls in (("late", 1), ("init", 2)):
        jobs = [job for job in paper_jobs.JOBS.values() if state == "late" or job.from_initialisation]
        left = sorted((paper_scan.planned(job, state, WHOLE_CARD).seconds for job in jobs), reverse=True)
        for _ in range(calls):
            ends = [0.0] * 4
            for seconds in list(left):
                if min(ends) + seconds <= 540.0:
                    ends[ends.index(min(ends))] += seconds
                    left.remove(seconds)
        assert not left, (state, left)


def test_the_search_of_the_largest_batch_has_the_time_it_took():
    plain, with_search = (paper_scan.planned(JOB, "init", asked) for asked in (paper_scan.Asked(), WHOLE_CARD))
    assert with_search.seconds - plain.seconds == with_search.fixed_seconds - plain.fixed_seconds >= 3 * 70


def test_a_scans_budget_is_what_the_deadline_leaves_of_its_plan():
    plain = paper_scan.Asked()
    assert paper_scan.budget_of(JOB, "late", plain, float("inf")) == JOB.late_seconds
    room = JOB.before_seconds + paper_scan.WRITING_SECONDS
    assert paper_scan.budget_of(JOB, "late", plain, room + 50) == 50
    assert paper_scan.budget_of(JOB, "init", WHOLE_CARD, room + 50 + paper_scan.LARGEST_SECONDS) == 50
