"""The paper again: its kinds of jobs in FP32, mixed, mixed without a scale and pure FP16, by one command.

    python benchmarks/paper.py [NAME...] [--seconds S] [--largest-batch]    (a CUDA device; all take about 15 minutes)
    python benchmarks/paper.py --index              (only writes reports/paper.md)
    python benchmarks/paper.py --small [NAME...]    (a rehearsal: small sizes, a few steps, any device)

For each job `mpdiag scan examples/<name>.py` runs twice. From initialisation, with what each arm costs; then from a
state that FP32 (TF32 products) has trained for a while, at the learning rate of that age: a hundred steps from
initialisation show none of the paper's failures, late ones can. JSONs go to reports/paper/ without their tables of
tensors, which would be most of their size, and paper.md is made from them alone.

--seconds: a job's allowance, by default 100 (a GPT has more, a small job less). 45 % are the time budget of the first
scan, 15 % are for training, 35 % are the late scan's, which trains its arms with all of it; starting the processes
comes on top. What mpdiag cut to keep its budget is named on the page. While a late scan runs, the next job is already
in training.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from paper_jobs import JOBS, PaperJob
from paper_page import page
from torch.utils import _pytree as pytree

from mpdiag.target import load_job
from mpdiag.target.job import ONLY
from mpdiag.training.precision import Precision
from mpdiag.training.session import open_session, total

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 100.0  # the default: all jobs together take about 15 minutes of an H100
INIT_SHARE, TRAIN_SHARE, LATE_SHARE = 0.45, 0.15, 0.35
WARMUP_SHARE = 0.05  # of the training: transformers with the norms after the sums do not stand the full rate at once
TRAINING_SEED = 1000  # not one of the scans': what they train on was drawn anew
DRAWN = 1000  # batches at most; they repeat after that
KEPT_BACK = 5.0  # times a scan's time budget, and two minutes: then it is ended
NOTE = "this file was made smaller: capture.tables, capture.operations and prediction.tensors were left out"


def main() -> None:
    asked = arguments()
    out = Path(asked.out)
    if not asked.index:
        # asked of NVML, CUDA is not started in this process: the first scans need the GPU to themselves
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        if not torch.cuda.is_available() and not asked.small:
            sys.exit("error: this needs a CUDA device; --small rehearses it without one, --index only writes the page")
        os.environ["EXAMPLE_SIZE"] = "small" if asked.small else "large"
        (out / "paper").mkdir(parents=True, exist_ok=True)
        run([JOBS[name] for name in asked.names or JOBS], out / "paper", asked)
    written = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "paper").glob("*.json"))
    }
    (out / "paper.md").write_text(page(written), encoding="utf-8")
    print(f"wrote {out / 'paper.md'}", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[[], *JOBS], metavar="NAME", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--index", action="store_true", help="write the page from the JSONs that are there")
    parser.add_argument("--small", action="store_true", help="a rehearsal with small sizes and few steps")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each job, starting costs included")
    parser.add_argument("--largest-batch", action="store_true", help="search it too; takes minutes more a job")
    parser.add_argument("--out", default=str(ROOT / "reports"), help="folder of paper.md and paper/")
    return parser.parse_args()


def run(jobs: list[PaperJob], out: Path, asked: argparse.Namespace) -> None:
    """First all timed scans, for which no other process may use the GPU; then training and late scans in turns."""
    began = time.perf_counter()
    for job in jobs:
        if job.from_initialisation:
            scan(job, "init", out, asked)
            print(f"{job.name}: from initialisation, at {time.perf_counter() - began:.0f} s", flush=True)
    running: contextlib.ExitStack | None = None
    with tempfile.TemporaryDirectory() as folder:
        for job in jobs:
            checkpoint = Path(folder) / f"{job.name}.pt"
            record = train(job, checkpoint, asked)
            (out / f"{job.name}-training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            print(f"{job.name}: trained, at {time.perf_counter() - began:.0f} s: {record}", flush=True)
            if running is not None:
                running.close()
            running = contextlib.ExitStack()
            if "error" not in record:
                running.enter_context(started(job, "late", out, asked, checkpoint))
        if running is not None:
            running.close()
    print(f"all done after {time.perf_counter() - began:.0f} s", flush=True)


# training


def train(job: PaperJob, checkpoint: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train at the job's own learning rate until its time is up, then save it with the late rate; what it came to."""
    seconds = TRAIN_SHARE * asked.seconds * job.allowance
    record: dict[str, Any] = {"late_learning_rate": job.late_rate, "why": job.why_late}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with environment(job):
            loaded = load_job(str(ROOT / "examples" / f"{job.example}.py"))
            start = loaded.start(TRAINING_SEED, 20 if asked.small else DRAWN)
            precision = Precision("FP32 with TF32 products", tf32=True)
            with open_session(loaded, start, precision, device) as session:
                groups = [group for optimizer in session.optimizers.values() for group in optimizer.param_groups]
                rates = [group["lr"] for group in groups]
                losses: list[float] = []
                began = time.perf_counter()
                while (share := (time.perf_counter() - began) / seconds) < 1 and len(losses) < (
                    20 if asked.small else 1e9
                ):
                    for group, rate in zip(groups, rates, strict=True):
                        group["lr"] = rate * min(1.0, (share + 0.01 * WARMUP_SHARE) / WARMUP_SHARE)
                    losses.append(total(session.step(session.place(start.batch(len(losses))))))
                for group in groups:
                    group["lr"] = job.late_rate
                tail = losses[-max(1, len(losses) // 20) :]
                record |= {"steps": len(losses), "seconds": round(time.perf_counter() - began, 1)}
                record |= {"first_loss": losses[0], "last_loss": sum(tail) / len(tail), "metric": session.evaluate()}
                if not math.isfinite(record["last_loss"]):
                    return {"error": "the FP32 training did not stay finite", **json.loads(strict(record))}
                states = {name: optimizer.state_dict() for name, optimizer in session.optimizers.items()}
                content = {"model": session.model.state_dict(), "optimizer": states.get(ONLY, states)}
                torch.save(
                    pytree.tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, content), checkpoint
                )
    except Exception as error:  # the other jobs go on
        return {"error": f"{type(error).__name__}: {error}", **json.loads(strict(record))}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return json.loads(strict(record))  # type: ignore[no-any-return]


def strict(record: dict[str, Any]) -> str:
    """JSON in which a number that is none is a word."""
    return json.dumps(pytree.tree_map(lambda v: str(v) if isinstance(v, float) and not math.isfinite(v) else v, record))


@contextlib.contextmanager
def environment(job: PaperJob) -> Iterator[None]:
    """The job's variables, for as long as its file is imported and used here."""
    before = {key: os.environ.get(key) for key in job.environment}
    os.environ.update(job.environment)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


# scanning

# mpdiag's own command line in a process of its own, with one thing set before it starts: FP32 means IEEE FP32 here, as
# in the paper, so the arm "as configured" (TF32 in convolutions) would only cost time.
SCAN = """
import sys
import torch

cudnn = torch.backends.cudnn
for part in (torch.backends.cuda.matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)):
    if part is not None:
        part.fp32_precision = "ieee"
sys.argv[0] = "mpdiag"

from mpdiag.cli.main import main

main()
"""


def command(job: PaperJob, state: str, asked: argparse.Namespace, folder: str, checkpoint: Path | None) -> list[str]:
    budget = asked.seconds * job.allowance * (INIT_SHARE if state == "init" else LATE_SHARE)
    steps = ["--steps", "3", "--verify-steps", "6", "--seeds", "2"] if asked.small else ["--steps", "4"]
    if not asked.small:
        steps += ["--verify-steps", "100" if state == "init" else "400", "--seeds", "3"]
    words = ["scan", f"examples/{job.example}.py", *steps, "--time-budget", f"{budget:g}", "--plotly", "none"]
    words += ["--fail-on", "never", "--json", f"{folder}/scan.json", "--html", f"{folder}/scan.html"]
    if checkpoint is not None:
        words += ["--start-from", str(checkpoint)]
    if asked.largest_batch and state == "init":
        words.append("--largest-batch")
    if state == "late":
        words.append("--no-costs")  # what the arms cost was measured from initialisation, and is the same later
    return [sys.executable, "-c", SCAN, *words]


def scan(job: PaperJob, state: str, out: Path, asked: argparse.Namespace) -> None:
    with started(job, state, out, asked, None):
        pass


@contextlib.contextmanager
def started(job: PaperJob, state: str, out: Path, asked: argparse.Namespace, checkpoint: Path | None) -> Iterator[None]:
    """A scan that runs beside the block and is waited for at its end; its JSON, or what went wrong, lands in `out`."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "said").open("w+") as said:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        process = subprocess.Popen(
            command(job, state, asked, folder, checkpoint),
            cwd=ROOT, env={**os.environ, **job.environment, "PYTHONPATH": path}, stdout=said, stderr=said,
        )  # fmt: skip
        try:
            yield
            limit = KEPT_BACK * asked.seconds * job.allowance * LATE_SHARE + 120
            limit += 600 if asked.largest_batch else 0
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()  # mpdiag still writes what it has
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            said.write(f"\nended after {limit:.0f} s\n")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        found = Path(folder) / "scan.json"
        if not found.exists():
            said.seek(0)
            words = said.read().strip().splitlines()
            reason = next((w for w in reversed(words) if w.startswith("error[")), words[-1] if words else "no output")
            record: dict[str, Any] = {"error": f"exit code {process.returncode}: {reason}"}
        else:
            text = found.read_text(encoding="utf-8")
            for place in (folder, checkpoint.parent if checkpoint else folder):
                text = text.replace(f"{place}/", "")  # temporary folders mean nothing to a reader
            record = smaller(json.loads(text))
        name = f"{job.name}-late" if state == "late" else job.name
        (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


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


if __name__ == "__main__":
    main()
