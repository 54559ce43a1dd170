"""How well one FP32 run foretells FP16, tensor by tensor, on many kinds of model.

    python benchmarks/prediction.py OUT.json [KIND...]          (needs a CUDA device; small models, emulated, on a CPU)

For each kind: one step at the initial weights and one after 100 FP32 steps, each in FP32 and in FP16 autocast from the
same weights and batch, at scale 1 and at 2^10. Compared is the share of the finite non-zero elements that
become zero, for every activation, activation gradient and weight gradient that is FP16 under autocast. Errors in
percentage points over tensors that are not noise and that FP16 did not overflow: gradients with the cascade (a second
FP32 pass whose values and gradients are rounded to FP16 where autocast has them so), and from each tensor's own counts
alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from loss_scale_jobs import JOBS
from made_on import origin
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import SelfTest
from mpdiag.foretold import Prediction
from mpdiag.target import Job, load_job
from mpdiag.verify.prediction import compare_with_fp16

TARGETS = Path(__file__).resolve().parents[1] / "tests" / "targets"
TARGET_KINDS = ("resnet", "encoder", "packed_gru", "convnext", "vae", "attention")
STEPS, SCALES = 100, (0, 10)
WORST = 3


def jobs(small: bool) -> dict[str, Job]:
    made = {name: make(small) for name, make in JOBS.items()}
    return made | {f"{name} (tests/targets)": load_job(str(TARGETS / f"{name}.py")) for name in TARGET_KINDS}


def measured(job: Job, device: torch.device) -> Prediction:
    start = job.start(0, STEPS)
    observation = Observation(device, 0, SelfTest(None, 0), observe(job, start, device))
    observe_training(job, start, observation, [[0]])
    types = {(table.kind, table.name): table.amp_dtype for table in observation.record().tables}
    return compare_with_fp16(job, start, device, types, SCALES, STEPS)


def row_of(kind: str, found: Prediction) -> dict[str, object]:
    worst = sorted((t for t in found.tensors if t.comparable), key=lambda t: -t.error_points)[:WORST]
    return {
        "kind": kind,
        "comparisons": len(found.tensors) - found.noise_tensors - found.overflowed_tensors,
        "noise": found.noise_tensors,
        "overflowed": found.overflowed_tensors,
        "median_error_points": found.median_error_points,
        "p95_error_points": found.p95_error_points,
        "alone_median_error_points": found.alone_median_error_points,
        "alone_p95_error_points": found.alone_p95_error_points,
        "largest_observed_underflow": max((t.observed_underflow for t in found.tensors if not t.noise), default=None),
        "overflow_missed": list(found.overflow_missed),
        "cascade_reason": found.cascade_reason,
        "worst": [vars(t) | {"error_points": t.error_points} for t in worst],
    }


def main() -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    out, wanted = Path(sys.argv[1]), sys.argv[2:]
    rows: list[dict[str, object]] = []
    print(f"{'kind':<28}{'compared':>9}{'noise':>6}{'median':>8}{'95 %':>8}{'alone':>8}{'95 %':>8}{'most lost':>10}")
    for kind, job in jobs(device.type != "cuda").items():
        if wanted and kind not in wanted:
            continue
        row = row_of(kind, measured(job, device))
        rows.append(row)
        points = ("median_error_points", "p95_error_points", "alone_median_error_points", "alone_p95_error_points")
        shown = "".join(f"{row[p]:>8.3f}" if row[p] is not None else f"{'-':>8}" for p in points)
        print(
            f"{kind:<28}{row['comparisons']:>9}{row['noise']:>6}{shown}{row['largest_observed_underflow']:>10.4f}",
            flush=True,
        )
        record = {
            **origin("python benchmarks/prediction.py", device),
            "steps": STEPS,
            "log2_scales": SCALES,
            "rows": rows,
        }
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
