"""Whole scans, verification included: jobs that are well have no alarm, and what only training shows is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mpdiag.target
from mpdiag.api import scan
from mpdiag.diagnosis import Diagnosis
from mpdiag.target.job import ONLY, Job
from planted_faults import classify
from planted_runs import RUNS
from planted_tables import HEALTHY

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, VERIFY_STEPS = 3, 40  # 20 steps of warm-up, in which a scale may come down, and 20 in which it must not
LONG = "rotary_positions_in_fp32_up_to_2500"  # half a minute; its capture is in test_planted_faults.py
MODELS = tuple(f"tests/targets/{name}.py" for name in ("frozen", "gan", "lstm", "penalty", "tied"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scanned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A whole scan of a job that is in no file."""

    def of(job: Job, **options: Any) -> Diagnosis:
        monkeypatch.setattr(mpdiag.target, "load_job", lambda *_: job)
        sizes = {"steps": STEPS, "verify_steps": VERIFY_STEPS, "seeds": 1} | options
        return scan(job.source, device="cpu", **sizes)

    return of


@pytest.mark.parametrize("name", [name for name in HEALTHY if name != LONG])
def test_a_job_that_is_well_keeps_up_and_has_no_alarm_but_the_true_ones(scanned, name):
    case = HEALTHY[name]
    seen = scanned(case.build(), depth="ops", seeds=2)
    assert [f for f in seen.advice.findings if f.severity != "info" and f.code not in case.expected] == []
    assert seen.verification.verdict not in (None, "no-go")
    assert [t.error for t in seen.verification.trials if t.arm in ("fp32", "fp16", "bf16") and t.error] == []


@pytest.mark.parametrize("target", MODELS)
def test_a_model_that_is_well_has_no_alarm_when_it_is_trained(target, monkeypatch):
    monkeypatch.chdir(ROOT)
    seen = scan(target, device="cpu", steps=STEPS, verify_steps=10, seeds=1, depth="ops")
    assert [f for f in seen.advice.findings if f.severity != "info"] == []
    assert seen.verification.verdict not in (None, "no-go")


@pytest.mark.parametrize("name", RUNS)
def test_what_only_training_in_fp16_shows_is_found(scanned, name):
    code, severity, subject, build = RUNS[name]
    seen = scanned(build())
    (found,) = [f for f in seen.advice.findings if f.code == code]
    assert (found.severity, found.subject, found.certainty) == (severity, subject, "seen")


def test_a_gradient_that_dies_in_training_has_the_line_of_its_layer_and_the_code_that_keeps_it(scanned):
    seen = scanned(RUNS["MP604-a_backward_pass_through_small_constants"][3]())
    (found,) = [f for f in seen.advice.findings if f.code == "MP604"]
    file, line = found.source.rsplit(":", 1)
    assert Path(file).name == "planted_runs.py"
    assert (
        "self[1](Centred.apply(self[0](x)).tanh())"
        in (ROOT / "tests/samples/planted_runs.py").read_text().splitlines()[int(line) - 1]
    )
    assert 'torch.autocast("cuda", enabled=False)' in found.snippet


def test_a_gradient_that_dies_at_the_recommended_scale_contradicts_that_the_scale_cures(scanned):
    def small(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return 1e-6 * classify(model, batch)

    made = replace(
        RUNS["MP604-a_backward_pass_through_small_constants"][3](), losses=lambda m, b: [(ONLY, small(m, b))]
    )
    for verify, severity in ((False, "info"), (True, "warning")):
        seen = scanned(made, verify=verify)
        assert {f.severity for f in seen.advice.findings if f.code == "MP201"} == {severity}
