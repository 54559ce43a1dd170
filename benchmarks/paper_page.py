"""reports/paper.md from the JSONs alone: what showed, our arms beside FP32, what they cost, the paper's own words."""

from __future__ import annotations

import math

from paper_cuts import cut_lines
from paper_jobs import JOBS, PaperJob
from paper_records import (
    ARMS,
    COSTS,
    MISSING,
    Record,
    cost,
    cuts,
    entries,
    extent,
    judged,
    largest,
    largest_entries,
    missing,
    name_of,
    number_of,
    peak_bytes,
    shown,
    verdict_of,
    why_not,
)
from paper_sentences import sentence

HEAD = """# The paper again

Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740, ICLR 2018), its kinds of jobs made small enough to
run here, by `python benchmarks/paper.py`{machine}.
Nothing here is edited by hand.

- Init: from initialisation, for what the arms cost; so few steps tell little of where training leads.
- Late: every arm starts from one FP32 state that was trained before (TF32 products), with its optimizer's state and at
  the learning rate of that age; the seeds differ in their batches.
- FP32: in IEEE arithmetic, set before each scan by `benchmarks/paper_ieee.py`; torch alone would compute convolutions
  and RNNs in TF32.
- Mixed: FP16 autocast with the loss scale that mpdiag recommends; unscaled: without one; pure FP16: no FP32 master
  weights either, and no scale.

## What showed
"""
MAIN = """
## Ours beside the paper's

- Ours: metric and loss in one cell, in the order of the column "of". The word behind a figure, or behind two that share
  it, says how it compares with FP32, paired by seed (90 % interval and a margin fixed before the runs): equivalent,
  better, worse, not worse, undecided.
- The paper's: of the nearest kind of job it has, [read] in its text or [read, secondary] where someone quotes it; other
  figures of it are left out. On FP16 weights without a master copy it has one figure, for a Mandarin speech model: 80 %
  relative loss of accuracy (Fig. 2a) [read].
- The paper's are of other data and far longer runs: compare how a row's columns relate, not the values.
"""
COST = """
## What mixed precision costs

Mixed over FP32, from initialisation; below 1 is a gain, with a 95 % interval where there is one. "Over TF32": the same
step against FP32 with TF32 products, which is how PyTorch's users can train on such a GPU without mixed precision.
"Pure FP16's memory": its peak over FP32's. "GPU busy": the part of a mixed step in which the GPU works; the rest it
waits for the host, and a quicker product makes the step no shorter.
"""
COLUMNS = (
    "job", "state", "of", "FP32", "mixed", "unscaled", "pure FP16",
    "kind in the paper", "paper: FP32", "paper: mixed", "paper: unscaled",
)  # fmt: skip
COST_COLUMNS = (
    "job",
    "peak memory",
    "pure FP16's memory",
    "step time",
    "over TF32",
    "GPU busy",
    "energy",
    "largest batch",
)
AGAINST_TF32 = {"better": "faster", "worse": "**slower**", "equivalent": "the same"}


def page(records: dict[str, Record]) -> str:
    """The page for the records by the names of their files: NAME, NAME-late, NAME-training."""
    rows, costs, said, kept = [], [], [], []
    for job in JOBS.values():
        states = {"init": records.get(job.name), "late": records.get(f"{job.name}-late")}
        training = records.get(f"{job.name}-training") or {}
        for state, record in states.items():
            if state == "init" and not job.from_initialisation:
                continue
            rows.append([job.name, *_row(state, record, training), *_quoted(job)])
            kept += [(f"{job.name}, {state}", line) for line in cuts(record or {})]
        costs.append(_costs(job, states["init"]))
        said.append(sentence(job, states, training))
    lines = [HEAD.replace("{machine}", _machine(records)), *said]
    lines += [MAIN, *_table(COLUMNS, rows), COST, *_table(COST_COLUMNS, costs)]
    lines += ["", "## The jobs", "", *_jobs(records), ""]
    if kept:
        lines += ["## Cut to keep the time", "", *cut_lines(kept), ""]
    return "\n".join(lines)


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
    return [_line([*columns]), "| --- " * len(columns) + "|", *map(_line, rows)]


def _machine(records: dict[str, Record]) -> str:
    found = []
    for record in records.values():
        e = record.get("environment") or {}
        if e:
            on = f"{e['gpu']}, driver {e.get('driver')}" if e.get("gpu") else "a CPU, FP16 emulated: a rehearsal"
            found.append(f" on {on}, torch {e.get('torch')}")
    return " and".join(dict.fromkeys(found))


# the tables


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _row(state: str, record: Record | None, training: Record) -> list[str]:
    """Our columns, from the state on."""
    if record is None or not entries(record, "trials"):
        return [state, "", why_not(record, state, training), "", "", ""]
    baseline = next((c for arm in (*ARMS, "bf16") if (c := judged(record, arm))), [])
    names = [name_of(c) for c in baseline]
    values = ", ".join(shown(c.get("baseline_value")) for c in baseline) or MISSING
    of = [f"{state}, {extent(record)}", ", ".join(names), values]
    return [*of, *(_arm(record, arm, names) for arm in ARMS)]


def _arm(record: Record, arm: str, names: list[str]) -> str:
    """An arm's figures in the order of `names`, each with its verdict; named where they are others than those."""
    found = judged(record, arm)
    if not found:
        return f"not run: {next((line for line in cuts(record) if f'arm {arm}' in line), 'no reason given')}"
    named = [name_of(c) for c in found] != names
    values = [f"{name_of(c)} {_value(c)}" if named else _value(c) for c in found]
    verdicts = [f"**{word}**" if (word := verdict_of(c)) == "worse" else word for c in found]
    if len(set(verdicts)) == 1:
        return f"{', '.join(dict.fromkeys(values) if set(values) == {NOT_FINITE} else values)} {verdicts[0]}"
    return ", ".join(f"{value} {verdict}" for value, verdict in zip(values, verdicts, strict=True))


NOT_FINITE = "not finite"


def _value(comparison: Record) -> str:
    value = number_of(comparison.get("candidate_value"))
    return NOT_FINITE if value is None or not math.isfinite(value) else f"{value:.4g}"


def _costs(job: PaperJob, record: Record | None) -> list[str]:
    if not job.from_initialisation:
        return [job.name, f"as {job.example}", *[""] * 6]
    if record is None or not entries(record, "trials"):
        return [job.name, why_not(record, "init", {}), *[""] * 6]
    memory, time, energy = (_cost(cost(record, quantity)) for quantity in COSTS)
    return [job.name, memory, _pure_memory(record), time, _over_tf32(record), _busy(record), energy, _largest(record)]


def _busy(record: Record) -> str:
    """The share of a mixed step in which the GPU works, by its trace; the rest it waits for the host."""
    kernels = ((record.get("verification") or {}).get("costs") or {}).get("kernels") or []
    traced = next((each for each in kernels if each.get("arm") == "fp16"), {})
    busy = number_of((traced.get("time") or {}).get("busy_share"))
    return "not measured" if busy is None else f"{busy:.0%}"


def _pure_memory(record: Record) -> str:
    (mine, why), (theirs, why_theirs) = (peak_bytes(record, arm) for arm in ("fp16-pure", "fp32"))
    if not mine or not theirs:
        told = cost(record, "peak_memory_bytes", arm="fp16-pure").get("reason")
        return missing((why if theirs else why_theirs) or told)
    return f"{mine / theirs:.2f}, {mine / 2**30:.2f} GiB"


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
    found = largest(record)
    if found is not None:
        return found
    reasons = (e["reason"] for e in largest_entries(record, ("fp32", "fp16")) if e.get("reason"))
    costs = (record.get("verification") or {}).get("costs") or {}
    return missing(next(reasons, costs.get("largest_batch_reason")))


def _quoted(job: PaperJob) -> list[str]:
    """The paper's columns; none where it has no such job."""
    return [job.source, *(["", "", ""] if job.unscaled_worse is None else [job.fp32, job.mixed, job.unscaled])]


# what was run


def _jobs(records: dict[str, Record]) -> list[str]:
    lines = []
    for job in JOBS.values():
        record = next(
            (r for key in (job.name, f"{job.name}-late") if (r := records.get(key)) and r.get("target")), None
        )
        if record is None:
            lines.append(f"- **{job.name}**: not run.")
            continue
        target = record["target"]
        data = [note for note in target.get("notes") or [] if str(note).startswith("data: ")]
        size = f"{(target.get('parameters') or 0) / 1e6:.1f} million parameters"
        parts = [f"`examples/{job.example}.py`", size, str(target.get("optimizer")), *data]
        if target.get("samples_per_step"):
            parts.append(f"{target['samples_per_step']} samples a step")
        scales = [_scale(records.get(job.name), "init"), _scale(records.get(f"{job.name}-late"), "late")]
        if any(scales):
            parts.append(f"loss scale {', '.join(filter(None, scales))}")
        lines.append(f"- **{job.name}**: {'; '.join(parts)}. {_trained(job, records)}".rstrip())
    return lines


def _scale(record: Record | None, state: str) -> str:
    scale = ((record or {}).get("advice") or {}).get("loss_scale") or {}
    if scale.get("log2_scale") is None:
        return ""
    return f"2^{scale['log2_scale']} ({state})"


def _trained(job: PaperJob, records: dict[str, Record]) -> str:
    training = records.get(f"{job.name}-training")
    if not training:
        return ""
    if training.get("error"):
        return f"Training: {training['error']}."
    metric = ", ".join(f"{k.replace('_', ' ')} {shown(v)}" for k, v in (training.get("metric") or {}).items())
    return (
        f"Late: after {training.get('steps')} FP32 steps (loss {shown(training.get('first_loss'))} to "
        f"{shown(training.get('last_loss'))}{f', {metric}' if metric else ''}), at learning rate "
        f"{shown(training.get('late_learning_rate'))}: {training.get('why')}."
    )
