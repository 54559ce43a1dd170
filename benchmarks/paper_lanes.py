"""Several GPUs at work on a list of tasks until a deadline: each lane takes the longest task that still fits."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LEAST_SHARE = 0.6  # of its planned time: with less a task would be cut so far that it had better wait for the next call
GRACE_SECONDS = 20.0  # after SIGTERM, for mpdiag to write what it has
POLL_SECONDS = 0.2


class Clock:
    """Time until the deadline, None for no deadline. `stop()` makes it now."""

    def __init__(self, seconds: float | None) -> None:
        self.began = time.monotonic()
        self._end = None if seconds is None else self.began + seconds

    def left(self) -> float:
        """Seconds until the deadline; infinite without one."""
        return float("inf") if self._end is None else self._end - time.monotonic()

    def passed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.began

    def stop(self) -> None:
        """End everything that runs, begin nothing more."""
        self._end = time.monotonic()


@dataclass(frozen=True)
class Task:
    """A state of a job to be measured. fixed_seconds: of its planned `seconds`, what no smaller budget would save.

    later: it is done already, but for gaps, so it waits for those that are not.
    """

    name: str
    state: str
    seconds: float
    fixed_seconds: float
    later: bool = False


@dataclass
class Queue:
    """Tasks in waiting, the longest first."""

    tasks: list[Task]
    clock: Clock
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tasks.sort(key=lambda task: (task.later, -task.seconds))

    def take(self) -> tuple[Task, float] | None:
        """The next that fits into the time left, with the share of its planned time that it can have, up to 1."""
        with self._lock:
            for task in self.tasks:
                share = min(1.0, (self.clock.left() - task.fixed_seconds) / (task.seconds - task.fixed_seconds))
                if share >= LEAST_SHARE:
                    self.tasks.remove(task)
                    return task, share
        return None


def in_lanes(queue: Queue, lanes: Sequence[str], do: Callable[[Task, str, float], None]) -> list[Task]:
    """Run do(task, lane, share) for every task, one at a time in each lane; those for which no time was left.

    An error in a task is raised here, after the other lanes have come to their end.
    """
    errors: list[BaseException] = []

    def work(lane: str) -> None:
        try:
            own_cores(lanes.index(lane), len(lanes))
            while (taken := queue.take()) is not None:
                do(taken[0], lane, taken[1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(lane,), name=lane) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # in short waits: a signal is handled between them
            thread.join(POLL_SECONDS)
    if errors:
        raise errors[0]
    return queue.tasks


def visible_gpus() -> list[str]:
    """What to put into CUDA_VISIBLE_DEVICES for each GPU that this process may use. CUDA is not started here."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    count = torch.cuda.device_count()
    named = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return (named or [str(index) for index in range(count)])[:count]


def own_cores(lane: int, lanes: int) -> None:
    """Keep this thread, and the processes it starts, on the lane's own part of the CPU's cores.

    A small model's step waits for the host, so a lane that shared cores would slow another's steps.
    """
    if hasattr(os, "sched_setaffinity"):  # not on macOS and Windows
        cores = sorted(os.sched_getaffinity(0))
        share = len(cores) // lanes
        if share:
            os.sched_setaffinity(0, cores[lane * share : (lane + 1) * share])


def variables(gpu: str, lanes: int, own: dict[str, str]) -> dict[str, str]:
    """The environment of a process of this lane: one GPU, threads for its cores, the job's own variables."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) // lanes
    threads = str(max(1, min(8, cores // 2)))  # half, for a scan measures memory in processes beside it
    return {"OMP_NUM_THREADS": threads, **os.environ, **own, "CUDA_VISIBLE_DEVICES": gpu}


def ended(words: list[str], folder: Path, environment: dict[str, str], said: Path, most: float, clock: Clock) -> str:
    """Run a process to its end; "", or how it was ended: at the deadline, after `most` seconds, by a signal.

    What it prints goes to the file `said`.
    """
    until = time.monotonic() + most
    how = ""
    with said.open("w") as stream:
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=stream, stderr=stream)
        try:
            while process.poll() is None:
                if clock.left() <= 0 or time.monotonic() > until:
                    how = "at the deadline" if clock.left() <= 0 else f"after {most:.0f} s"
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(GRACE_SECONDS)
                    break
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode == 0:
        return ""  # also where the signal came when it was writing its results
    return how or (f"by signal {-process.returncode}" if process.returncode < 0 else "")
