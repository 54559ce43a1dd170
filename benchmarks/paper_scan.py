"""What one task of benchmarks/paper.py runs on its GPU, and what is kept of it."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from paper_ieee import NOTE as IEEE_NOTE
from paper_jobs import JOBS, PaperJob
from paper_lanes import Clock, Task, ended, variables
from paper_records import COSTS, Record, cost, entries, largest

ROOT = Path(__file__).resolve().parents[1]
INIT_STEPS, INIT_SEEDS = 20, 3  # so few decide little; that scan is for what the arms cost
FEWEST_SEEDS = 3  # the fewest that give an interval
TRAINING_BEFORE = 20.0  # seconds: to start, read the data and draw batches
WRITING_SECONDS = 10.0  # of a scan: its page and its JSON
LARGEST_SECONDS = 215.0  # what the search of the largest batch takes on top: three arms of 60 to 75 s on an H100
OVERRUN = 2.0  # times the planned time, and two minutes: then a process hangs
NOTE = "this file was made smaller: capture.tables, capture.operations and prediction.tensors were left out"
TRAINING = "benchmarks/paper_training.py"
SCAN = "benchmarks/paper_ieee.py"  # mpdiag's command line in a process of its own, with FP32 in IEEE arithmetic


@dataclass(frozen=True)
class Asked:
    """What the command was told. scale: of all times. lanes: how many processes share the machine."""

    small: bool = False
    scale: float = 1.0
    largest_batch: bool = False
    lanes: int = 1


def planned(job: PaperJob, state: str, asked: Asked, later: bool = False) -> Task:
    """The task with the time it is to take in all."""
    if state == "init":
        fixed = job.before_seconds + WRITING_SECONDS
        fixed += LARGEST_SECONDS if asked.largest_batch else 0.0
        budget = job.init_seconds
    else:
        fixed = TRAINING_BEFORE + job.before_seconds + WRITING_SECONDS
        budget = job.train_seconds + job.late_seconds
    return Task(job.name, state, asked.scale * (fixed + budget), asked.scale * fixed, later)


def budget_of(job: PaperJob, state: str, asked: Asked, left: float) -> float:
    """The scan's time budget: as planned, or what `left` until the deadline leaves of it."""
    room = left - asked.scale * (job.before_seconds + WRITING_SECONDS)
    if state == "init" and asked.largest_batch:
        room -= asked.scale * LARGEST_SECONDS
    return max(1.0, min(asked.scale * (job.init_seconds if state == "init" else job.late_seconds), room))


def command(job: PaperJob, state: str, asked: Asked, budget: float, folder: str, checkpoint: Path | None) -> list[str]:
    """The words of a scan; its files go to `folder`."""
    words = ["scan", f"examples/{job.example}.py", *extent_words(job, state, asked), "--time-budget", f"{budget:.0f}"]
    words += ["--plotly", "none", "--fail-on", "never"]
    words += ["--json", f"{folder}/scan.json", "--html", f"{folder}/scan.html"]
    if checkpoint is not None:
        words += ["--start-from", str(checkpoint)]
    return [sys.executable, SCAN, *words]


def extent_words(job: PaperJob, state: str, asked: Asked) -> list[str]:
    """The words that say how much is to be run: two scans with the same ones are of the same plan."""
    late = state == "late"
    steps, seeds = (job.late_steps, job.late_seeds) if late else (INIT_STEPS, INIT_SEEDS)
    if asked.small:
        steps, seeds = 6, 2
    words = ["--steps", "3" if asked.small else "4", "--verify-steps", str(steps), "--seeds", str(seeds)]
    if late:
        return [*words, "--no-costs"]  # what the arms cost was measured from initialisation, and is the same later
    return [*words, "--control-costs", *(["--largest-batch"] if asked.largest_batch else [])]


def lacks(record: Record | None, job: PaperJob, state: str, asked: Asked) -> str:
    """ "all" where a state has to be run again, "parts" where some of it was cut, "" where all is there.

    A scan of another plan (more or fewer steps, seeds) has to be run again; one that the deadline ended too.
    """
    if record is None or record.get("error") or not entries(record, "trials"):
        return "all"
    stopped = bool(record.get("reason"))
    words = shlex.split(record.get("command") or "")
    said = words[words.index("scan") + 2 :] if "scan" in words else []  # what comes after the file
    wanted = extent_words(job, state, replace(asked, largest_batch=False))  # without it a part is missing
    if said[: len(wanted)] != wanted or (stopped and state == "late"):
        return "all"
    if not asked.small and len({trial.get("seed") for trial in entries(record, "trials")}) < FEWEST_SEEDS:
        return "parts"
    if state == "late":
        return ""
    on_gpu = bool((record.get("environment") or {}).get("gpu"))  # elsewhere nothing of it can be measured
    costs = [cost(record, quantity).get("difference") for quantity in COSTS] if on_gpu else []
    if stopped:  # perhaps in its last stage, the largest batch
        return "parts" if costs and None not in costs else "all"
    return "parts" if None in costs or (on_gpu and asked.largest_batch and largest(record) is None) else ""


def run_task(task: Task, gpu: str, share: float, out: Path, asked: Asked, clock: Clock) -> str:
    """Do a task on one GPU and write its JSONs to `out`; what came of it, in words."""
    job = JOBS[task.name]
    before = clock.passed()
    with tempfile.TemporaryDirectory() as folder:
        made = _in_folder(task, job, Path(folder), gpu, share, asked, clock)
    found = next(reversed(made.values()), None)
    if task.later and lacks(found, job, task.state, asked) == "all":
        made = {}  # what is there has gaps, and this has more
    for name, record in made.items():
        (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if found is None:
        said = "ended before it had anything to keep"
    else:
        said = found.get("error") or found.get("reason") or (found.get("verification") or {}).get("reason") or "done"
    return f"{task.name}, {task.state}, GPU {gpu}, {clock.passed() - before:.0f} of {task.seconds:.0f} s: {said}"


def _in_folder(
    task: Task, job: PaperJob, folder: Path, gpu: str, share: float, asked: Asked, clock: Clock
) -> dict[str, Record]:
    """The records to be written, by name; none where the deadline came before there was anything."""
    made: dict[str, Record] = {}
    own = {**job.environment, **({"EXAMPLE_SIZE": "small"} if asked.small else {})}
    environment = variables(gpu, asked.lanes, own)
    checkpoint = None
    if task.state == "late":
        checkpoint = folder / f"{job.name}.pt"
        record = _trained(job, folder, checkpoint, environment, own, share, asked, clock)
        if record is None:
            return {}
        made[f"{job.name}-training"] = record
        if "error" in record:
            return made
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    words = command(job, task.state, asked, budget_of(job, task.state, asked, clock.left()), str(folder), checkpoint)
    how = ended(words, ROOT, environment, folder / "said", OVERRUN * task.seconds + 120, clock)
    record = _scanned(folder, how, own)
    if "deadline" in how and not entries(record, "trials"):
        return {}
    return made | {job.name if task.state == "init" else f"{job.name}-late": record}


def _trained(
    job: PaperJob, folder: Path, checkpoint: Path, environment: dict[str, str], own: dict[str, str], share: float,
    asked: Asked, clock: Clock,
) -> Record | None:  # fmt: skip
    """What the training came to; None where the deadline ended it. own: the variables that are not the lane's."""
    seconds, out = share * asked.scale * job.train_seconds, folder / "training.json"
    what = [TRAINING, job.name, f"{seconds:g}", "20" if asked.small else "1000000"]
    words = [sys.executable, *what, str(checkpoint), str(out)]
    paths = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    how = ended(words, ROOT, environment | {"PYTHONPATH": paths}, folder / "said", OVERRUN * seconds + 120, clock)
    if "deadline" in how:
        return None
    if not how and out.exists():
        return {
            "command": _typed([*what, checkpoint.name, out.name], own),
            **json.loads(out.read_text(encoding="utf-8")),
        }
    return {"error": f"the training ended {how or 'early'}: {_last_words(folder / 'said')}"}


def _scanned(folder: Path, how: str, own: dict[str, str]) -> Record:
    """The scan's JSON without what takes most of its bytes, or what went wrong. own: the job's variables."""
    found = folder / "scan.json"
    if not found.exists():
        return {"error": f"{f'ended {how}: ' if how else ''}{_last_words(folder / 'said')}"}
    text = found.read_text(encoding="utf-8").replace(f"{folder}/", "")  # a temporary folder means nothing to a reader
    record = rerun_told(smaller(json.loads(text)), own)
    if how and not record.get("reason"):
        record["reason"] = f"ended {how}"  # killed, not stopped: the JSON is its last checkpoint
    return record


def _last_words(said: Path) -> str:
    lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith("error[")), lines[-1] if lines else "no output")


def rerun_told(record: dict[str, Any], own: dict[str, str]) -> dict[str, Any]:
    """A diagnosis whose command does the same again: with the job's variables, and with what sets IEEE FP32."""
    words = shlex.split(record.get("command") or "")
    if words[:1] == ["mpdiag"]:
        record["command"] = _typed([SCAN, *words[1:]], own)
    if record.get("target"):
        record["target"]["notes"] = [*(record["target"].get("notes") or []), IEEE_NOTE]
    return record


def _typed(words: list[str], own: dict[str, str]) -> str:
    """A Python command as one would type it in the repository's folder, behind the variables it needs."""
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in own.items()), shlex.join(["python", *words])])


def smaller(record: dict[str, Any]) -> dict[str, Any]:
    """A diagnosis without what takes most of its bytes; mpdiag still loads it."""
    capture, prediction = record.get("capture"), (record.get("verification") or {}).get("prediction")
    if capture:
        capture["tables"] = []
        if capture.get("operations") is not None:
            capture["operations"] = []
    if prediction and "tensors" in prediction:
        prediction["tensors"] = []
    if record.get("target"):
        record["target"]["notes"] = [*(record["target"].get("notes") or []), NOTE]
    return record
