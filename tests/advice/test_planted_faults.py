"""Every planted fault is found where it is, and nothing is found in models without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpdiag.advice import advise
from mpdiag.advice.checks import BY_CODE, CAPTURE_CHECKS
from mpdiag.api import scan
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.op_scan import observe_operations
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import Finding, SelfTest
from mpdiag.drift import observed_parts
from mpdiag.errors import MpdiagError
from mpdiag.finding import Certainty
from mpdiag.target import load_job
from mpdiag.target.job import Job
from planted_faults import T5_LIKE
from planted_tables import HEALTHY, PLANTS

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
STEPS = 3

MODELS = (
    "examples/char_gpt.py",
    "examples/digits_cnn.py",
    *(
        f"tests/targets/{name}.py"
        for name in (
            "attention checkpointed convnext encoder fourier frozen gan lstm packed_gru penalty resnet tied unet vae"
        ).split()
    ),
)
ON_A_GPU_ALONE = {"MP111"}  # how cuBLAS adds up is not emulated; its cases are in test_op_overflow_checks.py
SMALL_GPT = {"CONTEXT": 32, "BATCH": 8, "WIDTH": 32, "HEADS": 2, "LAYERS": 2}


def findings(job: Job, seed: int = 0, steps: int = STEPS) -> tuple[Finding, ...]:
    """What a scan without verification says: its stages, less the self-test."""
    start = job.start(seed, steps)
    observation = Observation(CPU, seed, SelfTest(None, 0))
    observation.types = observe(job, start, CPU)
    try:
        observe_training(job, start, observation, observed_parts(steps))
    except MpdiagError as error:  # a fault of the FP32 job itself: a scan advises on what it saw until then, too
        if error.slug != "loss-not-finite":
            raise
    operations = observe_operations(job, start, CPU)
    capture = replace(observation.record(), operations=operations.tables, operations_reason=operations.reason)
    return advise(capture).findings


def alarms(found: tuple[Finding, ...]) -> set[tuple[str, str, str]]:
    return {(f.code, f.subject, f.message) for f in found if f.severity != "info"}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_planted_fault_is_found_with_its_subject_and_line_and_nothing_unrelated_is(plant, seed):
    found = findings(plant.build(), seed, plant.steps)
    severities = {f.severity for f in found if (f.code, f.subject) == (plant.code, plant.subject)}
    assert severities == {plant.severity}, found
    if plant.line is not None:
        places = {Path(f.source).name for f in found if (f.code, f.subject) == (plant.code, plant.subject) and f.source}
        assert places == {plant.line}
    assert {a for a in alarms(found) if a[0] not in (plant.code, *plant.consequences)} == set()
    assert [f for f in found if not isinstance(f.certainty, Certainty) or f.snippet is None] == []
    assert [f for f in found if ("limit" in f.evidence) is not BY_CODE[f.code].has_limit] == []


def test_every_code_has_a_plant():
    assert {plant.code for plant in PLANTS.values()} == {check.code for check in CAPTURE_CHECKS} - ON_A_GPU_ALONE


@pytest.mark.parametrize("target", MODELS)
def test_a_healthy_model_has_no_alarm(target, monkeypatch):
    monkeypatch.chdir(ROOT)
    job = load_job(target)
    if target == "examples/char_gpt.py":
        job.build_model.__globals__.update(SMALL_GPT)
    found = findings(job)
    assert alarms(found) == set()


@pytest.mark.parametrize("case", HEALTHY.values(), ids=HEALTHY)
def test_what_looks_like_a_fault_and_is_none_has_no_alarm_but_the_true_ones(case):
    found = findings(case.build())
    assert {a for a in alarms(found) if a[0] not in case.expected} == set()


def test_these_stages_find_what_a_scan_finds():
    scanned = scan(T5_LIKE, steps=STEPS, device="cpu", verify=False, depth="ops")
    assert scanned.advice is not None
    assert scanned.advice.findings == findings(load_job(T5_LIKE))
