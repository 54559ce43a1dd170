"""reports/paper.md from the JSONs alone: what showed, our arms beside FP32, what they cost, the paper's own words."""

from __future__ import annotations

import math

from paper_costs import ABOUT, COST_COLUMNS, cost_cells
from paper_cuts import cut_lines
from paper_jobs import JOBS, PaperJob
from paper_plan import foretold_lines, fp32_line, made_when, plan_line
from paper_records import (
    ARMS,
    MISSING,
    Record,
    cuts,
    entries,
    extent,
    judged,
    name_of,
    number_of,
    shown,
    verdict_of,
    why_not,
)
from paper_sentences import sentence

HEAD = """# The paper again

Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740, ICLR 2018), its kinds of jobs made small enough to
run here, by `python benchmarks/paper.py`{machine}.
Nothing here is edited by hand; ratios of costs and all words are made of the runs' JSONs by this version.

- Init: from initialisation, for what the arms cost; so few steps tell little of where training leads.
- Late: every arm starts from one FP32 state that was trained before (TF32 products), with its optimizer's state and at
  the learning rate of that age; the seeds differ in their batches.
{fp32}
- Mixed: FP16 autocast with the loss scale that mpdiag recommends; unscaled: without one; pure FP16: no FP32 master
  weights either, and no scale.
{plan}
## What showed
"""
MAIN = """
## Ours beside the paper's

- Ours: metric and loss in one cell, in the order of the column "of". The word behind a figure, or behind two that share
  it, says how it compares with FP32, paired by seed (90 % interval and a margin by a rule fixed before the runs):
  equivalent, better, worse, not worse, undecided. With fewer than five seeds it is preliminary.
- The paper's: of the nearest kind of job it has, [read] in its text or [read, secondary] where someone quotes it; other
  figures of it are left out. On FP16 weights without a master copy it has one figure, for a Mandarin speech model: 80 %
  relative loss of accuracy (Fig. 2a) [read].
- The paper's are of other data and far longer runs: compare how a row's columns relate, not the values.
"""
COLUMNS = (
    "job", "state", "of", "FP32", "mixed", "unscaled", "pure FP16",
    "kind in the paper", "paper: FP32", "paper: mixed", "paper: unscaled",
)  # fmt: skip


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
        costs.append(cost_cells(job, states["init"]))
        said.append(sentence(job, states, training))
    told = {"machine": _machine(records) + made_when(records), "fp32": fp32_line(records)}
    told["plan"] = "".join(f"{line}\n" for line in plan_line(records))
    head = HEAD
    for name, text in told.items():
        head = head.replace(f"{{{name}}}", text)
    lines = [head, *said, MAIN, *_table(COLUMNS, rows), ABOUT, *_table(COST_COLUMNS, costs), ""]
    lines += foretold_lines(records)
    lines += ["## The jobs", "", *_jobs(records), ""]
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
        f"Late: after {training.get('steps')} FP32 steps{_spent(job, training)} "
        f"(loss {shown(training.get('first_loss'))} to {shown(training.get('last_loss'))}"
        f"{f', {metric}' if metric else ''}), at learning rate {shown(training.get('late_learning_rate'))}: "
        f"{training.get('why')}."
    )


def _spent(job: PaperJob, training: Record) -> str:
    """How long it trained, where that is not as planned now."""
    seconds = number_of(training.get("seconds"))
    if seconds is None or abs(seconds - job.train_seconds) < 0.05 * job.train_seconds:
        return ""
    return f" in {seconds:.0f} s, of {job.train_seconds:.0f} s as planned now"
