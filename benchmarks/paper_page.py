"""reports/paper.md from the JSONs alone: our arms beside the paper's own columns, and what showed, a sentence a job."""

from __future__ import annotations

import math
from typing import Any

from paper_jobs import JOBS, PaperJob

ARMS = {"fp16": "mixed", "fp16-unscaled": "mixed unscaled", "fp16-pure": "pure FP16"}
COSTS = {"peak_memory_bytes": "memory", "step_time_ms": "step time", "energy_joules_per_sample": "energy"}
WORDS = {"inconclusive": "undecided", "not-measured": "not measured"}
MISSING = "not measured"
Record = dict[str, Any]

HEAD = """# The paper again

Micikevicius et al., "Mixed Precision Training" (arXiv 1710.03740, ICLR 2018), its kinds of jobs made small enough to
run here, by `python benchmarks/paper.py`{machine}.
Nothing here is edited by hand.

Init: from initialisation. Late: every arm starts from one FP32 state that was trained before (TF32 products), with its
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


def missing(reason: str | None) -> str:
    """Why a figure is not there, said once."""
    return f"{MISSING}: {(reason or 'not in the JSON').removeprefix(f'{MISSING}: ')}"


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
        said.append(_sentence(job, states, training))
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
    cells = [job.name, state, f"{job.fp32} ({job.source})", job.mixed, job.unscaled]
    if not record or not _all(record, "trials"):
        return _line([*cells, _why_not(record, state, training), *[""] * 7])
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


def _why_not(record: Record | None, state: str, training: Record) -> str:
    if record is None:
        failed = training.get("error") if state == "late" else None
        return f"not run: {failed}" if failed else "not run"
    return f"not run: {record.get('error') or record.get('reason') or (record.get('verification') or {}).get('reason')}"


def _all(record: Record, part: str) -> list[Record]:
    """The trials or the comparisons of a diagnosis."""
    return [entry for entry in (record.get("verification") or {}).get(part) or [] if isinstance(entry, dict)]


def _cuts(record: Record) -> list[str]:
    return [str(line) for line in (record.get("verification") or {}).get("cut") or [] if line]


def _number(value: Any) -> float | None:
    """A number of the JSON, which writes those that are none as words."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    number = _number(value)
    if number is None:
        return MISSING
    return f"{number:.4g}" if math.isfinite(number) else "not finite"


def _comparisons(record: Record, arm: str) -> list[Record]:
    """Of losses and metrics, the metrics first: they are what the paper prints."""
    of_arm = [c for c in _all(record, "comparisons") if c.get("candidate") == arm]
    return sorted((c for c in of_arm if not c.get("is_ratio")), key=lambda c: c.get("quantity") == "loss")


def _baseline(record: Record) -> str:
    found = next((c for arm in (*ARMS, "bf16") if (c := _comparisons(record, arm))), [])
    if found:
        return ", ".join(f"{_name(c)} {_shown(c.get('baseline_value'))}" for c in found)
    return MISSING


def _name(comparison: Record) -> str:
    return str(comparison.get("quantity", "?")).replace("_", " ")


def _arm(record: Record, arm: str) -> str:
    found = _comparisons(record, arm)
    if not found:
        return f"not run: {next((line for line in _cuts(record) if f'arm {arm}' in line), 'no reason given')}"
    return ", ".join(f"{_value(c)} {_verdict(c)}" for c in found)


def _value(comparison: Record) -> str:
    value = _number(comparison.get("candidate_value"))
    return "not finite:" if value is None or not math.isfinite(value) else f"{_name(comparison)} {value:.4g}"


def _verdict(comparison: Record) -> str:
    verdict = comparison.get("verdict") or MISSING
    return f"**{verdict}**" if verdict == "worse" else WORDS.get(verdict, verdict)


def _cost(record: Record, quantity: str) -> str:
    found = next(
        (c for c in _all(record, "comparisons") if c.get("candidate") == "fp16" and c.get("quantity") == quantity), {}
    )
    ratio = _number(found.get("difference"))
    if ratio is None:
        return missing(found.get("reason"))
    text = f"{ratio:.2f}"
    ends = [_number(end) for end in found.get("interval") or []]
    if len(ends) == 2 and None not in ends:
        text += f" ({ends[0]:.2f} to {ends[1]:.2f})"
    base, mine = (_number(found.get(key)) for key in ("baseline_value", "candidate_value"))
    if quantity == "peak_memory_bytes" and base and mine:
        text += f", {base / 2**30:.2f} to {mine / 2**30:.2f} GiB"
    if quantity == "step_time_ms" and base and mine:
        text += f", {base:.1f} to {mine:.1f} ms"
    if found.get("verdict") == "inconclusive":
        text += f", undecided: {found.get('reason') or 'no reason given'}"
    return text


def _largest(record: Record) -> str:
    costs = (record.get("verification") or {}).get("costs") or {}
    found = {entry.get("arm"): entry for entry in costs.get("largest_batch") or [] if isinstance(entry, dict)}
    figures = [_batch(found.get(arm) or {}) for arm in ("fp32", "fp16")]
    if all(figures):
        return " to ".join(figures)
    why = next((e["reason"] for e in found.values() if e.get("reason")), costs.get("largest_batch_reason"))
    return missing(why)


def _batch(entry: Record) -> str:
    return f"{'at least ' if entry.get('at_least') else ''}{entry['batch']}" if entry.get("batch") else ""


# the sentences


def _sentence(job: PaperJob, states: dict[str, Record | None], training: Record) -> str:
    """What showed of the paper on this job, by the verdicts alone."""
    there = {state: record for state, record in states.items() if record and _all(record, "trials")}
    if not there:
        return f"- {job.name}: {_why_not(states['late'] or states['init'], 'late', training)}."
    parts = [f"{what} {_outcomes(there, arm)}" for arm, what in ARMS.items()]
    unscaled, pure = _harm(there, "fp16-unscaled"), _harm(there, "fp16-pure")
    steps = max((t.get("steps") or 0 for r in there.values() for t in _all(r, "trials")), default=0)
    size = f"at this size, in {steps} steps"
    word = {
        True: {
            "worse": "What the paper saw without a scale shows here",
            "not worse": f"What the paper saw without a scale did not show {size}",
            "undecided": f"Whether what the paper saw without a scale shows here stayed undecided {size}",
        },
        False: {
            "worse": "Unlike in the paper, a missing scale did harm here",
            "not worse": "As in the paper, no scale was needed",
            "undecided": f"That no scale is needed, as in the paper, stayed undecided {size}",
        },
        None: {
            "worse": "Without a scale it was visibly worse",
            "not worse": f"Without a scale it was not visibly worse {size}",
            "undecided": f"Whether a scale is needed stayed undecided {size}",
        },
    }[job.unscaled_worse].get(unscaled, "Training without a scale was not run")
    weights = {
        "worse": "FP16 weights without a master copy were visibly worse",
        "broke": "Pure FP16 did not stay finite, as Adam's eps of 1e-8 is 0 there: that hides what its weights do",
        "not worse": f"FP16 weights without a master copy were not visibly worse {size}",
        "undecided": f"Whether FP16 weights without a master copy do harm stayed undecided {size}",
    }.get(pure, "FP16 weights without a master copy were not run")
    return f"- {job.name}{f' ({job.note})' if job.note else ''}: {'; '.join(parts)}. {word}. {weights}."


def _harm(there: dict[str, Record], arm: str) -> str:
    """worse (by a number) in any state, broke in any; else what the latest state that was run says, or not run."""
    found = [_outcome(there[state], arm) for state in ("late", "init") if state in there]
    if any(said.startswith("worse") and "finite" not in said for said in found):
        return "worse"
    if any(said.startswith("worse") for said in found):
        return "broke"
    return next(
        ("not worse" if said == "equal to FP32" else "undecided" for said in found if said != "not run"), "not run"
    )


def _outcome(record: Record, arm: str) -> str:
    found = _comparisons(record, arm)
    verdicts = [c.get("verdict") for c in found]
    if not verdicts:
        return "not run"
    if "worse" in verdicts:
        c = found[verdicts.index("worse")]
        difference, margin = _number(c.get("difference")), _number(c.get("margin"))
        if difference is None:
            return f"worse ({_name(c)}: {c.get('reason') or 'not finite'})"
        return f"worse ({_name(c)} {difference:+.2g}" + (f", margin {margin:.2g})" if margin is not None else ")")
    return "equal to FP32" if set(verdicts) <= {"equivalent", "better"} else "undecided"


def _outcomes(there: dict[str, Record], arm: str) -> str:
    found = {state: _outcome(record, arm) for state, record in there.items()}
    if len(found) > 1 and len(set(found.values())) == 1:
        return f"{next(iter(found.values()))} in both states"
    return ", ".join(f"{outcome} ({state})" for state, outcome in found.items())


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
    trials = _all(record or {}, "trials")
    steps = max((t.get("steps") or 0 for t in trials), default=0)
    seeds = len({t.get("seed") for t in trials})
    return f"{state}: loss scale 2^{scale['log2_scale']}, {steps} steps, {seeds} seeds"


def _trained(job: PaperJob, records: dict[str, Record]) -> str:
    training = records.get(f"{job.name}-training")
    if not training:
        return ""
    if training.get("error"):
        return f"Training: {training['error']}."
    metric = ", ".join(f"{k.replace('_', ' ')} {_shown(v)}" for k, v in (training.get("metric") or {}).items())
    return (
        f"Late: after {training.get('steps')} FP32 steps (loss {_shown(training.get('first_loss'))} to "
        f"{_shown(training.get('last_loss'))}{f', {metric}' if metric else ''}), at learning rate "
        f"{_shown(training.get('late_learning_rate'))}: {training.get('why')}."
    )


def _cut(job: PaperJob, state: str, record: Record | None) -> list[str]:
    kept = [line for line in _cuts(record or {}) if "already compute FP32 in full" not in line]
    return [f"- {job.name}, {state}: {'; '.join(kept)}."] if kept else []
