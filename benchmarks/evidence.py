"""Make everything under reports/ that a GPU run proves, by one command.

    python benchmarks/evidence.py              (needs a CUDA device)
    python benchmarks/evidence.py --index      (only writes the pages from the JSONs that are there)

Scans both examples (`--plotly none`: no third-party script enters the repository), repeats the comparison of the
emulated autocast policy with the real one, times the counting kernel, and writes README.md and the tables from the
JSONs alone.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

from mpdiag import load
from mpdiag.report.digest import verdict_of

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ("digits_cnn", "char_gpt")


def make(out: Path) -> None:
    for name in EXAMPLES:
        command = [sys.executable, "-m", "mpdiag", "scan", f"examples/{name}.py", "--plotly", "none"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{name}: exit code {code}")
    for name in ("emulation", "count_kernel", "capture"):
        subprocess.run([sys.executable, f"benchmarks/{name}.py", str(out / f"{name}.json")], cwd=ROOT, check=True)


def index(out: Path) -> None:
    lines = [
        "# Evidence",
        "",
        "Real runs, written by `python benchmarks/evidence.py` on the machine each row names. Nothing here is edited "
        "by hand.",
        "",
        "| report | on | when | command | verdict |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name in EXAMPLES:
        d = load(out / f"{name}.json")
        on = f"{d.environment.gpu}, driver {d.environment.driver}, torch {d.environment.torch}"
        verdict, reason = verdict_of(d)
        command = f"mpdiag scan examples/{name}.py --plotly none"
        lines.append(
            f"| [{name}]({name}.html) ([JSON]({name}.json)) | {on} | {d.created} | `{command}` | {verdict}: {reason} |"
        )
    lines += [
        "",
        "- [emulation.md](emulation.md): the emulated CUDA autocast policy against the real one.",
        "- [count_kernel.md](count_kernel.md): the counting kernel against the read ceiling of the card.",
        "- [capture.md](capture.md): what observing costs a training step.",
        "",
    ]
    (out / "count_kernel.md").write_text(
        kernel_page(json.loads((out / "count_kernel.json").read_text())), encoding="utf-8"
    )
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")
    (out / "capture.md").write_text(capture_page(json.loads((out / "capture.json").read_text())), encoding="utf-8")
    (out / "emulation.md").write_text(
        emulation_page(json.loads((out / "emulation.json").read_text())), encoding="utf-8"
    )


def emulation_page(record: dict[str, object]) -> str:
    machine = record["environment"]
    assert isinstance(machine, dict)
    lines = [
        "# The emulated CUDA autocast policy against the real one",
        "",
        f"`{record['command']}` on {machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}. "
        f"{record['steps']} AdamW steps from one start on the same batches, FP16 with a loss scale of 2^14, TF32 off.",
        "",
        "Types: modules whose output, or parameters whose copy, has another type under the emulation than on the GPU. "
        "Differences: largest over the steps, relative to the first loss.",
        "",
        "| kind of model | modules | types that differ | FP16 against FP32, on the GPU | emulation on the CPU against "
        "FP16 on the GPU | FP32 on the CPU against FP32 on the GPU |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = record["rows"]
    assert isinstance(rows, list)
    for row in rows:
        off = len(row["dtype_mismatches"]) + len(row["cast_mismatches"])
        lines.append(
            f"| {row['kind']} | {row['modules']} | {off} | {row['fp16_against_fp32']:.1e} | "
            f"{row['emulated_against_fp16']:.1e} | {row['cpu_against_gpu_fp32']:.1e} |"
        )
    ratio = statistics.median(row["emulated_against_fp16"] / row["fp16_against_fp32"] for row in rows)
    lines += [
        "",
        f"Median over the kinds: the emulation is {ratio:.2f} times as far from the GPU's FP16 as that is from FP32.",
        "",
    ]
    return "\n".join(lines)


def capture_page(record: dict[str, object]) -> str:
    machine, rows = record["environment"], record["rows"]
    assert isinstance(machine, dict)
    assert isinstance(rows, list)
    lines = [
        "# What observing costs",
        "",
        f"`{record['command']}` on {machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}.",
        "",
        "FP32 (IEEE), fused AdamW; every activation, activation gradient, weight, weight gradient and update, every "
        "step; blocks of steps with and without the probe alternate.",
        "",
        "| model | tensors | no hooks, ms a step | with the probe | ratio | smallest and largest of the blocks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['tensors']} | {row['no_hooks_ms']:.1f} | {row['probe_ms']:.1f} | "
            f"{row['ratio']:.2f} | {row['smallest_ratio']:.2f} to {row['largest_ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def kernel_page(record: dict[str, object]) -> str:
    machine, rows = record["environment"], record["rows"]
    assert isinstance(machine, dict)
    assert isinstance(rows, list)
    lines = [
        "# The counting kernel against the read ceiling",
        "",
        f"`{record['command']}` on {machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}; counted by "
        f"{record['counted_by']}. Median of event-timed calls, GB/s of the tensor's bytes read once.",
        "",
        "Ceiling: the quicker of torch's own sum and amax in the same run. wide: exponents from about 2^-40 to 2^40, "
        "beyond the kernel's private bins.",
        "",
        "| MiB | type | input | kernel GB/s | ceiling GB/s | share | portable path GB/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ceiling = max(row["sum_gb_s"], row["amax_gb_s"])
        portable = f"{row['portable_gb_s']:.0f}" if "portable_gb_s" in row else ""
        lines.append(
            f"| {row['MiB']} | {row['dtype']} | {row['input']} | {row['kernel_gb_s']:.0f} | {ceiling:.0f} | "
            f"{row['share_of_ceiling']:.2f} | {portable} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    out = ROOT / "reports"
    out.mkdir(exist_ok=True)
    if "--index" not in sys.argv:
        make(out)
    index(out)


if __name__ == "__main__":
    main()
