"""Accuracy in sentences: did the controls fail, where does a band part from zero. Terminal and page say the same."""

from __future__ import annotations

from collections.abc import Sequence

from mpdiag.accuracy import ControlOutcome, CurveBand
from mpdiag.diagnosis import Comparison, Diagnosis, Verification

CONTROLS = ("fp16-unscaled", "fp16-pure")
"""Arms expected to be worse on a job that needs care."""

CRASHED = "the run failed"  # how a control's outcome begins that raised
NOT_WORSE = "not worse, perhaps better"
ABOUT_ZERO = "decides nothing yet"


def verdict_in_words(comparison: Comparison) -> str:
    """A comparison's verdict; one that is undecided between equal and better says so."""
    if not comparison.decides:
        return ABOUT_ZERO
    shown = comparison.test is not None and comparison.test.noninferior
    if comparison.verdict == "inconclusive" and shown:
        return NOT_WORSE
    return comparison.verdict.replace("-", " ")


def standing(comparison: Comparison) -> int:
    """How much a comparison shows: 0 for worse, 1 undecided, 2 not worse, 3 equivalent or better. An arm has its least.

    The same order as that of the verdict on the whole run, which a comparison that does not decide cannot lower.
    """
    if comparison.verdict in ("equivalent", "better") or not comparison.decides:
        return 3
    if comparison.verdict == "worse":
        return 0
    return 2 if comparison.test is not None and comparison.test.noninferior else 1


def repeat_sentence(diagnosis: Diagnosis) -> str | None:
    """Whether FP32 repeats itself from one seed, by the self-test's two plain runs; None where none were compared."""
    test = diagnosis.capture.selftest if diagnosis.capture else None
    if test is None or test.control is None:
        return None
    steps = f"{test.steps} steps" if test.steps != 1 else "1 step"
    if test.control == 0:
        return f"FP32 twice from one seed is equal to the bit after {steps} (self-test), so a pair differs by precision"
    return (
        f"FP32 twice from one seed differs by up to {test.control:.2g} after {steps} (self-test: in a loss, gradient "
        "or weight), so a part of each pair's difference is not the precision's"
    )


def control_sentences(diagnosis: Diagnosis) -> list[str]:
    """One sentence a control, and what follows where none of them failed. Empty without a verification."""
    run = diagnosis.verification
    if run is None or not run.trials:
        return []
    if not run.controls and any(t.arm in CONTROLS for t in run.trials):
        return []  # saved before their outcome was
    raised = [each for each in run.controls if _crashed(each)]
    adam = "Adam" in (diagnosis.target.optimizer if diagnosis.target else "")
    told = [_control(each, adam) for each in run.controls if each not in raised]
    told += [_crash(raised, run)] if raised else []
    if not any(each.failed for each in run.controls):
        told.append(_nothing_shown(run, diagnosis))
    return told


def _control(outcome: ControlOutcome, adam: bool) -> str:
    if outcome.failed:
        return f"{outcome.arm} is worse, as it should be ({outcome.why}): the test can fail on this job"
    if outcome.broke:
        eps = ", because Adam's eps of 1e-8 is 0 in FP16" if adam and outcome.arm == "fp16-pure" else ""
        return f"{outcome.arm} broke ({outcome.why}){eps}, which shows that breakage is noticed and no more"
    if outcome.failed is None:
        return f"{outcome.arm} is undecided ({outcome.why})"
    return f"{outcome.arm} is not worse ({outcome.why})"


def _crashed(outcome: ControlOutcome) -> bool:
    return outcome.failed is None and CRASHED in outcome.why


def _crash(raised: Sequence[ControlOutcome], run: Verification) -> str:
    """One sentence on all that raised; errors only where FP16's own, which is told already, is not among them."""
    told = {t.error for t in run.trials if t.arm == "fp16" and t.error}
    names = " and ".join(each.arm for each in raised)
    if told:
        return f"{names} raised as fp16 did, which says nothing about accuracy"
    whys = dict.fromkeys(each.why.removeprefix(f"{CRASHED}: ") for each in raised)
    return f"{names} raised, which says nothing about accuracy ({'; '.join(whys)})"


def _nothing_shown(run: Verification, diagnosis: Diagnosis) -> str:
    steps = max(t.steps for t in run.trials)
    begun = diagnosis.target is not None and diagnosis.target.start_from is not None
    text = "no control failed" if run.controls else "no control was run"
    if any(each.broke for each in run.controls):  # not "none failed" right after one that broke
        text = "no control was worse in a finite loss"
    elif run.controls and all(map(_crashed, run.controls)):
        return "no control ran to its end, so nothing has shown that this test can fail on this job"
    what = "tell a small harm" if any(each.broke for each in run.controls) else "fail"
    text += f": nothing has shown that this test can {what} on this job within {steps} steps"
    if begun:
        return f"{text} from this checkpoint"
    return f"{text}; late in training it is likelier to: scan from a trained state with --start-from CHECKPOINT"


def band_sentences(bands: tuple[CurveBand, ...]) -> list[str]:
    """Where each arm's smoothed loss differs from FP32's; arms of which the same holds share a sentence."""
    by_text: dict[str, list[str]] = {}
    for band in bands:
        by_text.setdefault(_band(band), []).append(band.arm)
    return [f"{', '.join(arms)}: {text}." for text, arms in by_text.items()]


def _band(band: CurveBand) -> str:
    if band.mean_difference is None:
        return f"no band, because {band.reason}"
    sure = f"{100 * (band.confidence or 0.0):.3g} % confidence for the whole curve, {band.seeds} seeds"
    where = (
        "no difference from FP32 shown at any step"
        if band.first_step_outside is None
        else f"differs from FP32, first at step {band.first_step_outside}"
    )
    return f"{band.reason}; until then {where} ({sure})" if band.reason else f"{where} ({sure})"
