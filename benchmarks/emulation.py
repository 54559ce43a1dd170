"""How near the emulated CUDA autocast policy on a CPU comes to the real one on a GPU.

    python benchmarks/emulation.py OUT.json          (needs a CUDA device)

For each kind of model: the type of every module's output, and the losses of 40 steps from the same start on the same
batches, FP16 with a loss scale of 2^14 (TF32 off). Three differences, each the largest over the steps and relative
to the first loss: FP16 against FP32 on the GPU (what FP16 itself changes), the emulation against FP16 on the GPU,
and FP32 on the CPU against FP32 on the GPU (what another machine's rounding changes).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from made_on import origin
from mpdiag.capture.autocast_types import observe
from mpdiag.target import Job, Start, load_job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.training.session import open_session, total

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("resnet", "encoder", "lstm", "packed_gru", "unet", "convnext", "gan", "vae")
STEPS = 40
FP16 = Precision("FP16", torch.float16, log2_scale=14, ieee=True)


def losses(job: Job, start: Start, precision: Precision, device: torch.device, steps: int = STEPS) -> list[float]:
    with open_session(job, start, precision, device) as run:
        return [total(run.step(run.place(start.batch(step)))) for step in range(steps)]


def compare(kind: str) -> dict[str, object]:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    job = load_job(str(ROOT / "tests" / "targets" / f"{kind}.py"))
    start = job.start(0, STEPS)
    real, emulated = observe(job, start, gpu), observe(job, start, cpu)
    fp32_gpu, fp16_gpu = losses(job, start, FP32_IEEE, gpu), losses(job, start, FP16, gpu)
    fp32_cpu, fp16_cpu = losses(job, start, FP32_IEEE, cpu), losses(job, start, FP16, cpu)

    def largest(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) for x, y in zip(a, b, strict=True)) / abs(fp32_gpu[0])

    return {
        "kind": kind,
        "modules": len(real.outputs),
        "dtype_mismatches": sorted(n for n in real.outputs if real.outputs[n] != emulated.outputs.get(n)),
        "cast_mismatches": sorted(real.cast ^ emulated.cast),
        "loss_dtype": [real.loss, emulated.loss],
        "errors": [real.error, emulated.error],
        "fp16_against_fp32": largest(fp16_gpu, fp32_gpu),
        "emulated_against_fp16": largest(fp16_cpu, fp16_gpu),
        "cpu_against_gpu_fp32": largest(fp32_cpu, fp32_gpu),
    }


def main() -> None:
    rows = [compare(kind) for kind in KINDS]
    print(f"{'kind':<12}{'modules':>8}{'dtype off':>10}{'FP16-FP32':>12}{'emul-FP16':>12}{'CPU-GPU FP32':>14}")
    for row in rows:
        off = len(row["dtype_mismatches"]) + len(row["cast_mismatches"])  # type: ignore[arg-type]
        print(
            f"{row['kind']:<12}{row['modules']:>8}{off:>10}{row['fp16_against_fp32']:>12.1e}"
            f"{row['emulated_against_fp16']:>12.1e}{row['cpu_against_gpu_fp32']:>14.1e}"
        )
    record = {
        **origin("python benchmarks/emulation.py", torch.device("cuda", 0)),
        "steps": STEPS,
        "rows": rows,
    }
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
