"""The paper again: its kinds of jobs in FP32, mixed, mixed without a scale and pure FP16, by one command.

    python benchmarks/paper.py [NAME...]            (every GPU there is; one H100: 55 minutes, 80 with --largest-batch)
    python benchmarks/paper.py --index              (only writes reports/paper.md)
    python benchmarks/paper.py --small [NAME...]    (a rehearsal: small sizes, a few steps, any device)

Where a command may only run for so long, in several calls; each does what the ones before left:

    python benchmarks/paper.py --only late --deadline 540
    python benchmarks/paper.py --missing --largest-batch --deadline 540

For each job `mpdiag scan examples/<name>.py` runs twice, with FP32 in IEEE arithmetic (paper_ieee.py). "init": from
initialisation, a few steps with what each arm costs: time, memory, energy, the largest batch. "late": from a state that
FP32 (TF32 products) has trained for a while, at the learning rate of that age: a hundred steps from initialisation show
none of the paper's failures, late ones can.
JSONs go to reports/paper/ without their tables of tensors, which would be most of their size, and paper.md is made from
them alone.

Every GPU is a lane: it takes the longest task that is left, has it alone, and takes the next. --deadline: seconds after
which nothing begins and what runs is ended with what it has, within 20 seconds; a task that begins near it gets less
time, or waits for the next call. --missing: only what has no JSON, or one with an error, without trials, of other steps
and seeds, or ended by a deadline; then those of which a cost was cut. What mpdiag cut is named on the page.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from paper_jobs import JOBS
from paper_lanes import Clock, Queue, Task, in_lanes, visible_gpus
from paper_page import page
from paper_records import Record
from paper_scan import ROOT, Asked, lacks, planned, run_task


def main() -> None:
    words = arguments()
    out = Path(words.out)
    if not words.index:
        (out / "paper").mkdir(parents=True, exist_ok=True)
        run(words, out / "paper")
    (out / "paper.md").write_text(page(again(written(out / "paper"))), encoding="utf-8")
    print(f"wrote {out / 'paper.md'}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *JOBS], metavar="NAME", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--index", action="store_true", help="write the page from the JSONs that are there")
    parser.add_argument("--small", action="store_true", help="a rehearsal with small sizes and few steps")
    parser.add_argument("--gpus", type=int, metavar="N", help="lanes, by default one for each GPU there is")
    parser.add_argument("--deadline", type=float, metavar="S", help="seconds until what runs is ended")
    parser.add_argument("--missing", action="store_true", help="only what is not there, or not whole")
    parser.add_argument("--only", choices=["init", "late"], help="only this state of the jobs")
    parser.add_argument("--scale", type=float, default=1.0, help="of all planned times")
    parser.add_argument("--largest-batch", action="store_true", help="search it too; takes minutes more a job")
    parser.add_argument("--out", default=str(ROOT / "reports"), help="folder of paper.md and paper/")
    return parser.parse_args()


def written(folder: Path) -> dict[str, Record]:
    """The records that are there, by the names of their files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def again(records: dict[str, Record]) -> dict[str, Record]:
    """The records with the ratios of costs as this version makes them of what was measured."""
    from judged_again import ratios_again  # which imports torch: not before the lanes have their cores

    return {name: ratios_again(record) for name, record in records.items()}


def run(words: argparse.Namespace, out: Path) -> None:
    """Measure what is asked for, in a lane for each GPU, and say what came of each."""
    gpus = visible_gpus()
    if not gpus and not words.small:
        sys.exit("error: this needs a CUDA device; --small rehearses it without one, --index only writes the page")
    count = words.gpus or len(gpus) or 1
    if gpus and count > len(gpus):
        sys.exit(f"error: --gpus {count}, but {len(gpus)} can be used: two on one GPU would spoil each other's times")
    lanes = gpus[:count] or [str(index) for index in range(count)]
    os.environ["EXAMPLE_SIZE"] = "small" if words.small else "large"
    asked = Asked(words.small, words.scale, words.largest_batch, len(lanes))
    clock = Clock(words.deadline)
    before = {number: signal.signal(number, lambda *_: clock.stop()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        queue = Queue(tasks(words, written(out), asked), clock)
        planned_seconds = sum(task.seconds for task in queue.tasks)
        print(f"{len(queue.tasks)} task(s) of about {planned_seconds:.0f} s in {len(lanes)} lanes", flush=True)
        left = in_lanes(queue, lanes, lambda task, gpu, share: _done(task, gpu, share, out, asked, clock))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for task in left:
        print(f"{task.name}, {task.state}: not begun, the time was used up; --missing runs it", flush=True)
    print(f"ended after {clock.passed():.0f} s", flush=True)


def _done(task: Task, gpu: str, share: float, out: Path, asked: Asked, clock: Clock) -> None:
    said = run_task(task, gpu, share, out, asked, clock)
    print(f"{clock.passed():4.0f} s  {said}", flush=True)


def tasks(words: argparse.Namespace, there: dict[str, Record], asked: Asked) -> list[Task]:
    """What is to be run of the jobs that are asked for."""
    found = []
    for job in (JOBS[name] for name in words.names or JOBS):
        for state in ("init", "late"):
            if words.only not in (None, state) or (state == "init" and not job.from_initialisation):
                continue
            lacking = lacks(there.get(job.name if state == "init" else f"{job.name}-late"), job, state, asked)
            if lacking or not words.missing:
                found.append(planned(job, state, asked, later=words.missing and lacking == "parts"))
    return found


if __name__ == "__main__":
    main()
