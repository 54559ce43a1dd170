"""A saved diagnosis with everything that follows from its runs made anew by this version, for the pages of reports/.

Not made anew is what the runs themselves left: the capture and what was advised from it, the trials, the raw costs,
and the comparisons of losses and metrics, whose rule and margin were those of the version that ran, fixed before.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from mpdiag.advice import with_findings, with_late_findings
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Comparison, Diagnosis, Verification
from mpdiag.errors import UsageError
from mpdiag.foretold import Prediction, summarized
from mpdiag.saved import from_json, to_json
from mpdiag.verify.controls import control_outcomes
from mpdiag.verify.cost_ratios import cost_comparisons, with_costs
from mpdiag.verify.curve_band import curve_bands
from mpdiag.verify.island_search import costed
from mpdiag.verify.repeat import KEEPS_STATE
from mpdiag.verify.verdict import judged

STOPPED = "the verification was stopped before its end"  # as verify/run.py says it


def judged_again(d: Diagnosis) -> Diagnosis:
    """The diagnosis with ratios, controls, bands, verdict, late findings and the choice of a format made anew.

    Runs that were stopped keep their verdict: what they would have come to is not known.
    """
    run, advice = d.verification, d.advice
    if run is None or advice is None:
        return d
    comparisons = compared_again(run)
    run = replace(
        run,
        trials=tuple(with_costs(run.trials, run.costs)),
        comparisons=comparisons,
        prediction=_summed_again(run.prediction),
        curves=curve_bands(run.trials),
        controls=control_outcomes(comparisons),
    )
    if run.strays is None and KEEPS_STATE in run.reason:  # of a version that had one word for every cause
        run = replace(run, strays=run.reason.removesuffix(f": {KEEPS_STATE}"))
    if run.reason != STOPPED:
        selftest = d.capture.selftest if d.capture else None
        run = judged(run, with_findings(advice, ()), selftest)  # which finds by itself what follows from the runs
    plan = None if advice.plan is None else costed(advice.plan, run.costs)
    return with_late_findings(replace(d, verification=run, advice=replace(advice, plan=plan)))


def compared_again(run: Verification) -> tuple[Comparison, ...]:
    """The comparisons of losses and metrics as they are, and those of costs made anew from what was measured."""
    arms = [t.arm for t in run.trials] + [each.arm for each in (run.costs.timing.arms if run.costs.timing else ())]
    ratios = cost_comparisons(run.costs, BASELINE, list(dict.fromkeys(arms)))
    return (*(c for c in run.comparisons if not c.is_ratio), *ratios)


def ratios_again(record: dict[str, Any]) -> dict[str, Any]:
    """A saved diagnosis, as JSON, with its ratios of costs made anew; what is none stays as it is."""
    try:
        d = from_json(json.dumps(record))
    except UsageError:
        return record
    if d.verification is None:
        return record
    again = replace(d.verification, comparisons=compared_again(d.verification))
    return dict(json.loads(to_json(replace(d, verification=again))))


def _summed_again(prediction: Prediction | None) -> Prediction | None:
    """Its errors anew; as they are in a file without the tensors."""
    if prediction is None or not prediction.tensors:
        return prediction
    anew = summarized(prediction.tensors, prediction.emulated)
    return replace(anew, cascade_reason=prediction.cascade_reason)
