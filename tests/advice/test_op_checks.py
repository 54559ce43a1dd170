"""The findings of the second pass: what deserves one, what does not, and healthy jobs that must have none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.advice import advise
from mpdiag.advice.checks import ALL, BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.capture.op_scan import observe_operations
from mpdiag.diagnosis import Capture, Finding, SelfTest
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable
from mpdiag.target import load_job
from op_samples import CPU, of
from op_table_samples import OUTPUT, constant, operation

ROOT = Path(__file__).resolve().parents[2]
HEALTHY = sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("tests/targets/*.py")])
CODES = ("MP106", "MP107", "MP108", "MP109", "MP110", "MP305", "MP306", "MP307", "MP308")


def capture(*tables: OpTable) -> Capture:
    return Capture("FP32", "cpu", 1, 0, True, SelfTest(True, 2, 0.0, 0.0), (), losses=(1.0,), operations=tables)


def found(code: str, *tables: OpTable) -> list[Finding]:
    seen = capture(*tables)
    return list(BY_CODE[code].find(seen, recommend(seen)))


def only(code: str, *tables: OpTable) -> Finding:
    findings = found(code, *tables)
    assert len(findings) == 1
    assert (findings[0].code, findings[0].name) == (code, BY_CODE[code].name)
    return findings[0]


def codes(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[tuple[str, str]]:
    """(code, severity) of every finding on fn, given x as an activation."""
    return [(f.code, f.severity) for f in advise(capture(*of(fn, x))).findings]


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


# limits that the overflows share


OVERFLOWS = [("MP106", OpRole.LOGITS), ("MP107", OpRole.SQUARE), ("MP109", OpRole.SUM), ("MP110", OUTPUT)]


@pytest.mark.parametrize(("code", "role"), OVERFLOWS)
@pytest.mark.parametrize(
    ("abs_max", "severity"), [(32752.0, "warning"), (65519.9, "warning"), (65520.0, "error"), (1e30, "error")]
)
def test_within_an_octave_of_the_limit_is_a_warning_and_beyond_it_an_error(code, role, abs_max, severity):
    f = only(code, operation("bmm", role, abs_max))
    assert (f.severity, f.subject, f.source) == (severity, "block", "model.py:7")
    assert f.evidence == {"operation": "bmm", "abs_max": abs_max, "limit": 65520, "seen_in_fp16": "finite"}
    assert f.snippet


@pytest.mark.parametrize(("code", "role"), OVERFLOWS)
def test_an_octave_of_room_is_enough(code, role):
    assert found(code, operation("bmm", role, 32751.0)) == []


@pytest.mark.parametrize(("code", "role"), OVERFLOWS)
def test_what_a_mask_was_filled_into_is_not_judged(code, role):
    assert found(code, operation("masked_fill", role, 3.4e38, masked=True)) == []


def test_the_message_names_the_operation_its_place_and_the_room():
    f = only("MP107", operation("mul", OpRole.SQUARE, 90000.0, amp_result="inf"))
    assert f.message == (
        "a square in block (model.py:7) reaches 90,000 in FP16, 0.5 octaves above its largest number 65504"
    )
    assert f.evidence["seen_in_fp16"] == "inf"


def test_a_job_that_overflows_in_fp16_of_its_own_is_an_error():
    infinite = operation("sum", OpRole.SUM, None, dtype="float16", histogram=ExponentHistogram(infs=1))
    assert only("MP109", infinite).severity == "error"


# MP106 attention-logits-overflow


def hand_written(h: torch.Tensor) -> torch.Tensor:
    return F.softmax(h @ h.transpose(-2, -1) / 8, -1) @ h


def test_mp106_hand_written_attention_overflows_before_its_scale():
    assert codes(hand_written, torch.full((1, 2, 8), 100.0)) == [("MP106", "error")]  # 8 times 100^2 is 80,000


def test_mp106_small_queries_and_keys_are_no_finding():
    assert codes(hand_written, torch.full((1, 2, 8), 50.0)) == []


def test_mp106_the_scale_in_front_cures_it():
    scaled = lambda h: F.softmax((h / 8) @ h.transpose(-2, -1), -1) @ h
    assert codes(scaled, torch.full((1, 2, 8), 100.0)) == []


def test_mp106_what_goes_into_the_softmax_is_not_told_twice():
    assert found("MP106", operation("softmax", OpRole.LOGITS, 1e6)) == []


# MP107 and MP108: squares


def rms(h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-4)


def test_mp107_a_hand_written_norm_of_300_overflows():
    assert codes(rms, torch.tensor([[300.0, 1.0]])) == [("MP107", "error")]


def test_mp108_a_hand_written_norm_of_one_in_a_hundred_thousand_vanishes():
    f = next(f for f in advise(capture(*of(rms, torch.full((1, 4), 1e-5)))).findings)
    assert (f.code, f.severity, f.evidence["share"]) == ("MP108", "warning", 1.0)
    assert f.message.startswith("100 % of what the squares in Body (")


@pytest.mark.parametrize("size", [180.0, 1.0, 2.0**-12])
def test_a_hand_written_norm_in_between_has_no_finding(size):
    assert codes(rms, torch.full((1, 4), size)) == []


def test_mp108_small_squares_beside_large_ones_add_nothing():
    assert codes(rms, torch.tensor([[1.0, 1e-5, 1e-6, 1e-7]])) == []


@pytest.mark.parametrize(("lost", "warned"), [(5, False), (6, True)])
def test_mp108_five_percent_of_the_sum_is_the_limit(lost, warned):
    # an element at 2^-26 is lost, one at 2^-25 kept and worth two of those
    bins = {-26: 2 * lost, -25: 100 - lost}
    table = operation("mul", OpRole.SQUARE, 2.0**-25, histogram=ExponentHistogram.from_bins(bins))
    assert bool(found("MP108", table)) is warned


# MP109 sum-overflow


@pytest.mark.parametrize(("terms", "expected"), [(70_000, [("MP109", "error")]), (30_000, [])])
def test_mp109_ones_added_up_in_fp16(terms, expected):
    assert codes(lambda h: h.expand(1, terms).sum(dtype=h.dtype), torch.ones(1, 1)) == expected


def test_mp109_autocasts_own_sum_and_a_mean_are_fp32():
    assert codes(lambda h: h.expand(1, 70_000).sum() + h.expand(1, 70_000).mean(), torch.ones(1, 1)) == []


# MP110 operation-overflow


def test_mp110_a_product_between_modules_overflows():
    assert codes(lambda h: torch.tanh(h * 1000), torch.full((1, 2), 100.0)) == [("MP110", "error")]


def test_mp110_the_first_of_each_module_is_named():
    tables = (operation("mul", abs_max=7e4), operation("add", abs_max=8e4), operation("mul", abs_max=9e4, module="b"))
    assert [(f.subject, f.evidence["operation"]) for f in found("MP110", *tables)] == [("block", "mul"), ("b", "mul")]


@pytest.mark.parametrize("role", [OpRole.LOGITS, OpRole.SQUARE, OpRole.SUM])
def test_mp110_is_silent_where_a_code_of_its_own_has_spoken(role):
    assert found("MP110", operation("bmm", role, 1e6), operation("add", abs_max=1e6)) == []


def test_mp110_leaves_the_outputs_of_modules_to_mp101():
    assert found("MP110", operation("addmm", abs_max=1e6, module_output=True)) == []


# MP111 reduced-accumulation


def reduced(device: str = "cuda", op: str = "mm", abs_max: float = 30000.0, result: str = "inf") -> list[Finding]:
    before = operation("mm", abs_max=1.0)
    seen = replace(capture(before, operation(op, abs_max=abs_max, amp_result=result)), device=device)
    return list(BY_CODE["MP111"].find(seen, recommend(seen)))


def test_mp111_a_product_that_is_infinite_on_a_gpu_though_its_result_fits():
    (f,) = reduced()
    assert (f.severity, f.subject, f.source) == ("warning", "block", "model.py:7")
    assert f.message == "mm in block (model.py:7) is infinite in FP16, though FP32 reaches 30,000 only"


@pytest.mark.parametrize(
    "exempt", [{"device": "cpu"}, {"op": "mul"}, {"abs_max": 32752.0}, {"result": "nan"}, {"result": "finite"}]
)
def test_mp111_what_has_another_cause_is_no_matter(exempt):
    assert reduced(**exempt) == []


# MP105, between the modules


def test_mp105_an_operation_whose_result_vanishes():
    f = only("MP105", operation("mul", abs_max=2.0**-27))
    assert (f.severity, f.subject, f.source) == ("warning", "block", "model.py:7")
    assert f.message == (
        "100.0 % of the non-zero elements of the result of mul in block (model.py:7) become zero in FP16"
    )


@pytest.mark.parametrize(("small", "says"), [(990, True), (10, False)])
def test_mp105_between_modules_counts_what_carries_a_hundredth_of_the_norm(small, says):
    # 2^-26 is lost and 2^-25 is not; an element of the first carries a quarter of the norm of one of the second
    histogram = ExponentHistogram.from_bins({-26: small, -25: 1000 - small})
    assert bool(found("MP105", operation("mul", abs_max=2.0**-25, histogram=histogram))) is says


@pytest.mark.parametrize(
    "exempt", [{"module_output": True}, {"masked": True}, {"amp_dtype": "float32"}, {"direction": "backward"}]
)
def test_mp105_what_is_told_elsewhere_or_never_fp16_is_no_matter(exempt):
    assert found("MP105", operation("mul", abs_max=2.0**-27, **exempt)) == []


def test_mp105_the_first_of_each_module_is_named():
    tables = [operation(op, abs_max=2.0**-27, module=m) for op, m in (("mul", "a"), ("add", "a"), ("div", "b"))]
    assert [f.message.split(" of ")[3].split(" in ")[0] for f in found("MP105", *tables)] == ["mul", "div"]


def test_mp105_is_silent_where_squares_vanish():
    square = operation("mul", OpRole.SQUARE, abs_max=2.0**-27)
    assert found("MP105", square, operation("mul", abs_max=2.0**-27)) == []
    assert len(found("MP108", square)) == 1


# MP305 mask-constant


MASK = torch.tensor([[False, True], [False, False]])


def test_mp305_a_fill_that_raises_is_an_error_with_what_it_raised():
    findings = advise(capture(*of(lambda h: F.softmax(h.masked_fill(MASK, -1e9), -1), torch.ones(2, 2)))).findings
    assert [(f.code, f.severity) for f in findings] == [("MP305", "error")]
    assert "the constant -1e+09 of masked_fill in Body (" in findings[0].message
    assert "raises in FP16: value cannot be converted" in findings[0].message
    assert "torch.finfo(scores.dtype).min" in findings[0].snippet


@pytest.mark.parametrize(
    "mask",
    [lambda h: torch.where(MASK, -1e9, h), lambda h: h + MASK.to(h.dtype) * -1e9, lambda h: h + torch.tensor(-1e9)],
    ids=["where", "product", "sum"],
)
def test_mp305_a_mask_that_becomes_infinite_is_a_warning(mask):
    assert codes(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)) == [("MP305", "warning")]


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: h.masked_fill(MASK, torch.finfo(h.dtype).min),
        lambda h: h.masked_fill(MASK, -math.inf),
        lambda h: h.masked_fill(MASK, -1e4),
        lambda h: h.float().masked_fill(MASK, -1e9),
        lambda h: h + torch.zeros(2, 2).masked_fill(MASK, -1e9),
        lambda h: h.where(~MASK, -6e4),
    ],
    ids=["finfo", "infinity", "ten thousand", "in FP32", "an FP32 mask added", "near the limit"],
)
def test_mp305_masks_that_fp16_holds_or_does_not_meet_are_no_finding(mask):
    assert codes(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)) == []


def test_mp305_a_boolean_mask_is_no_finding():
    attend = lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], attn_mask=~MASK)
    assert codes(attend, torch.ones(2, 2)) == []


def test_mp305_a_large_factor_is_no_mask():
    assert found("MP305", constant("mul", 1e9, math.inf)) == []


# MP306 eps-underflow


def guarded(eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: 1 / (h + eps)


def test_mp306_an_eps_that_is_zero_and_needed_is_an_error():
    f = advise(capture(*of(guarded(1e-8), torch.tensor([[0.0, 1.0]])))).findings[0]
    assert (f.code, f.severity) == ("MP306", "error")
    assert (f.evidence["in_fp16"], f.evidence["smallest_guarded"]) == (0.0, pytest.approx(1e-8))


def test_mp306_an_eps_that_is_zero_and_not_needed_now_is_a_warning():
    assert codes(guarded(1e-8), torch.ones(1, 2)) == [("MP306", "warning")]


def test_mp306_an_eps_with_fewer_bits_is_information():
    f = advise(capture(*of(guarded(1e-6), torch.ones(1, 2)))).findings[0]
    assert (f.code, f.severity) == ("MP306", "info")
    assert "becomes 1.01e-06, subnormal, in FP16" in f.message


def test_mp306_a_clamp_guards_too():
    assert codes(lambda h: h.clamp(min=1e-12), torch.zeros(1, 2)) == [("MP306", "error")]


@pytest.mark.parametrize("fn", [guarded(1e-4), lambda h: 1 / (h.float() + 1e-8), lambda h: h * 1e-8])
def test_mp306_a_larger_eps_an_fp32_one_and_a_factor_are_no_finding(fn):
    assert codes(fn, torch.ones(1, 2)) == []


def test_mp306_an_eps_from_finfo_is_judged_by_its_fp16_value():
    assert codes(lambda h: 1 / (h + torch.finfo(h.dtype).eps), torch.ones(1, 2)) == []


# MP307 log-of-softmax


def in_half(h: torch.Tensor) -> torch.Tensor:
    return torch.log(F.softmax(h, -1).to(h.dtype))


def test_mp307_a_vanished_probability_in_fp16_is_an_error():
    assert codes(in_half, torch.tensor([[0.0, 40.0]])) == [("MP307", "error")]


def test_mp307_probabilities_in_fp16_are_a_warning():
    assert codes(in_half, torch.tensor([[0.0, 4.0]])) == [("MP307", "warning")]


def test_mp307_in_fp32_as_under_autocast_it_is_information():
    assert codes(lambda h: torch.log(F.softmax(h, -1)), torch.tensor([[0.0, 40.0]])) == [("MP307", "info")]


def test_mp307_log_softmax_is_no_finding():
    assert codes(lambda h: F.log_softmax(h, -1), torch.tensor([[0.0, 40.0]])) == []


# MP308 integers-in-fp16


def positions(count: int, dtype: torch.dtype | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda h: h.sum() + torch.sin(torch.arange(count).to(dtype or h.dtype) / 100).sum()


def test_mp308_positions_beyond_2048_in_fp16_are_a_warning():
    f = advise(capture(*of(positions(3000), torch.ones(1, 2)))).findings[0]
    assert (f.code, f.severity, f.evidence["abs_max"]) == ("MP308", "warning", 2999)
    assert "whole numbers up to 2,999" in f.message


@pytest.mark.parametrize("fn", [positions(2049), positions(3000, torch.float32)])
def test_mp308_positions_that_fp16_holds_or_that_stay_in_fp32_are_no_finding(fn):
    assert codes(fn, torch.ones(1, 2)) == []


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
