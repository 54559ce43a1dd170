"""What is left of a scan that failed or was stopped."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import mpdiag
from api_samples import JOB, SMALL, failing
from mpdiag.errors import InterruptedScanError, MpdiagError, UsageError, UserCodeError
from mpdiag.saved import to_json

# failures


def test_what_was_seen_before_a_failure_is_with_the_error(write):
    with pytest.raises(UserCodeError) as caught:
        mpdiag.scan(write(failing(10, "raise ValueError('mine')")), SMALL)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert (diagnosis.capture.steps, diagnosis.capture.reason) == (1, "the capture ended early")
    assert diagnosis.advice is not None
    assert diagnosis.verification is None
    assert diagnosis.reason is not None
    assert "ValueError" in diagnosis.reason
    assert isinstance(caught.value.__cause__, ValueError)
    assert json.loads(to_json(diagnosis))["capture"]["steps"] == 1


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_caller_without_gradients_gets_the_same_scan_and_keeps_its_mode(write, mode):
    import torch

    path = write(JOB)
    with getattr(torch, mode)():
        diagnosis = mpdiag.scan(path, SMALL)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
        with pytest.raises(MpdiagError):
            mpdiag.scan(write("import nothing_of_this_name\n"), SMALL)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert diagnosis.capture is not None
    assert diagnosis.verification is not None
    assert diagnosis.capture == mpdiag.scan(write(JOB), SMALL).capture


def test_ctrl_c_is_an_error_that_holds_what_was_seen(write):
    with pytest.raises(InterruptedScanError) as caught:
        mpdiag.scan(write(failing(11, "raise KeyboardInterrupt")), SMALL)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 2


def test_ctrl_c_in_the_verification_keeps_the_trials_that_ended(write):
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line.startswith("verify bf16"):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedScanError) as caught:
        mpdiag.scan(write(JOB), SMALL, report=interrupt)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.verification is not None
    assert diagnosis.verification.verdict == "inconclusive"
    assert {"fp32", "fp16"} <= {t.arm for t in diagnosis.verification.trials}
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


def test_what_fails_before_there_is_a_target_holds_nothing(write, tmp_path):
    for path in (str(tmp_path / "nowhere.py"), write("import nothing_of_this_name\n")):
        with pytest.raises(MpdiagError) as caught:
            mpdiag.scan(path, SMALL)
        assert caught.value.diagnosis is None


def test_an_optimizer_function_that_raises_is_the_users_error(write):
    text = JOB + "def build_optimizer(model):\n    raise ValueError('mine')\n"
    with pytest.raises(UserCodeError) as caught:
        mpdiag.scan(write(text), SMALL)
    assert "mine" in caught.value.traceback


def test_a_failure_of_mpdiag_itself_still_leaves_what_was_seen(write, monkeypatch):
    import mpdiag.verify.run

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(mpdiag.verify.run.VerificationRun, "run", broken)
    with pytest.raises(MpdiagError) as caught:
        mpdiag.scan(write(JOB), SMALL)
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.capture is not None
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"steps": -3}, {"seed": -1}, {"seeds": 0}, {"verify_steps": 0}, {"time_budget_seconds": 0.0},
     {"time_budget_seconds": float("nan")}, {"device": "tpu"}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(write, bad):
    with pytest.raises(UsageError):
        mpdiag.scan(write(JOB), dataclasses.replace(SMALL, **bad))


# what ended a scan


@pytest.mark.parametrize(
    ("at", "what", "hint"),
    [
        (9, "return model(batch).sum() * float('inf')", "mend the FP32 job first"),
        (9, "raise ValueError('third')", "which raises, and scan again: ValueError while computing the loss: third"),
    ],
)
def test_what_to_mend_is_kept_with_the_reason_and_is_the_next_step(write, at, what, hint):
    with pytest.raises(MpdiagError) as raised:
        mpdiag.scan(write(failing(at, what)), SMALL)
    diagnosis = raised.value.diagnosis
    assert hint in diagnosis.hint
    assert "autocast" not in mpdiag.text(diagnosis).partition("NEXT")[2].partition("NOT DONE")[0]


def test_who_stops_a_scan_has_nothing_to_mend(write):
    with pytest.raises(InterruptedScanError) as raised:
        mpdiag.scan(write(failing(9, "raise KeyboardInterrupt")), SMALL)
    assert raised.value.diagnosis.hint is None
