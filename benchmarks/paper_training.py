"""The FP32 training before a late scan, in a process of its own so that it has one GPU and one set of variables.

    python benchmarks/paper_training.py JOB SECONDS MOST_STEPS CHECKPOINT RECORD

The arithmetic is FP32's with TF32 products, which is FP32 training as PyTorch's users run it on such a GPU.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mpdiag.target import load_job
from mpdiag.target.job import ONLY
from mpdiag.training.precision import Precision
from mpdiag.training.session import open_session, total
from paper_jobs import JOBS, PaperJob

ROOT = Path(__file__).resolve().parents[1]
WARMUP_SHARE = 0.05  # of the training: transformers with the norms after the sums do not stand the full rate at once
TRAINING_SEED = 1000  # not one of the scans': what they train on was drawn anew
DRAWN = 800  # batches at most, a few seconds' work to draw; they repeat after that


def train(job: PaperJob, checkpoint: Path, seconds: float, most_steps: int) -> dict[str, Any]:
    """Train at the job's own learning rate until its time is up, then save it with the late rate; what it came to.

    A training that fails is a record with an `error`, and leaves no checkpoint.
    """
    record: dict[str, Any] = {"late_learning_rate": job.late_rate, "why": job.why_late}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        loaded = load_job(str(ROOT / "examples" / f"{job.example}.py"))
        start = loaded.start(TRAINING_SEED, min(most_steps, DRAWN))
        with open_session(loaded, start, Precision("FP32 with TF32 products", tf32=True), device) as session:
            groups = [group for optimizer in session.optimizers.values() for group in optimizer.param_groups]
            rates = [group["lr"] for group in groups]
            losses: list[float] = []
            began = time.perf_counter()
            while (share := (time.perf_counter() - began) / seconds) < 1 and len(losses) < most_steps:
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate * min(1.0, (share + 0.01 * WARMUP_SHARE) / WARMUP_SHARE)
                losses.append(total(session.step(session.place(start.batch(len(losses))))))
            for group in groups:
                group["lr"] = job.late_rate
            tail = losses[-max(1, len(losses) // 20) :]
            record |= {"steps": len(losses), "seconds": round(time.perf_counter() - began, 1)}
            record |= {"first_loss": losses[0], "last_loss": sum(tail) / len(tail), "metric": session.evaluate()}
            if not math.isfinite(record["last_loss"]):
                return {"error": "the FP32 training did not stay finite", **_strict(record)}
            states = {name: optimizer.state_dict() for name, optimizer in session.optimizers.items()}
            content = {"model": session.model.state_dict(), "optimizer": states.get(ONLY, states)}
            torch.save(pytree.tree_map(lambda v: v.cpu() if isinstance(v, torch.Tensor) else v, content), checkpoint)
    except Exception as error:  # the other jobs go on
        return {"error": f"{type(error).__name__}: {error}", **_strict(record)}
    return _strict(record)


def _strict(record: dict[str, Any]) -> dict[str, Any]:
    """A number that is none becomes a word, as JSON has no such numbers."""
    made = pytree.tree_map(lambda v: str(v) if isinstance(v, float) and not math.isfinite(v) else v, record)
    return dict(made)


if __name__ == "__main__":
    name, seconds, most_steps, checkpoint, out = sys.argv[1:]
    made = train(JOBS[name], Path(checkpoint), float(seconds), int(most_steps))
    Path(out).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
