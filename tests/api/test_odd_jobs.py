"""Jobs that are not what they seem: scanned like others, and nothing of the process is changed."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import mpdiag
from api_samples import CAPTURE_ONLY, JOB, SMALL, outcome


def test_a_metric_that_fails_in_fp32_too_is_no_verdict_on_fp16(write):
    diagnosis, _ = outcome(write(JOB + "def evaluate(model):\n    raise ValueError('mine')\n"), SMALL)
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert diagnosis.verification is None or diagnosis.verification.verdict in (None, "inconclusive")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_model_that_is_not_fp32_is_not_called_fp32(write, dtype):
    text = JOB.replace("nn.Linear(4, 1))", f"nn.Linear(4, 1)).to(torch.{dtype})")
    text = text.replace("    return model(batch)", f"    batch = batch.to(torch.{dtype})\n    return model(batch)")
    diagnosis, said = outcome(write(text), CAPTURE_ONLY)
    if diagnosis is not None and diagnosis.capture is not None and diagnosis.target is not None:
        assert {t.dtype for t in diagnosis.capture.tables if t.kind == "weight"} == {dtype}
        findings = diagnosis.advice.findings if diagnosis.advice else ()
        said += " ".join([diagnosis.capture.precision, *diagnosis.target.notes, *(f.message for f in findings)])
    assert dtype in said  # refusing it by name is an answer too


def test_an_optimizer_that_moves_nothing_of_the_model_is_not_a_go(write):
    text = JOB + "OTHER = nn.Linear(1, 1)\n\n"
    text += "def build_optimizer(model):\n    return torch.optim.SGD(OTHER.parameters(), 0.1)\n"
    options = dataclasses.replace(SMALL, seeds=3, verify_steps=10, time_budget_seconds=600)
    diagnosis, said = outcome(write(text), options)
    if diagnosis is not None and diagnosis.verification is not None:
        assert diagnosis.verification.verdict != "go", "nothing was trained"
    else:
        assert "optimizer" in said


def test_a_module_run_in_inference_mode_inside_the_job_is_no_error(write):
    inside = "    with torch.inference_mode():\n        model[0](batch)\n    return model(batch)"
    diagnosis = mpdiag.scan(write(JOB.replace("    return model(batch)", inside)), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


def test_a_loss_that_writes_into_its_numpy_batch_does_not_change_the_next_run(write):
    text = JOB.replace("yield torch.randn(8, 3) + random.random() + np.random.rand()", "yield np.random.rand(8, 3)")
    text = text.replace("return model(batch)", "batch *= 1.5\n    return model(torch.from_numpy(batch).float())")
    diagnosis = mpdiag.scan(write(text), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.selftest.control == 0.0
    assert diagnosis.capture.unchanged is True


HOLDS_ITSELF = """
class Output:
    def __init__(self, value):
        self.value, self.all = value, [self]

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build_inner()

    def forward(self, x):
        return Output(self.inner(x))

def build_model():
    return Wrapped()
"""


def test_a_module_that_returns_an_object_which_holds_itself_is_no_error(write):
    text = JOB.replace("build_model", "build_inner").replace("model(batch)", "model(batch).value") + HOLDS_ITSELF
    diagnosis = mpdiag.scan(write(text), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_scanned_or_refused_by_name(write):
    text = (
        JOB.replace("build_model", "build_inner") + "def build_model():\n    return torch.jit.script(build_inner())\n"
    )
    diagnosis, said = outcome(write(text), CAPTURE_ONLY)
    assert "script" in said.lower() or (diagnosis is not None and diagnosis.capture is not None)


# what the target changes for all


def test_a_default_dtype_that_a_run_sets_is_noted_and_does_not_reach_the_caller(write):
    sets = "def evaluate(model):\n    torch.set_default_dtype(torch.float64)\n    return 1.0\n"
    found = mpdiag.scan(write(JOB + sets), SMALL)
    assert torch.get_default_dtype() == torch.float32
    assert any("sets torch's default dtype to torch.float64" in note for note in found.target.notes)


def test_every_model_is_built_in_the_same_default_dtype(write, capsys):
    sets = "def evaluate(model):\n    torch.set_default_dtype(torch.float64)\n    return 1.0\n"
    says = "    print('built in', torch.get_default_dtype())\n    return nn.Seq"
    mpdiag.scan(write((JOB + sets).replace("    return nn.Seq", says)), SMALL)
    built = [line for line in capsys.readouterr().out.splitlines() if line.startswith("built in")]
    assert len(built) > 5
    assert set(built) == {"built in torch.float32"}


def test_a_default_dtype_that_building_the_model_sets_is_every_runs(write):
    sets = "    torch.set_default_dtype(torch.float64)\n    return nn.Seq"
    found = mpdiag.scan(write(JOB.replace("    return nn.Seq", sets)), SMALL)
    assert torch.get_default_dtype() == torch.float32, "the caller's"
    assert not any("default dtype" in note for note in found.target.notes)
    assert {table.dtype for table in found.capture.tables} == {"float64"}
