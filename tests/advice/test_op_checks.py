"""The findings of the second pass: healthy jobs have none, and the catalogue has every code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.advice import advise
from mpdiag.advice.checks import ALL, BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.capture.op_scan import observe_operations
from mpdiag.diagnosis import Capture, SelfTest
from mpdiag.operations import OpRole
from mpdiag.target import load_job
from op_check_samples import capture, codes, found
from op_samples import CPU, of
from op_table_samples import OUTPUT, constant, operation

ROOT = Path(__file__).resolve().parents[2]


HEALTHY = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("tests/targets/*.py")])


CODES = ("MP106", "MP107", "MP108", "MP109", "MP110", "MP305", "MP306", "MP307", "MP308")


# healthy code


@pytest.mark.parametrize("target", HEALTHY, ids=lambda path: path.stem)
def test_a_healthy_job_has_no_warning_from_the_second_pass(target, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("EXAMPLE_SIZE", "small")
    job = load_job(str(target.relative_to(ROOT)))
    seen = observe_operations(job, job.start(0, 1), CPU)
    assert seen.tables is not None
    assert len(seen.tables) > 5
    assert [f.message for f in advise(capture(*seen.tables)).findings if f.severity != "info"] == []


@pytest.mark.parametrize(
    "fn",
    [
        lambda h: F.layer_norm(h, (2,)),
        lambda h: F.rms_norm(h, (2,)),
        lambda h: F.normalize(h, dim=-1),
        lambda h: h * torch.rsqrt(h.float().pow(2).mean(-1, keepdim=True) + 1e-8),
        lambda h: F.softmax(h, -1).log_softmax(-1),
        lambda h: h.norm(dim=-1) + h.sum(-1),
    ],
    ids=["layer_norm", "rms_norm", "normalize", "an upcast rms norm", "softmax and log_softmax", "norm and sum"],
)
@pytest.mark.parametrize("size", [2000.0, 2.0**-17])
def test_torchs_own_norms_run_in_fp32_whatever_their_input(fn, size):
    assert codes(fn, torch.tensor([[size, -size]])) == []


@pytest.mark.parametrize("size", [1.0, 200.0])
def test_fused_attention_has_no_finding_whatever_its_logits(size):
    x = torch.full((1, 1, 4, 8), size)
    assert codes(lambda h: F.scaled_dot_product_attention(h, h, h, is_causal=True), x) == []


@pytest.mark.parametrize("code", CODES)
def test_a_capture_without_the_second_pass_has_no_such_finding(code):
    seen = Capture("FP32", "cpu", 1, 0, True, SelfTest(True, 2, 0.0, 0.0), ())
    assert list(BY_CODE[code].find(seen, recommend(seen))) == []


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("amp_dtype", ["float32", "bfloat16", None])
def test_what_is_not_fp16_for_certain_has_no_warning(code, amp_dtype):
    roles = (OUTPUT, OpRole.LOGITS, OpRole.SQUARE, OpRole.SUM, OpRole.INTEGERS, OpRole.PROBABILITY)
    huge = [operation("bmm", role, 1e6, amp_dtype=amp_dtype) for role in roles]
    tiny = [operation("log", role, 1e-12, amp_dtype=amp_dtype) for role in roles]
    numbers = [constant("add", 1e-8, 0.0, amp_dtype=amp_dtype), constant("where", -1e9, -math.inf, amp_dtype=amp_dtype)]
    assert [f for f in found(code, *huge, *tiny, *numbers) if f.severity != "info"] == []


@pytest.mark.parametrize("code", CODES)
def test_the_backward_pass_is_left_to_the_loss_scale(code):
    roles = (OUTPUT, OpRole.LOGITS, OpRole.SQUARE, OpRole.SUM)
    assert found(code, *(operation("mul", role, 1e6, direction="backward") for role in roles)) == []


# the catalogue


def test_every_code_of_the_second_pass_is_in_the_catalogue():
    assert {check.code for check in ALL} >= set(CODES)


def test_a_planted_fault_is_named_by_its_line():
    class Norm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / (x * x).mean(-1, keepdim=True).sqrt()

    norm = Norm()
    f = advise(capture(*of(lambda h: norm(h), torch.tensor([[300.0, 1.0]])))).findings[0]
    line = Norm.forward.__code__.co_firstlineno + 1
    assert f.code == "MP107"
    assert f.source is not None
    assert f.source.endswith(f"test_op_checks.py:{line}")
