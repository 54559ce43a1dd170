"""The table of paper.md on what mixed precision costs, from the JSONs alone."""

from __future__ import annotations

from typing import Any

from paper_jobs import PaperJob
from paper_records import (
    COSTS,
    Record,
    cost,
    entries,
    largest,
    largest_entries,
    memory_use,
    missing,
    number_of,
    peak_bytes,
    why_not,
)

COST_COLUMNS = (
    "job", "peak memory", "pure FP16's memory", "step time", "over TF32", "GPU busy", "energy", "largest batch",
)  # fmt: skip
AGAINST_TF32 = {"better": "faster", "worse": "**slower**", "equivalent": "the same"}
MOVES = 0.05  # of the ratio of peaks: workspace that moves it by less is not worth a word
ABOUT = f"""
## What mixed precision costs

Mixed over FP32, from initialisation; below 1 is a gain, with a 95 % interval where there is one. "Over TF32": the same
step against FP32 with TF32 products, which is how PyTorch's users can train on such a GPU without mixed precision.
"Pure FP16's memory": its peak over FP32's. "Workspace": what an operator has for itself alone at the peak; told where
the ratio of peaks without it is another by {MOVES:g} or more. "GPU busy": the part of a mixed step in which the GPU
works; the rest it waits for the host, and a quicker product makes the step no shorter. "Largest batch": of FP32 and of
mixed precision, with the samples a second at each, beside IEEE FP32; TF32 was not tried there.
"""


def cost_cells(job: PaperJob, record: Record | None) -> list[str]:
    """A job's row."""
    if not job.from_initialisation:
        return [job.name, f"as {job.example}", *[""] * 6]
    if record is None or not entries(record, "trials"):
        return [job.name, why_not(record, "init", {}), *[""] * 6]
    memory, time, energy = (_cost(cost(record, quantity)) for quantity in COSTS)
    memory += _workspace(record)
    return [job.name, memory, _pure_memory(record), time, _over_tf32(record), _busy(record), energy, _largest(record)]


def _busy(record: Record) -> str:
    """The share of a mixed step in which the GPU works, by its trace; the rest it waits for the host."""
    kernels = ((record.get("verification") or {}).get("costs") or {}).get("kernels") or []
    traced: Record = next((each for each in kernels if each.get("arm") == "fp16"), {})
    busy = number_of((traced.get("time") or {}).get("busy_share"))
    return "not measured" if busy is None else f"{busy:.0%}"


def _pure_memory(record: Record) -> str:
    (mine, why), (theirs, why_theirs) = (peak_bytes(record, arm) for arm in ("fp16-pure", "fp32"))
    if not mine or not theirs:
        told = cost(record, "peak_memory_bytes", arm="fp16-pure").get("reason")
        return missing((why if theirs else why_theirs) or told)
    return f"{mine / theirs:.2f}, {mine / 2**30:.2f} GiB"


def _workspace(record: Record) -> str:
    """Where an operator's workspace makes much of the ratio of peaks: how much it is, and the ratio without it."""
    (theirs, their_space), (mine, my_space) = (_split(memory_use(record, arm)) for arm in ("fp32", "fp16"))
    if not theirs or not mine or theirs <= their_space:
        return ""
    without = (mine - my_space) / (theirs - their_space)
    if abs(without - mine / theirs) < MOVES:
        return ""
    told = " and ".join(
        f"{space / 2**20:,.0f} of {whole} MiB"
        for space, whole in ((their_space, f"FP32's {theirs / 2**20:,.0f}"), (my_space, f"mixed's {mine / 2**20:,.0f}"))
    )
    return f"; {told} are workspace, {without:.2f} without it"


def _split(use: Record) -> tuple[float, float]:
    """(the recorded step's peak, the workspace in it), in bytes; zeros where it was not recorded."""
    split = use.get("split") or {}
    return number_of(use.get("recorded_peak_bytes")) or 0.0, number_of(split.get("workspace_bytes")) or 0.0


def _over_tf32(record: Record) -> str:
    found = cost(record, "step_time_ms", baseline="tf32")
    word = AGAINST_TF32.get(str(found.get("verdict")))
    return f"{_cost(found)}, {word}" if word else _cost(found)


def _cost(found: Record) -> str:
    """A ratio with its interval and what it is the ratio of, or why there is none."""
    ratio, quantity = number_of(found.get("difference")), found.get("quantity")
    if ratio is None:
        return missing(found.get("reason"))
    text = f"{ratio:.2f}"
    ends = [number_of(end) for end in found.get("interval") or []]
    if len(ends) == 2 and None not in ends:
        text += f" ({ends[0]:.2f} to {ends[1]:.2f})"
    base, mine = (number_of(found.get(key)) for key in ("baseline_value", "candidate_value"))
    if quantity == "peak_memory_bytes" and base and mine:
        text += f", {base / 2**30:.2f} to {mine / 2**30:.2f} GiB"
    if quantity == "step_time_ms" and base and mine:
        text += f", {base:.1f} to {mine:.1f} ms"
    if found.get("verdict") == "inconclusive":
        text += f", undecided{': ' if found.get('reason') else ''}{found.get('reason') or ''}"
    return text


def _largest(record: Record) -> str:
    found, (base, mixed) = largest(record), largest_entries(record, ("fp32", "fp16"))
    if found is not None:
        return f"{found}; {_rates(base, mixed)}"
    reasons = (e["reason"] for e in (base, mixed) if e.get("reason"))
    costs = (record.get("verification") or {}).get("costs") or {}
    return missing(next(reasons, costs.get("largest_batch_reason")))


def _rates(base: dict[str, Any], mixed: dict[str, Any]) -> str:
    before, after = (number_of(each.get("samples_per_second")) for each in (base, mixed))
    if before and after:
        return f"{before:,.0f} to {after:,.0f} samples/s, {after / before:.1f}x"
    if before or after:
        measured, other = ("FP32", "mixed") if before else ("mixed", "FP32")
        return f"{before or after:,.0f} samples/s in {measured}, not measured in {other}"
    return "samples/s not measured"
