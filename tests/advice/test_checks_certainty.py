"""What every finding says of itself: what it rests on, the limit that decided, where it is, and code to mend it."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from dataclasses import replace

import pytest

from capture_samples import ACTIVATION, WEIGHT, capture, found, only, table
from mpdiag.advice import advise
from mpdiag.advice.checks import ALL
from mpdiag.advice.checks.check import Check, Rule
from mpdiag.advice.places import source_of, with_source
from mpdiag.diagnosis import Diagnosis, Finding
from mpdiag.finding import Certainty
from mpdiag.report import html, markdown, terminal
from mpdiag.saved import from_json, to_json
from report_samples import full

NO_CODE = (
    "MP403",  # a smaller optimizer state: which one is a choice
    "MP605",  # one of its two: to trust the runs rather than the forecast is nothing to type
)
FINDING = Finding("MP999", "n", "info", "fc", "m", {}, "r")


def made_by(kind: type[Rule]) -> list[ast.Call]:
    """Each call that makes a finding in a check's code, its bases' included."""
    made = []
    for each in kind.__mro__:
        if issubclass(each, Rule) and each.__module__ != Rule.__module__:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
            calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
            made += [call for call in calls if call.func.attr == "finding"]  # type: ignore[attr-defined] # above
    return made


def keys(call: ast.Call) -> set[str]:
    """Those of the evidence, the fifth argument."""
    dicts = [node for node in ast.walk(call.args[4]) if isinstance(node, ast.Dict)]
    return {key.value for each in dicts for key in each.keys if isinstance(key, ast.Constant)}


# certainty and limit


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_every_check_says_what_it_rests_on(check):
    assert isinstance(check.certainty, Certainty)
    assert check.page().endswith(f"\n\nHow sure: {check.certainty}: {check.certainty.meaning}.\n")


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_every_finding_has_the_limit_that_decided_it_or_no_number_did(check):
    made = made_by(type(check))
    assert made
    assert ["limit" in keys(each) for each in made] == [check.has_limit] * len(made)


@pytest.mark.parametrize("check", [c for c in ALL if c.code not in NO_CODE], ids=lambda c: c.code)
def test_every_finding_has_its_remedy_as_code(check):
    assert all(len(call.args) > 5 for call in made_by(type(check)))


def test_a_check_without_a_limit_would_be_seen():
    class Planted(Check):
        def find(self, capture, loss_scale):
            yield self.finding("info", "s", "m", "r", {"abs_max": 1.0})

    assert [keys(call) for call in made_by(Planted)] == [{"abs_max"}]


def test_what_fp16_was_seen_to_do_is_surer_than_what_is_foretold():
    large = table("head", ACTIVATION, {17: 1}, 2.0**17)
    assert only("MP101", large).certainty is Certainty.FORETOLD
    assert only("MP101", large, amp_nonfinite=("head",)).certainty is Certainty.SEEN


def test_a_finding_of_a_wrong_word_is_not_read():
    saved = json.loads(to_json(with_findings(replace(FINDING, certainty=Certainty.SEEN))))
    assert saved["advice"]["findings"][0]["certainty"] == "seen"
    saved["advice"]["findings"][0]["certainty"] = "surely"
    with pytest.raises(Exception, match="surely"):
        from_json(json.dumps(saved))


def test_a_file_from_before_the_word_is_read():
    saved = json.loads(to_json(with_findings(FINDING)))
    del saved["advice"]["findings"][0]["certainty"]
    assert from_json(json.dumps(saved)).advice.findings == (FINDING,)


# where it is shown


def with_findings(*findings: Finding) -> Diagnosis:
    whole = full()
    assert whole.advice is not None
    return replace(whole, advice=replace(whole.advice, findings=findings))


@pytest.mark.parametrize("sure", Certainty)
def test_the_word_is_in_every_report(sure):
    seen = with_findings(replace(FINDING, message="it is so", certainty=sure))
    assert f"it is so [{sure}]" in terminal.render(seen)
    assert f"it is so \\[{sure}\\]" in markdown.render(seen)
    page = html.render(seen, "none")
    assert f'<span class="tag" title="{sure.meaning}">{sure}</span>'.replace("'", "&#39;") in page


def test_without_the_word_nothing_stands_in_its_place():
    seen = with_findings(replace(FINDING, message="it is so"))
    assert "it is so [" not in terminal.render(seen)
    assert 'class="tag" title="16 bits' not in html.render(seen, "none")


def test_a_truth_value_of_the_evidence_is_yes_or_no():
    page = html.render(with_findings(replace(FINDING, evidence={"cured": True, "also": False})), "none")
    assert "</span> yes</span>" in page
    assert "</span> no</span>" in page


# where the fault is


def test_a_finding_without_a_line_gets_the_one_of_its_subject():
    seen = capture(
        table("fc", ACTIVATION, {0: 1}, source="model.py:3"), table("fc.weight", WEIGHT, {0: 1}, source=None)
    )
    assert with_source(FINDING, seen).source == "model.py:3"
    assert (
        with_source(replace(FINDING, subject="fc.weight"), seen).source == "model.py:3"
    )  # of the module that holds it
    assert with_source(replace(FINDING, subject="GradScaler"), seen).source is None
    assert with_source(replace(FINDING, source="other.py:1"), seen).source == "other.py:1"
    assert with_source(FINDING, None).source is None


def test_a_name_that_only_begins_like_a_module_is_not_placed():
    assert source_of("fc2", capture(table("fc", ACTIVATION, {0: 1}, source="model.py:3"))) is None


def test_an_advice_places_what_its_checks_leave_open():
    overflow = table("fc.weight", WEIGHT, {17: 1}, source=None)
    (f,) = [f for f in advise(capture(table("fc", ACTIVATION, {0: 1}), overflow)).findings if f.code == "MP104"]
    assert f.source == "model.py:7"


# the remedy as code


def test_an_overflowing_weight_has_the_island_of_its_module():
    f = only("MP104", table("blocks.3.fc.weight", WEIGHT, {17: 1}))
    assert "y = self.blocks[3].fc(x.float())" in f.snippet


def test_activations_that_underflow_have_the_code_of_bfloat16():
    (f,) = found("MP105", table("fc", ACTIVATION, {-30: 50, -20: 50}))
    assert "torch.bfloat16" in f.snippet
