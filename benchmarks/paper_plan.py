"""What the page says of how its records came about: when, by which plan, and what made FP32 IEEE FP32."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from paper_jobs import JOBS, PaperJob
from paper_records import Record, entries, number_of
from paper_scan import SCAN, Asked, extent_words

NUMBERS = {"--steps": "observed steps", "--verify-steps": "steps", "--seeds": "seeds"}
TORCH = "torch alone would compute convolutions and RNNs in TF32"


def scans(records: Mapping[str, Record]) -> list[tuple[PaperJob, str, Record]]:
    """(job, state, record) of every scan that has runs, in the page's order."""
    found = []
    for job in JOBS.values():
        for state, key in (("init", job.name), ("late", f"{job.name}-late")):
            record = records.get(key)
            if record and entries(record, "trials"):
                found.append((job, state, record))
    return found


def made_when(records: Mapping[str, Record]) -> str:
    """From the first scan to the last, where their records have a date."""
    dates = sorted(date for *_, record in scans(records) if (date := _date(record)))
    if not dates:
        return ""
    day, time = dates[-1].split(" ")
    return f", {dates[0]} to {time if dates[0].startswith(day) else dates[-1]} UTC"


def fp32_line(records: Mapping[str, Record]) -> str:
    """By what FP32 was IEEE FP32, told by each record's command and environment."""
    groups: dict[str, list[str]] = {"by it": [], "found so": [], "not so": []}
    for job, state, record in scans(records):
        groups[_fp32(record)].append(f"{job.name} {state}")
    by = "set before each scan by `benchmarks/paper_ieee.py`"
    if not groups["found so"] and not groups["not so"]:
        return f"- FP32: in IEEE arithmetic, {by}; {TORCH}."
    told = {
        "by it": by,
        "found so": "without it, but IEEE by the records' own environment",
        "not so": "without it, and in the FP32 runs alone",
    }
    parts = [f"{told[how]}: {', '.join(names)}" for how, names in groups.items() if names]
    return " ".join([f"- FP32: in IEEE arithmetic; {TORCH}.", *(f"{part[:1].upper()}{part[1:]}." for part in parts)])


def _fp32(record: Record) -> str:
    if SCAN in _words(record):
        return "by it"
    settings = (record.get("environment") or {}).get("fp32_precision") or {}
    return "found so" if settings and set(settings.values()) == {"ieee"} else "not so"


def plan_line(records: Mapping[str, Record]) -> list[str]:
    """One line on the records that are not of the plan as it is now, with when they were made; none where all are."""
    groups: dict[str, list[str]] = {}
    for job, state, record in scans(records):
        differs = _differs(job, state, record)
        if differs:
            made = f"{job.name} {state} ({_date(record) or 'no date'})"
            groups.setdefault(", ".join(differs), []).append(made)
    told = [f"{', '.join(made)}: {differs}" for differs, made in groups.items()]
    return [f"- Not of the present plan, kept until they are run again: {'; '.join(told)}."] if told else []


def _differs(job: PaperJob, state: str, record: Record) -> list[str]:
    """What a scan was told other than it would be now; its time budget may be less near a deadline, as planned."""
    words, wanted = _words(record), extent_words(job, state, Asked())
    found = []
    for option, what in NUMBERS.items():
        mine, planned = (_after(option, each) for each in (words, wanted))
        if mine != planned:
            found.append(f"{mine or 'unknown'} {what} for {planned}")
    found += [f"without `{flag}`" for flag in wanted if flag.startswith("--") and flag not in words]
    return [*found, *([] if SCAN in words else ["without `paper_ieee.py`"])]


def _words(record: Record) -> list[str]:
    try:
        return shlex.split(record.get("command") or "")
    except ValueError:
        return []


def _after(option: str, words: list[str]) -> str | None:
    place = words.index(option) + 1 if option in words else len(words)
    return words[place] if place < len(words) else None


def _date(record: Record) -> str:
    made = str(record.get("created") or "")
    return made[:16].replace("T", " ") if "T" in made else ""


def foretold_lines(records: Mapping[str, Record]) -> list[str]:
    """How well the underflow of each scan's FP16 was foretold; beyond a point it is named."""
    rounded, alone, count = [], [], 0
    for job, state, record in scans(records):
        seen = (record.get("verification") or {}).get("prediction") or {}
        p95, by_counts = (number_of(seen.get(f"{which}p95_error_points")) for which in ("", "alone_"))
        if p95 is None:
            continue
        count += 1
        if p95 > 1:
            worst = _worst(record)
            rounded.append(f"{job.name} {state} {p95:.1f}{f', the worst tensor {worst:.1f} (MP605)' if worst else ''}")
        if by_counts is not None and by_counts > 1:
            alone.append(f"{job.name} {state} {by_counts:.1f}")
    if not count:
        return []
    return [
        "## What was foretold",
        "",
        "Underflow in FP16, tensor by tensor, 95th percentile of the error in percentage points: activations foretold "
        "by their counts, gradients by a second FP32 pass that is rounded to FP16.",
        "",
        f"- At most 1 point in {count - len(rounded)} of {count} scans"
        + (f"; beyond: {'; '.join(rounded)}." if rounded else "."),
        "- By the counts of FP32 alone, " + (f"beyond 1 point in: {', '.join(alone)}." if alone else "too."),
        "",
    ]


def _worst(record: Record) -> float | None:
    """The worst tensor's error, which a finding holds where the tensors were left out of the file."""
    findings = (record.get("advice") or {}).get("findings") or []
    found = (f.get("evidence") or {} for f in findings if isinstance(f, dict) and f.get("code") == "MP605")
    return next((worst for each in found if (worst := number_of(each.get("error_points"))) is not None), None)
