"""The counting kernel against torch's own reductions over the same bytes, measured in the same run.

    python benchmarks/count_kernel.py [OUT.json]          (needs a CUDA device)

GB/s counts the bytes of the tensor once. Beside it stand torch's own one-pass reductions (sum, amax) and, from 256 MiB
on, torch's clone, its bytes read and written.
blocks_gb_s is the kernel that counts inside blocks too; it runs in one step of a capture only.
Each body is a CUDA graph of calls over buffers that together exceed the L2 cache several times, so that neither
Python's launches nor the cache are measured; graphs are replayed in turns and the median replay is taken.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from made_on import origin
from mpdiag.capture.counting import CountTable

GPU = torch.device("cuda", 0)
AT_LEAST = 512 * 2**20  # bytes read in one replay: ten times an H100's L2 cache
REPLAYS = 15
COPY, LARGE_MIB = "copy_gb_s", 256  # of less, what a copy writes stays in the L2 cache
INPUTS = {
    "normal": lambda n: torch.randn(n, device=GPU),
    "relu": lambda n: torch.randn(n, device=GPU).relu_(),
    "gradients": lambda n: torch.randn(n, device=GPU).mul_(torch.randn(n, device=GPU).mul_(4).sub_(10).exp2_()),
    "wide": lambda n: torch.randn(n, device=GPU).mul_(torch.randn(n, device=GPU).mul_(9).exp2_()),
}
"""gradients: exponents around 2^-10, standard deviation 4: a quarter is subnormal in FP16. wide: standard deviation 9,
from about 2^-40 to 2^40, beyond the kernel's own window."""


def graph_of(call: Callable[[torch.Tensor], object], buffers: list[torch.Tensor]) -> torch.cuda.CUDAGraph:
    call(buffers[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for buffer in buffers:
            call(buffer)
    return graph


def rates(calls: dict[str, Callable[[torch.Tensor], object]], buffers: list[torch.Tensor]) -> dict[str, float]:
    """GB/s of each call, replayed in turns."""
    graphs = {name: graph_of(call, buffers) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPLAYS):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    size = sum(buffer.numel() * buffer.element_size() for buffer in buffers)
    passes = {name: 2 if name == COPY else 1 for name in calls}  # a copy reads and writes
    return {name: passes[name] * size / statistics.median(found) / 1e6 for name, found in times.items()}


def rows_of(sizes: tuple[int, ...] = (1024, 256, 64, 16, 4)) -> list[dict[str, object]]:
    rows = []
    for mebibytes in sizes:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for kind, make in INPUTS.items():
                size = mebibytes * 2**20
                first = make(size // dtype.itemsize).to(dtype)
                buffers = [first, *(first.clone() for _ in range(AT_LEAST // size - 1))]
                table, portable = CountTable(GPU), CountTable(GPU, portable=True)
                calls = {
                    "kernel_gb_s": lambda v, t=table: t.add(0, v),
                    "blocks_gb_s": lambda v, t=table: t.add_with_blocks(0, v, False),
                    "sum_gb_s": lambda v: v.sum(),
                    "amax_gb_s": lambda v: v.amax(),
                }
                if mebibytes >= LARGE_MIB:
                    calls[COPY] = lambda v: v.clone()
                if mebibytes == 256 and kind == "normal":
                    calls["portable_gb_s"] = lambda v, t=portable: t.add(0, v)
                found = rates(calls, buffers)
                name = str(dtype).removeprefix("torch.")
                row = {"MiB": mebibytes, "dtype": name, "input": kind, **found}
                rows.append(row)
                print(*(f"{v:.3g}" if isinstance(v, float) else v for v in row.values()), flush=True)
                del first, buffers, calls, table, portable
                torch.cuda.empty_cache()
    return rows


def main() -> None:
    rows = rows_of()
    counted_by = CountTable(GPU).counted_by
    print(counted_by)
    record = {
        **origin("python benchmarks/count_kernel.py", GPU),
        "counted_by": counted_by,
        "rows": rows,
    }
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
