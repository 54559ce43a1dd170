"""reports/count_kernel.md, from its JSON alone."""

from __future__ import annotations

from typing import Any

from made_on import made_on

LARGE_MIB = 64  # more than an H100's L2 cache of 50 MB: from here on the memory's speed decides


def kernel_page(record: dict[str, Any]) -> str:
    rows = record["rows"]
    faster = [row["MiB"] for row in rows if row["kernel_gb_s"] > _torch(row)]
    copied = any("copy_gb_s" in row for row in rows)
    columns = ["MiB", "type", "input", "kernel GB/s", "torch GB/s", "kernel / torch", "portable path GB/s"]
    columns += ["copy GB/s", "kernel / copy"] if copied else []
    lines = [
        "# The counting kernel against torch's own reductions",
        "",
        f"{made_on(record)}; counted by {record['counted_by']}. Median of event-timed calls, GB/s of the tensor's "
        "bytes read once.",
        "",
        "- torch: the quicker of torch's own sum and amax over the same bytes in the same run. It is no ceiling: the "
        f"kernel reads faster in {len(faster)} of {len(rows)} rows"
        + (f", of {max(faster)} MiB and less." if faster else "."),
        "- copy: torch's clone, bytes read and written, from 256 MiB on, where no cache holds what it writes."
        + ("" if copied else " This record is older than that measurement."),
        "- gradients: exponents spread by 4 binades around 2^-10. wide: by 9 around 1, from about 2^-40 to 2^40.",
        "- The kernel's private bins are 128 binades in FP32 and BF16, and the normal numbers in FP16; what lies "
        "outside takes a slower path, with all of its vector of 16 bytes. Of these FP16 gradients a quarter is "
        "subnormal, so that nearly nine of ten vectors take it; of wide ones it is more than half.",
        _large(rows),
        "",
        f"| {' | '.join(columns)} |",
        "| --- " * len(columns) + "|",
    ]
    return "\n".join([*lines, *(_row(row, copied) for row in rows), ""])


def _torch(row: dict[str, Any]) -> float:
    return float(max(row["sum_gb_s"], row["amax_gb_s"]))


def _large(rows: list[dict[str, Any]]) -> str:
    """What the large tensors show, by type and input."""
    shares: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["MiB"] >= LARGE_MIB:
            sort = row["input"] if row["input"] in ("gradients", "wide") else "normal and relu"
            shares.setdefault((row["dtype"], sort), []).append(row["kernel_gb_s"] / _torch(row))
    parts = [f"{dtype} {sort} {_between(found)}" for (dtype, sort), found in shares.items()]
    return f"- From {LARGE_MIB} MiB on, kernel / torch: {'; '.join(parts) or 'not measured'}."


def _between(shares: list[float]) -> str:
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low} to {high}"


def _row(row: dict[str, Any], copied: bool) -> str:
    cells = [str(row["MiB"]), row["dtype"], row["input"], f"{row['kernel_gb_s']:.0f}", f"{_torch(row):.0f}"]
    cells += [f"{row['kernel_gb_s'] / _torch(row):.2f}"]
    cells += [f"{row['portable_gb_s']:.0f}" if "portable_gb_s" in row else ""]
    if copied:
        copy = row.get("copy_gb_s")
        cells += ["", ""] if copy is None else [f"{copy:.0f}", f"{row['kernel_gb_s'] / copy:.2f}"]
    return f"| {' | '.join(cells)} |"
