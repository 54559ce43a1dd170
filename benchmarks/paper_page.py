"""reports/paper.md from the JSONs alone: our arms beside the paper's own columns, and what showed, a sentence a job."""

from __future__ import annotations

import math

from paper_jobs import JOBS, PaperJob
from paper_records import (
    ARMS,
    COSTS,
    MISSING,
    Record,
    cost,
    entries,
    extent,
    judged,
    largest,
    largest_entries,
    missing,
    name_of,
    number_of,
    shown,
    why_not,
)
from paper_sentences import sentence

WORDS = {"inconclusive": "undecided", "not-measured": "not measured"}

HEAD = """# The paper again

Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740, ICLR 2018), its kinds of jobs made small enough to
run here, by `python benchmarks/paper.py`{machine}.
Nothing here is edited by hand.

Init: from initialisation, for what the arms cost; so few steps, named beside it, tell little of where training leads.
Late: every arm starts from one FP32 state that was trained before (TF32 products), with its
optimizer's state and at the learning rate of that age; the seeds differ in their batches. Mixed: FP16 autocast with the
loss scale that mpdiag recommends; unscaled: without one; pure FP16: no FP32 master weights either, and no scale.
A word behind each figure says how it compares with FP32, paired by seed (90 % interval and a margin fixed before the
runs): equivalent, better, worse, undecided. Memory, step time and energy: mixed over FP32 (IEEE arithmetic, no TF32),
below 1 is a gain, with a 95 % interval where there is one.

The paper's columns are quoted: [read] from its text, [read, secondary] from someone who quotes it; other figures of it
are left out. On FP16 weights without a master copy it has one figure, for a Mandarin speech model: 80 % relative loss
of accuracy (Fig. 2a) [read]. All are of other data and far longer runs, so only the relations can be compared, not the
values.

"""
COLUMNS = (
    *("job", "state", "paper, FP32", "paper, mixed", "paper, unscaled", "FP32", "mixed", "unscaled", "pure FP16"),
    *("memory", "step time", "energy", "largest batch"),
)


def page(records: dict[str, Record]) -> str:
    """The page for the records by the names of their files: NAME, NAME-late, NAME-training."""
    rows, said, cut = [], [], []
    for job in JOBS.values():
        states = {"init": records.get(job.name), "late": records.get(f"{job.name}-late")}
        training = records.get(f"{job.name}-training") or {}
        for state, record in states.items():
            if state == "init" and not job.from_initialisation:
                continue
            rows.append(_row(job, state, record, training))
            cut += _cut(job, state, record)
        said.append(sentence(job, states, training))
    lines = [HEAD.replace("{machine}", _machine(records)), _line([*COLUMNS]), "| --- " * len(COLUMNS) + "|", *rows]
    lines += ["", "## What showed", "", *said, ""]
    lines += ["## The jobs", "", *_jobs(records), ""]
    if cut:
        lines += ["## Cut to keep the time", "", *cut, ""]
    return "\n".join(lines)


def _machine(records: dict[str, Record]) -> str:
    found = []
    for record in records.values():
        e = record.get("environment") or {}
        if e:
            on = f"{e['gpu']}, driver {e.get('driver')}" if e.get("gpu") else "a CPU, FP16 emulated: a rehearsal"
            found.append(f" on {on}, torch {e.get('torch')}")
    return " and".join(dict.fromkeys(found))


# the table


def _row(job: PaperJob, state: str, record: Record | None, training: Record) -> str:
    ran = record is not None and bool(entries(record, "trials"))
    at = f"{state}, {extent(record)}" if record is not None and ran else state
    cells = [job.name, at, f"{job.fp32} ({job.source})", job.mixed, job.unscaled]
    if record is None or not ran:
        return _line([*cells, why_not(record, state, training), *[""] * 7])
    cells.append(_baseline(record))
    cells += [_arm(record, arm) for arm in ARMS]
    cells += (
        [_cost(record, quantity) for quantity in COSTS]
        if state == "init"
        else [f"see {job.example}, init"] * len(COSTS)
    )
    cells.append(_largest(record) if state == "init" else f"see {job.example}, init")
    return _line(cells)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _cuts(record: Record) -> list[str]:
    return [str(line) for line in (record.get("verification") or {}).get("cut") or [] if line]


def _baseline(record: Record) -> str:
    found = next((c for arm in (*ARMS, "bf16") if (c := judged(record, arm))), [])
    if found:
        return ", ".join(f"{name_of(c)} {shown(c.get('baseline_value'))}" for c in found)
    return MISSING


def _arm(record: Record, arm: str) -> str:
    found = judged(record, arm)
    if not found:
        return f"not run: {next((line for line in _cuts(record) if f'arm {arm}' in line), 'no reason given')}"
    return ", ".join(f"{_value(c)} {_verdict(c)}" for c in found)


def _value(comparison: Record) -> str:
    value = number_of(comparison.get("candidate_value"))
    return "not finite:" if value is None or not math.isfinite(value) else f"{name_of(comparison)} {value:.4g}"


def _verdict(comparison: Record) -> str:
    verdict = comparison.get("verdict") or MISSING
    return f"**{verdict}**" if verdict == "worse" else WORDS.get(verdict, verdict)


def _cost(record: Record, quantity: str) -> str:
    found = cost(record, quantity)
    ratio = number_of(found.get("difference"))
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
        text += f", undecided: {found.get('reason') or 'no reason given'}"
    return text


def _largest(record: Record) -> str:
    found = largest(record)
    if found is not None:
        return found
    reasons = (e["reason"] for e in largest_entries(record, ("fp32", "fp16")) if e.get("reason"))
    costs = (record.get("verification") or {}).get("costs") or {}
    return missing(next(reasons, costs.get("largest_batch_reason")))


# what was run


def _jobs(records: dict[str, Record]) -> list[str]:
    lines = []
    for job in JOBS.values():
        record = next(
            (r for key in (job.name, f"{job.name}-late") if (r := records.get(key)) and r.get("target")), None
        )
        if record is None:
            lines.append(f"- {job.name}: not run.")
            continue
        target = record["target"]
        data = [note for note in target.get("notes") or [] if str(note).startswith("data: ")]
        size = f"{(target.get('parameters') or 0) / 1e6:.1f} million parameters"
        parts = [f"`examples/{job.example}.py`", size, str(target.get("optimizer")), *data]
        if target.get("samples_per_step"):
            parts.append(f"{target['samples_per_step']} samples a step")
        parts += [_scale(records.get(job.name), "init"), _scale(records.get(f"{job.name}-late"), "late")]
        lines.append(f"- {job.name}: {'; '.join(part for part in parts if part)}. {_trained(job, records)}")
    return lines


def _scale(record: Record | None, state: str) -> str:
    scale = ((record or {}).get("advice") or {}).get("loss_scale") or {}
    if scale.get("log2_scale") is None:
        return ""
    return f"{state}: loss scale 2^{scale['log2_scale']}, {extent(record or {})}"


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


def _cut(job: PaperJob, state: str, record: Record | None) -> list[str]:
    kept = [line for line in _cuts(record or {}) if "already compute FP32 in full" not in line]
    if record and record.get("reason") and entries(record, "trials"):
        kept.insert(0, f"stopped before its end ({record['reason']})")
    return [f"- {job.name}, {state}: {'; '.join(kept)}."] if kept else []
