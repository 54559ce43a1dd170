"""What showed of the paper on each job, in a sentence made from the verdicts alone."""

from __future__ import annotations

import re

from mpdiag.formats import FP16
from paper_jobs import PaperJob
from paper_records import ARMS, Record, cost, entries, judged, name_of, number_of, verdict_of, why_not

DEFAULT_EPS = 1e-8  # of torch's Adam and AdamW


def sentence(job: PaperJob, states: dict[str, Record | None], training: Record) -> str:
    """What showed of the paper on this job, by the verdicts alone."""
    there = {state: record for state, record in states.items() if record and entries(record, "trials")}
    if not there:
        return f"- **{job.name}**: {why_not(states['late'] or states['init'], 'late', training)}."
    parts = [f"{what} {_outcomes(there, arm)}" for arm, what in ARMS.items()]
    unscaled, pure = _harm(there, "fp16-unscaled"), _harm(there, "fp16-pure")
    if pure == "worse" and all(_worse(r, "fp16-unscaled") for r in there.values() if _worse(r, "fp16-pure")):
        pure = "worse, as unscaled"
    steps = max((t.get("steps") or 0 for r in there.values() for t in entries(r, "trials")), default=0)
    saw = f"What the paper saw without a scale ({job.unscaled})"
    size = f"at this size, in {steps} steps"
    word = {
        True: {
            "worse": f"As in the paper ({job.unscaled}), a missing scale did harm here",
            "not worse": f"{saw} did not show {size}",
            "undecided": f"Whether {saw[0].lower()}{saw[1:]} shows here stayed undecided {size}",
        },
        False: {
            "worse": "Unlike in the paper, a missing scale did harm here",
            "not worse": f"As in the paper, no scale was needed {size}",
            "undecided": f"That no scale is needed, as in the paper, stayed undecided {size}",
        },
        None: {
            "worse": "Without a scale it was visibly worse",
            "not worse": f"Without a scale it was not visibly worse {size}",
            "undecided": f"Whether a scale is needed stayed undecided {size}",
        },
    }[job.unscaled_worse].get("worse" if unscaled == "broke" else unscaled, "Training without a scale was not run")
    weights = {
        "worse": "FP16 weights without a master copy (pure FP16, no scale either) were visibly worse",
        "worse, as unscaled": "Pure FP16 was visibly worse where mixed without a scale was too, and has none either: "
        "that hides what its weights do",
        "broke": f"Pure FP16 did not stay finite{_zero_eps(there)}: that hides what its weights do",
        "not worse": f"FP16 weights without a master copy were not visibly worse {size}",
        "undecided": f"Whether FP16 weights without a master copy do harm stayed undecided {size}",
    }.get(pure, "FP16 weights without a master copy were not run")
    details = "; ".join(parts)
    note = f" ({job.note})" if job.note else ""
    speed = _speed(there.get("init", {}))
    return f"- **{job.name}**{note}: {word}. {weights}. {speed}{details[:1].upper()}{details[1:]}."


def _speed(record: Record) -> str:
    """A word where mixed precision is not faster than TF32, which costs a user no change; "" where it is."""
    found = cost(record, "step_time_ms", baseline="tf32")
    ratio = number_of(found.get("difference"))
    if ratio is None:
        return ""
    return {
        "worse": f"Mixed is slower than TF32: {ratio:.2f} times its step time. ",
        "equivalent": f"Mixed is as fast as TF32, no faster: {ratio:.2f} times its step time. ",
        "inconclusive": f"Whether mixed is faster than TF32 stayed undecided: {ratio:.2f} times its step time. ",
    }.get(str(found.get("verdict")), "")


def _harm(there: dict[str, Record], arm: str) -> str:
    """worse (by a number) in any state, broke in any; else what the latest state that was run says, or not run."""
    found = [_outcome(there[state], arm) for state in ("late", "init") if state in there]
    if any("not finite" in str(c.get("reason")) for record in there.values() for c in judged(record, arm)):
        return "broke"  # a metric of the model that a NaN left behind says nothing of its weights
    if any(said.startswith("worse") and "finite" not in said for said in found):
        return "worse"
    if any(said.startswith("worse") for said in found):
        return "broke"
    return next(("undecided" if said == "undecided" else "not worse" for said in found if said != "not run"), "not run")


def _worse(record: Record, arm: str) -> bool:
    return _outcome(record, arm).startswith("worse")


def _zero_eps(there: dict[str, Record]) -> str:
    """Why pure FP16 divides 0 by 0: an Adam whose eps FP16 rounds to zero; "" where it is no Adam, or another eps.

    By the optimizer's groups where a record has them, else by its name and torch's default.
    """
    for record in there.values():
        named = re.search(r"\bAdamW?\b", str((record.get("target") or {}).get("optimizer")))
        loop = (record.get("capture") or {}).get("loop") or {}
        groups = [number_of(group.get("eps")) for group in loop.get("groups") or [] if isinstance(group, dict)]
        known = [eps for eps in groups if eps is not None] or [DEFAULT_EPS]
        if named and min(known) <= FP16.rounds_to_zero:
            return f", as {named[0]}'s eps of {f'{min(known):.0e}'.replace('e-0', 'e-')} is 0 there"
    return ""


def _outcome(record: Record, arm: str) -> str:
    found = judged(record, arm)
    verdicts = [verdict_of(c) for c in found]
    if not verdicts:
        return "not run"
    if "worse" in verdicts:
        c = found[verdicts.index("worse")]
        difference, margin = number_of(c.get("difference")), number_of(c.get("margin"))
        if difference is None:
            return f"worse ({name_of(c)}: {c.get('reason') or 'not finite'})"
        return f"worse ({name_of(c)} {difference:+.2g}" + (f", margin {margin:.2g})" if margin is not None else ")")
    if set(verdicts) <= {"equivalent", "better"}:
        return "equal to FP32"
    return "not worse than FP32" if set(verdicts) <= {"equivalent", "better", "not worse"} else "undecided"


def _outcomes(there: dict[str, Record], arm: str) -> str:
    found = {state: _outcome(record, arm) for state, record in there.items()}
    if len(found) > 1 and len(set(found.values())) == 1:
        return f"{next(iter(found.values()))} in both states"
    return ", ".join(f"{outcome} ({state})" for state, outcome in found.items())
