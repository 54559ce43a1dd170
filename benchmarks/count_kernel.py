"""The counting kernel against the read ceiling of this card, measured in the same run.

    python benchmarks/count_kernel.py [OUT.json]          (needs a CUDA device)

GB/s counts the bytes of the tensor once. The ceiling is the quicker of torch's own one-pass reductions (sum, amax).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mpdiag.capture.counting import CountTable
from mpdiag.device.environment import describe
from mpdiag.device.stopwatch import time_steps

GPU = torch.device("cuda", 0)
INPUTS = {
    "normal": lambda n, dtype: torch.randn(n, device=GPU).to(dtype),
    "relu": lambda n, dtype: torch.randn(n, device=GPU).relu_().to(dtype),
    "wide": lambda n, dtype: torch.randn(n, device=GPU).mul_(torch.randn(n, device=GPU).mul_(9).exp2_()).to(dtype),
}


def rate(body, values) -> float:
    for _ in range(3):
        body()
    return values.numel() * values.element_size() / time_steps(body, 0.3, max_steps=300).median_ms / 1e6


def main() -> None:
    rows = []
    for mebibytes in (1024, 256, 64, 16):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for kind, make in INPUTS.items():
                values = make(mebibytes * 2**20 // dtype.itemsize, dtype)
                table, portable = CountTable(GPU), CountTable(GPU, portable=True)
                row = {
                    "MiB": mebibytes,
                    "dtype": str(dtype).removeprefix("torch."),
                    "input": kind,
                    "kernel_gb_s": rate(lambda t=table, v=values: t.add(0, v), values),
                    "sum_gb_s": rate(lambda v=values: v.sum(), values),
                    "amax_gb_s": rate(lambda v=values: v.amax(), values),
                }
                if mebibytes == 256 and kind == "normal":
                    row["portable_gb_s"] = rate(lambda t=portable, v=values: t.add(0, v), values)
                row["share_of_ceiling"] = row["kernel_gb_s"] / max(row["sum_gb_s"], row["amax_gb_s"])
                rows.append(row)
                print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()))
    record = {
        "command": "python benchmarks/count_kernel.py",
        "environment": vars(describe(GPU)),
        "counted_by": table.counted_by,
        "rows": rows,
    }
    print(table.counted_by)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
