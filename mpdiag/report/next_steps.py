"""What to do next: one line a step, the most needed first."""

from __future__ import annotations

import math

from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Diagnosis, Verification
from mpdiag.other_formats import FP16, FP16_ISLANDS, TF32
from mpdiag.report.time_needed import DEFAULT_SECONDS, budget_for
from mpdiag.report.worth_it import tf32_alone, what_it_is_worth

SNIPPET_FOLLOWS = "train with:"
FEWEST_SEEDS = 3  # that give an interval at all
MANY_SEEDS = 20  # more than anyone runs; a later stage of training, where seeds scatter less, decides sooner
OF_FP16 = ("MP1", "MP2", "MP6")  # what BF16 and TF32 have not, for their range is FP32's
OUR_FAULT = "internal: "  # how a reason begins that is no fault of the job: the advice stands
NO_UPDATE, SET_DIRECTION = "before the first update", "set HIGHER_IS_BETTER"  # in a comparison's reason (verify/)
TOO_LARGE = "cannot be judged"  # so too
FEW_STEPS = 20  # a run of seconds that gives an endpoint of ten losses
NOTHING_TRAINS = "MP518"  # no weight moves in FP32, so no comparison tells anything
EVALUATE = "MP609"  # a warning, for the training went well; without its remedy the metric stays unjudged
OUT_OF_TIME = "time budget"  # in every sentence on what the budget cut


def steps_from(diagnosis: Diagnosis) -> list[str]:
    """The steps; after SNIPPET_FOLLOWS comes the diagnosis's code to paste."""
    first = to_mend_first(diagnosis)
    if first is not None:
        return [first]
    steps = [diagnosis.hint] if diagnosis.hint else []
    advice, run = diagnosis.advice, diagnosis.verification
    if advice is not None:
        instead = instead_of_fp16(diagnosis)
        errors = [f for f in advice.findings if f.severity == "error"]
        names = modules_to_keep(diagnosis)
        islands = ["keep in FP32: " + ", ".join(names)] if names else []
        if not instead:
            steps += islands
        steps += [f"{f.code}: {f.remedy}" for f in errors if not (instead and f.code.startswith(OF_FP16))]
        steps += [f"{f.code}: {f.remedy}" for f in advice.findings if f.code == EVALUATE and f.severity == "warning"]
        if run is not None:
            steps += _after_runs(diagnosis, run)
        if diagnosis.snippet:
            steps.append(SNIPPET_FOLLOWS)
        if instead:  # what FP16 would need is the alternative, after the code
            told = islands or [f"{f.code}: {f.remedy}" for f in errors if f.code.startswith(OF_FP16)]
            steps += [f"or FP16 instead of {instead}: {line}" for line in told]
    return list(dict.fromkeys([*steps, *_on_a_gpu(diagnosis)]))


def to_mend_first(diagnosis: Diagnosis) -> str | None:
    """What the job itself needs before anything else, where that ended the scan without a verdict; else None.

    Advice from what was seen until then is no help: FP32 had diverged, or the same error would come again.
    """
    run = diagnosis.verification
    decided = run is not None and run.verdict not in (None, "inconclusive")
    ours = (diagnosis.reason or "").startswith(OUR_FAULT)
    return None if decided or ours else diagnosis.hint


def scans_to_come(diagnosis: Diagnosis) -> list[str]:
    """Of the steps those that no other part of "Do this" tells: what would decide the verdict, and where to measure."""
    run = diagnosis.verification
    if to_mend_first(diagnosis) is not None:
        return []
    if diagnosis.advice is None or run is None:
        return _on_a_gpu(diagnosis)
    return [*_after_runs(diagnosis, run), *_on_a_gpu(diagnosis)]


def _after_runs(diagnosis: Diagnosis, run: Verification) -> list[str]:
    """What the runs ask for: what would decide them, or what FP16 is worth here; and TF32 alone where it does as well.

    TF32 is no advice where FP16 and BF16 have failed (the choice of a format says it then), nor where FP32 is broken.
    """
    undecided = run.verdict == "inconclusive"
    steps = _to_decide(diagnosis, run) if undecided else what_it_is_worth(run)
    lead_to_nothing = run.verdict == "no-go" or diagnosis.train_in == TF32 or (undecided and _broken_in_fp32(run))
    return steps if lead_to_nothing else [*steps, *tf32_alone(run)]


def _on_a_gpu(diagnosis: Diagnosis) -> list[str]:
    run = diagnosis.verification
    if diagnosis.environment.gpu is not None or diagnosis.advice is None:
        return []
    if run is not None and run.verdict == "inconclusive" and _broken_in_fp32(run):
        return []  # it would be as broken there
    return ["on a CUDA GPU, for step time, memory, tensor cores and energy: mpdiag verify RUN.json"]


def instead_of_fp16(diagnosis: Diagnosis) -> str | None:
    """The format to train in where that is not FP16, with or without islands; None where it is, or none is shown."""
    chosen = diagnosis.train_in
    return None if chosen in (None, FP16, FP16_ISLANDS) else chosen


def modules_to_keep(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What FP16 has to keep in FP32: the plan's modules, or untried ones where an error asks for some.

    None for a warning alone, which the code to paste does not heed either, nor where a search found none that do.
    """
    advice = diagnosis.advice
    if advice is None:
        return ()
    if advice.plan is not None:
        return advice.plan.spoken if advice.plan.enough else ()
    asked_for = any(f.severity == "error" for f in advice.findings) and not instead_of_fp16(diagnosis)
    return advice.keep_fp32 if asked_for else ()


def _to_decide(diagnosis: Diagnosis, run: Verification) -> list[str]:
    """What would decide an undecided verification: its cause first, for each asks for something else."""
    findings = diagnosis.advice.findings if diagnosis.advice else ()
    if still := next((f for f in findings if f.code == NOTHING_TRAINS), None):
        return [f"{still.code}: {still.remedy}"]  # nothing else can tell anything before that
    if run.strays:
        return [f"so that FP32 repeats itself: {run.reason.rpartition('; ')[2]}"]
    judged = [c for c in run.comparisons if c.candidate == "fp16" and c.test and c.decides]
    seeds = len({t.seed for t in run.trials if t.arm == "fp16"})
    if any(t.error for t in run.trials if t.arm == "fp16"):
        return []  # no number of seeds mends what raises; its finding says what does
    if broken := _broken_in_fp32(run):
        return [broken]
    if any(c.seeds < seeds for c in judged if c.quantity == "loss"):
        return [
            "every seed gave the same FP32 run: let train_batches() shuffle with torch's generator (torch.randperm, or "
            "a DataLoader with shuffle=True), so that a seed changes something, and scan again"
        ]
    if any(NO_UPDATE in (c.reason or "") for c in judged):
        return [f"scan again with --verify-steps {FEW_STEPS} or more: one step shows no training"]
    if vast := [c.quantity for c in judged if TOO_LARGE in (c.reason or "")]:
        return [f"give {' and '.join(vast)} in another unit, or its logarithm: such large values cannot be judged"]
    unnamed = [c.quantity for c in judged if SET_DIRECTION in (c.reason or "")]
    if unnamed:
        names, them = " and ".join(unnamed), ", ".join(f"{name!r}: True" for name in unnamed)
        return [
            f"say in the target which way {names} is better, HIGHER_IS_BETTER = {{{them}}} or False, and scan again"
        ]
    if seeds == 1 and diagnosis.asked is not None and diagnosis.asked.seeds == 1:
        return [f"scan again with --seeds {FEWEST_SEEDS}: one seed does not tell how far seeds scatter"]
    if seeds < 2 and any(OUT_OF_TIME in line for line in run.cut):
        longer = _budget(budget_for(diagnosis, FEWEST_SEEDS)) or " with a longer --time-budget"
        return [f"scan again{longer}: this one ended before a second seed was trained"]
    open_ones = [c for c in judged if c.verdict == "inconclusive"]
    coarse = [c for c in open_ones if c.test and c.test.resolution is not None]
    if coarse and len(coarse) == len(open_ones):
        names = ", ".join(c.quantity.replace("_", " ") for c in coarse)
        return [f"validate on more samples: {names} moves in steps that are too coarse to tell, whatever the seeds"]
    found = [c.test.seeds_needed for c in judged if c.test and c not in coarse]
    needed = max((n for n in found if n is not None), default=None)
    if found and (needed is None or needed > MANY_SEEDS):
        begun = diagnosis.target is not None and diagnosis.target.start_from is not None
        later = "" if begun else ", or from a trained state with --start-from CHECKPOINT"
        return [
            "the seeds scatter too widely at this stage of training: scan again with more --verify-steps and a longer "
            f"--time-budget{later}"
        ]
    short = any(line.startswith("only ") and OUT_OF_TIME in line for line in run.cut)
    if not needed:
        return []
    seconds = budget_for(diagnosis, needed)
    if short or (seconds or 0) > DEFAULT_SECONDS:  # the same command would be cut again
        longer = _budget(seconds, "") or " and a longer --time-budget"
        return [f"scan again with --seeds {needed}{longer}"]
    return [f"scan again with --seeds {needed}"]


def _broken_in_fp32(run: Verification) -> str | None:
    """What to mend where FP32 itself gave no number to compare with: no number of seeds or steps gives one."""
    trained = [t for t in run.trials if t.arm == BASELINE]
    for trial in trained:
        at = next((i for i, loss in enumerate(trial.losses, 1) if not math.isfinite(loss)), None)
        if at is not None and not all(map(math.isfinite, trial.losses[len(trial.losses) // 2 :])):  # what is compared
            return (
                f"mend the FP32 job first: with seed {trial.seed} its loss is not finite at step {at}; a lower "
                "learning rate, or inputs without NaN; mixed precision cannot help"
            )
    names = dict.fromkeys(name for t in trained for name in t.metric or {})
    for name, trial in ((name, trial) for name in names for trial in trained):
        value = (trial.metric or {}).get(name)
        if value is None or not math.isfinite(value):
            gave = f"gave no {name}" if value is None else f"gave {value} for {name}"
            return f"mend evaluate(): it {gave} in FP32 with seed {trial.seed}, so there is nothing to compare with"
    return None


def _budget(seconds: int | None, preposition: str = " with") -> str:
    return "" if seconds is None else f"{preposition} --time-budget {seconds} (seconds, estimated from these runs)"
