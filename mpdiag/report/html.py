"""One HTML file with everything: reads without a script, works offline, the same bytes for the same diagnosis."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from mpdiag.diagnosis import SEVERITIES, Diagnosis, Finding, TensorTable, Verification
from mpdiag.finding import Certainty
from mpdiag.report import charts, curves, strips
from mpdiag.report.accuracy_words import CONTROLS, band_sentences, control_sentences, repeat_sentence
from mpdiag.report.arm_styles import DASHES, styles_of
from mpdiag.report.curve_bands import band_curves
from mpdiag.report.gradient_words import caption, percent
from mpdiag.report.html_anchors import Anchors, TensorLinks, slug
from mpdiag.report.html_arms import arm_table, by_arm, margin_of, setup
from mpdiag.report.html_cells import Notes
from mpdiag.report.html_costs import costs_context
from mpdiag.report.html_formats import counted, lost_table
from mpdiag.report.html_numbers import FILTERS
from mpdiag.report.html_operations import OperationRow, operation_rows
from mpdiag.report.html_prediction import prediction_view
from mpdiag.report.html_runs import run_table
from mpdiag.report.html_summary import boxes, verdict_words, why_no_advice, why_not_verified
from mpdiag.report.html_tensors import in_words, tensor_rows
from mpdiag.report.html_verification import test_rows
from mpdiag.report.islands import island_sentences
from mpdiag.report.next_steps import OF_FP16, instead_of_fp16, modules_to_keep, scans_to_come, to_mend_first
from mpdiag.report.scale_words import energy_words, serves_all
from mpdiag.saved import to_json

if TYPE_CHECKING:
    from mpdiag.advice.configs import Config  # the door asks for them; here they are only drawn

WORST = 20  # rows shown first when the script runs; a screen and a half


def render(diagnosis: Diagnosis, plotly: str = "inline", configs: Sequence[Config] = ()) -> str:
    """The whole page. `plotly`: "inline" packs plotly.js in for zoomable charts, "none" leaves it out.
    `configs`: to paste, from mpdiag.advice.configs; a section of their own.

    Raises ValueError for any other `plotly`.
    """
    if plotly not in ("inline", "none"):
        raise ValueError(f'plotly must be "inline" or "none", not {plotly!r}')
    anchors = Anchors()
    tables = diagnosis.capture.tables if diagnosis.capture else ()
    links = TensorLinks(tables, anchors)
    findings = _findings(diagnosis, links, anchors)
    context = {
        "d": diagnosis,
        "verdict": verdict_words(diagnosis),
        "boxes": boxes(diagnosis),
        "findings": findings,
        "certainties": tuple(Certainty),
        "configs": configs,
        "why_no_advice": why_no_advice(diagnosis),
        "why_not_verified": why_not_verified(diagnosis),
        "worst": WORST,
        "operation_rows": _operations(diagnosis),
        "embedded": _embedded(json.loads(to_json(diagnosis))),
        **_loss_scale(diagnosis, links),
        "counted": counted,
        "lost": lost_table(diagnosis.advice.other_formats if diagnosis.advice else ()),
        "instead": instead_of_fp16(diagnosis),
        "of_fp16": OF_FP16,
        "to_keep": modules_to_keep(diagnosis),
        "scans_to_come": scans_to_come(diagnosis),
        "mend_first": to_mend_first(diagnosis),
        "islands": [f"{sentence[:1].upper()}{sentence[1:]}" for sentence in island_sentences(diagnosis)],
        **_verification(diagnosis.verification),
        "controls": control_sentences(diagnosis),
        "repeat_told": repeat_sentence(diagnosis),
        **costs_context(diagnosis),
        **_tensors(diagnosis, tables, links, findings),
        **(_plotly(diagnosis) if plotly == "inline" else {"figures": None, "packed": None}),
    }
    return _environment().get_template("page.html").render(context)


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"percent": percent}
    environment.globals["dashes"] = DASHES
    return environment


def _embedded(value: Any) -> Markup:
    """JSON that is safe inside a script element: no `<` can open or close anything."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _findings(diagnosis: Diagnosis, links: TensorLinks, anchors: Anchors) -> list[dict[str, Any]]:
    """The findings, most severe first, each with its id and the row it is about."""
    found = diagnosis.advice.findings if diagnosis.advice else ()
    rank = {severity: i for i, severity in enumerate(SEVERITIES)}
    ordered = sorted(found, key=lambda f: rank.get(f.severity, len(rank)))
    return [_finding(each, links, anchors) for each in ordered]


def _finding(finding: Finding, links: TensorLinks, anchors: Anchors) -> dict[str, Any]:
    anchor = anchors.claim(f"{slug(finding.code)}-{slug(finding.subject)}")
    return {"is": finding, "anchor": anchor, "row": links.of_finding(finding)}


def _loss_scale(diagnosis: Diagnosis, links: TensorLinks) -> dict[str, Any]:
    scale = diagnosis.advice.loss_scale if diagnosis.advice else None
    binding = [
        (end, [links.binding(name) for name in names])
        for end, names in (scale.limited_by.items() if scale else ())
        if names
    ]
    feasible = curves.window(scale) if scale else None
    named = re.findall(r"2\^(-?\d+)", scale.reason) if scale else []
    return {
        "window_told": feasible is not None and {*map(str, feasible)} <= {*named},
        "scale": scale,
        "scale_chart": curves.loss_scale_curve(scale) if scale else None,
        "share_lines": tuple(zip(curves.SHARE_LINES, curves.SHARE_DASHES, strict=True)),
        "feasible": feasible,
        "binding": binding,
        "energy": energy_words(scale) if scale else None,
        "serves_all": scale is not None and diagnosis.advice is not None and serves_all(scale, diagnosis.advice.drift),
    }


def _verification(run: Verification | None) -> dict[str, Any]:
    notes = Notes()
    trials = by_arm(run.trials if run else ())
    bands, margin = run.curves if run else (), margin_of(run, "loss")
    arms = styles_of(t.arm for t in trials)
    return {
        "arm_table": arm_table(run, notes),
        "setup": setup(run),
        "runs": run_table(trials),
        "notes": notes,
        "loss_chart": curves.loss_curves(trials),
        "gap_chart": curves.gap_curves(trials, margin),
        "gap_margin": margin,
        "arms": arms,
        "band_chart": band_curves(bands, arms, CONTROLS, margin),
        "band_words": band_sentences(bands),
        "tests": test_rows(run),
        "stopped": curves.stopped(trials),
        "forecast": prediction_view(run.prediction if run else None),
        "gradient_caption": caption(run.gradients) if run and run.gradients.arms else None,
    }


def _tensors(
    diagnosis: Diagnosis, tables: tuple[TensorTable, ...], links: TensorLinks, findings: list[dict[str, Any]]
) -> dict[str, Any]:
    about: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for each in findings:
        if each["row"]:
            about[each["row"]].append((each["anchor"], each["is"].code))
    axis = strips.axis_for(t.histogram for t in tables)
    log2_scale = diagnosis.advice.loss_scale.log2_scale if diagnosis.advice else None
    return {
        "log2_scale": log2_scale,
        "rows": tensor_rows(tables, links.ids, axis, log2_scale, about),
        "kinds": [(kind.value, in_words(kind)) for kind in dict.fromkeys(t.kind for t in tables)],
        "strip_ground": strips.ground(axis),
        "strip_header": strips.header(axis),
    }


def _operations(diagnosis: Diagnosis) -> list[OperationRow]:
    seen = diagnosis.capture.operations if diagnosis.capture else None
    return operation_rows(seen or (), diagnosis.advice.loss_scale.log2_scale if diagnosis.advice else None)


def _plotly(diagnosis: Diagnosis) -> dict[str, Any]:
    run = diagnosis.verification
    trials = by_arm(run.trials if run else ())
    figures = {
        "loss-scale": charts.loss_scale_figure(diagnosis.advice.loss_scale) if diagnosis.advice else None,
        "losses": charts.loss_figure(trials),
        "gaps": charts.gap_figure(trials, margin_of(run, "loss")),
    }
    drawn = {name: figure for name, figure in figures.items() if figure}
    if not drawn:
        return {"figures": None, "packed": None}  # two megabytes for nothing to draw
    return {"figures": _embedded(drawn), "packed": Markup(charts.packed_plotly())}
