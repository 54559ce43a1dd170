"""Operations whose results overflow or vanish in FP16: what deserves a finding and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mpdiag.advice import advise
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Finding
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole
from op_check_samples import capture, codes, found, only
from op_samples import of
from op_table_samples import OUTPUT, operation

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
