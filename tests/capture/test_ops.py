"""The second pass: what it sees of operators, on models whose every value is known on paper."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from mpdiag.api import scan
from mpdiag.capture.attention import logits_of, rows_to_read
from mpdiag.capture.op_scan import Operations, observe_operations
from mpdiag.errors import InterruptedScanError, UsageError
from mpdiag.operations import NOT_OBSERVED, OUTSIDE, OpRole, OpTable
from mpdiag.training.rounding import emulated_operator
from op_samples import CPU, Body, bins, job, of, one, operations, seen, select

TARGETS = Path(__file__).parents[1] / "targets"


# attention written by hand


ROWS = torch.tensor([[[8.0, 0.0], [0.0, 16.0]]])


def attention(h: torch.Tensor) -> torch.Tensor:
    scores = h @ h.transpose(-2, -1)
    scores = scores / 4
    return F.softmax(scores, -1) @ h


def line_of(fn: Callable[..., Any], offset: int) -> str:
    path = Path(fn.__code__.co_filename)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{shown}:{fn.__code__.co_firstlineno + offset}"


def test_the_product_of_queries_and_keys_is_logits_with_its_exponents():
    # (8, 0) and (0, 16) times themselves: 64 and 256 on the diagonal
    logits = one(of(attention, ROWS), op="bmm", role=OpRole.LOGITS)
    assert bins(logits) == {6: 1, 8: 1}
    assert logits.histogram.zeros == 2
    assert (logits.abs_max, logits.abs_min, logits.elements, logits.calls) == (256, 64, 4, 1)
    assert (logits.dtype, logits.amp_dtype, logits.amp_result) == ("float32", "float16", "finite")
    assert logits.source == line_of(attention, 1)
    assert not logits.sampled
    assert logits.rows is None


def test_what_goes_into_the_softmax_is_logits_too_after_its_scale():
    logits = one(of(attention, ROWS), op="softmax", role=OpRole.LOGITS)
    assert bins(logits) == {4: 1, 6: 1}
    assert (logits.amp_dtype, logits.source) == ("float16", line_of(attention, 3))


def test_the_second_product_of_attention_is_no_logits_though_its_line_is_the_softmaxs():
    product = one(of(attention, ROWS), op="bmm")
    assert (product.source, product.abs_max) == (line_of(attention, 3), 16)


def test_two_products_on_one_line_are_told_apart():
    tables = of(lambda h: F.softmax(h @ h.transpose(-2, -1), -1) @ h, ROWS)
    assert one(tables, op="bmm", role=OpRole.LOGITS).abs_max == 256
    assert one(tables, op="bmm").abs_max == 16


def test_a_softmax_is_fp32_under_autocast_and_its_scale_fp16():
    tables = of(attention, ROWS)
    assert one(tables, op="softmax").amp_dtype == "float32"
    assert one(tables, op="div").amp_dtype == "float16"


def test_a_linear_before_a_softmax_gives_no_attention_logits():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2), nn.Softmax(-1))

    tables = seen(job(build, ROWS))
    assert select(tables, op="addmm", role=OpRole.LOGITS) == []
    assert [t.op for t in tables if t.role is OpRole.LOGITS] == ["softmax"]


def test_logits_through_mask_bias_and_soft_cap_are_still_logits():
    def capped(h: torch.Tensor) -> torch.Tensor:
        scores = 30 * torch.tanh(h @ h.transpose(-2, -1) / 30)
        return F.softmax(scores.masked_fill(torch.eye(2, dtype=torch.bool), -math.inf) + 1, -1) @ h

    assert one(of(capped, ROWS), op="bmm", role=OpRole.LOGITS).abs_max == 256


# attention in one kernel


def fused(h: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(h, h, h, is_causal=True)


def test_logits_inside_fused_attention_are_the_products_before_the_mask():
    x = torch.arange(24.0).reshape(1, 2, 3, 4) / 8
    logits = one(of(fused, x), op="scaled_dot_product_attention", role=OpRole.LOGITS)
    expected = (x @ x.transpose(-2, -1)) / 2  # 1 / sqrt(4)
    assert logits.elements == 18
    assert logits.abs_max == expected.abs().max()
    assert bins(logits) == bins_of(expected)
    assert (logits.rows_read, logits.rows, logits.sampled) == (6, 6, False)


def bins_of(values: torch.Tensor) -> dict[int, int]:
    found: dict[int, int] = {}
    for value in values.flatten().tolist():
        if value:
            exponent = math.frexp(abs(value))[1] - 1
            found[exponent] = found.get(exponent, 0) + 1
    return dict(sorted(found.items()))


def test_fused_attention_keeps_its_logits_in_fp32_and_gives_fp16():
    tables = of(fused, torch.ones(1, 1, 2, 2))
    assert one(tables, op="scaled_dot_product_attention", role=OpRole.LOGITS).amp_dtype == "float32"
    assert one(tables, op="scaled_dot_product_attention").amp_dtype == "float16"


def test_attention_with_dropout_runs_in_parts_and_its_logits_are_fp32_there_too():
    tables = of(lambda h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.5), torch.full((1, 1, 2, 4), 2.0))
    logits = one(tables, op="bmm", role=OpRole.LOGITS)
    assert (logits.amp_dtype, logits.elements) == ("float32", 4)
    assert logits.abs_max == pytest.approx(8, rel=1e-6)  # 4 products of 2, halved by the scale
    assert one(tables, op="bmm").amp_dtype == "float16"  # the result of attention


def test_a_scale_of_ones_own_and_grouped_heads_are_followed():
    q, k = torch.randn(1, 4, 3, 2), torch.randn(1, 2, 5, 2)
    expected = q @ k.repeat_interleave(2, dim=1).transpose(-2, -1) * 3
    assert torch.allclose(logits_of(q, k, 3.0, rows_to_read(q, k)), expected.flatten(0, 1))


def test_too_many_logits_are_sampled_by_rows_the_last_among_them():
    q, k = torch.randn(2, 3, 50, 4), torch.randn(2, 3, 20, 4)
    rows = rows_to_read(q, k, limit=1200)  # 60 rows of 20, so 10 of each of the 6 heads
    assert rows.total == 300
    assert len(rows.heads) == 6
    assert 8 <= len(rows.rows) <= 10
    assert rows.rows[-1] == 49
    assert rows.read == 6 * len(rows.rows)
    whole = (q @ k.transpose(-2, -1) / 2).flatten(0, 1)
    assert torch.allclose(logits_of(q, k, None, rows), whole[:, rows.rows], atol=1e-6)


def test_where_a_row_of_each_head_is_too_much_some_heads_are_read():
    q = k = torch.randn(8, 16, 10, 4)
    rows = rows_to_read(q, k, limit=640)
    assert len(rows.rows) == 1
    assert 50 <= len(rows.heads) <= 64
    assert rows.heads[-1] == 127


def test_sampled_logits_say_how_much_was_read(monkeypatch):
    monkeypatch.setattr("mpdiag.capture.op_roles.rows_to_read", lambda q, k: rows_to_read(q, k, limit=8))
    logits = one(of(fused, torch.ones(1, 1, 8, 4)), op="scaled_dot_product_attention", role=OpRole.LOGITS)
    assert (logits.sampled, logits.rows_read, logits.rows, logits.elements) == (True, 1, 8, 8)


# norms


def rms(h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt((h * h).mean(-1, keepdim=True) + 1e-8)


def rms_by_pow(h: torch.Tensor) -> torch.Tensor:
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-8)


def test_a_square_of_300_overflows_in_fp16():
    square = one(of(rms, torch.tensor([[300.0, 100.0]])), op="mul", role=OpRole.SQUARE)
    assert (square.abs_max, square.abs_min) == (90000, 10000)
    assert (square.amp_dtype, square.amp_result) == ("float16", "inf")
    assert square.source == line_of(rms, 1)


def test_a_square_by_pow_runs_in_fp32():
    square = one(of(rms_by_pow, torch.tensor([[300.0, 100.0]])), op="pow", role=OpRole.SQUARE)
    assert (square.abs_max, square.amp_dtype, square.amp_result) == (90000, "float32", "finite")


def test_squares_of_one_in_a_hundred_thousand_have_their_exponents():
    square = one(of(rms, torch.full((1, 4), 2.0**-17)), op="mul", role=OpRole.SQUARE)
    assert bins(square) == {-34: 4}


def test_a_product_of_two_tensors_is_no_square():
    tables = of(lambda h: h * (h + 0), torch.ones(1, 2))
    assert select(tables, role=OpRole.SQUARE) == []
    assert len(select(tables, op="mul")) == 1


@pytest.mark.parametrize(
    ("norm", "op", "x", "square", "largest_sum"),
    [
        (lambda h: F.layer_norm(h, (2,)), "native_layer_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 100),
        (lambda h: F.group_norm(h, 2), "native_group_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 64),
        (lambda h: F.batch_norm(h, None, None, training=True), "batch_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 80),
        (lambda h: torch.linalg.vector_norm(h, dim=-1), "linalg_vector_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 100),
        (lambda h: h.norm(dim=0), "linalg_vector_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 80),
        (lambda h: h.norm(), "linalg_vector_norm", [[3.0, 4.0], [6.0, 8.0]], 64, 125),
    ],
    ids=["layer", "group", "batch", "vector", "vector by columns", "vector whole"],
)
def test_squares_and_sums_inside_torchs_norms_are_seen_and_are_fp32(norm, op, x, square, largest_sum):
    tables = of(norm, torch.tensor(x))
    inner = one(tables, op=op, role=OpRole.SQUARE)
    assert (inner.abs_max, inner.amp_dtype) == (square, "float32")
    added = one(tables, op=op, role=OpRole.SUM)
    assert (added.abs_max, added.amp_dtype) == (largest_sum, "float32")


def test_the_sum_of_a_mean_is_seen_before_its_division():
    tables = of(lambda h: h.mean(-1), torch.full((1, 1000), 100.0))
    added = one(tables, op="mean", role=OpRole.SUM)
    assert (added.abs_max, added.amp_dtype) == (100_000, "float32")
    mean = one(tables, op="mean")
    assert (mean.abs_max, mean.amp_dtype) == (100, "float16")


def test_seventy_thousand_ones_overflow_a_sum_in_fp16_and_not_autocasts():
    x = torch.ones(1, 70_000)

    def build() -> nn.Module:
        return Body(lambda h: h.expand(1, 70_000).sum(dtype=h.dtype) + h.expand(1, 70_000).sum(), 1)

    tables = seen(job(build, x[:, :1]))
    half = one(tables, role=OpRole.SUM, amp_dtype="float16")
    assert (half.op, half.abs_max, half.amp_result) == ("sum", 70_000, "inf")
    assert one(tables, role=OpRole.SUM, amp_dtype="float32", module="Body").amp_result == "finite"


# constants


def constants(tables: tuple[OpTable, ...]) -> list[tuple[str, str | None, float | None, float | None, str | None]]:
    return [
        (t.op, t.argument, t.value, t.in_fp16, t.amp_dtype)
        for t in select(tables, role=OpRole.CONSTANT)
        if t.module == "Body"
    ]


def test_an_eps_of_1e_8_is_zero_in_fp16():
    assert constants(of(rms, torch.ones(1, 2))) == [("add", "other", 1e-8, 0.0, "float16")]


def test_an_eps_next_to_fp32_stays_what_it_is():
    assert constants(of(rms_by_pow, torch.ones(1, 2))) == [("add", "other", 1e-8, 0.0, "float32")]


def test_the_eps_of_torchs_norm_is_fp32():
    assert constants(of(lambda h: F.layer_norm(h, (2,), eps=1e-12), torch.ones(1, 2))) == [
        ("native_layer_norm", "eps", 1e-12, 0.0, "float32")
    ]


def test_a_clamp_has_both_its_constants():
    found = constants(of(lambda h: h.clamp(1e-9, 5e4), torch.ones(1, 2)))
    assert found == [("clamp", "min", 1e-9, 0.0, "float16"), ("clamp", "max", 5e4, 49984.0, "float16")]


def test_constants_well_inside_fp16_are_no_rows():
    assert constants(of(lambda h: (h * 3 + 0.5).clamp(-1, 100) / 8, torch.ones(1, 2))) == []


def test_exponents_dimensions_and_probabilities_are_no_constants():
    assert constants(of(lambda h: F.dropout(h.pow(5000.0).sum(-1, keepdim=True), 1e-6), torch.ones(1, 2))) == []


MASK = torch.tensor([[False, True], [False, False]])


def test_a_fill_of_minus_a_billion_raises_in_fp16_and_the_types_go_on():
    tables = of(lambda h: F.softmax(h.masked_fill(MASK, -1e9), -1) * h, torch.ones(2, 2))
    constant = one(tables, role=OpRole.CONSTANT)
    assert (constant.value, constant.in_fp16, constant.amp_dtype) == (-1e9, -math.inf, "float16")
    assert "without overflow" in constant.amp_error
    assert "without overflow" in one(tables, op="masked_fill").amp_error
    assert one(tables, op="softmax").amp_dtype == "float32"
    assert all(t.amp_dtype is not None for t in tables)


def test_a_fill_in_place_raises_and_goes_on_too():
    def fill(h: torch.Tensor) -> torch.Tensor:
        scores = h + 0
        scores.masked_fill_(MASK, -1e9)
        return F.softmax(scores, -1)

    tables = of(fill, torch.ones(2, 2))
    assert "without overflow" in one(tables, role=OpRole.CONSTANT).amp_error
    assert one(tables, op="masked_fill").amp_result == "inf"
    assert one(tables, op="softmax").amp_result == "finite"


@pytest.mark.parametrize(
    ("op", "argument", "mask"),
    [
        ("where", "other", lambda h: torch.where(MASK, h, -1e9)),
        ("where", "self", lambda h: torch.where(MASK, torch.tensor(-1e9), h)),
        ("add", "other", lambda h: h + torch.tensor(-1e9)),
        ("mul", "other", lambda h: MASK.to(h.dtype) * -1e9 + h),
    ],
)
def test_a_mask_by_where_or_addition_becomes_minus_infinity(op, argument, mask):
    found = constants(of(lambda h: F.softmax(mask(h), -1), torch.ones(2, 2)))
    assert found == [(op, argument, -1e9, -math.inf, "float16")]


def test_a_mask_built_in_fp32_counts_as_fp16_where_it_is_cast_later():
    def build(h: torch.Tensor) -> torch.Tensor:
        mask = torch.full((2, 2), -1e9).triu(1)
        return F.softmax(h + mask.to(h.dtype), -1)

    assert constants(of(build, torch.ones(2, 2))) == [("full", "fill_value", -1e9, -math.inf, "float16")]


def test_a_mask_built_in_fp32_and_left_there_stays_fp32():
    def build(h: torch.Tensor) -> torch.Tensor:
        return F.softmax(h + torch.full((2, 2), -1e9).triu(1), -1)

    assert constants(of(build, torch.ones(2, 2))) == [("full", "fill_value", -1e9, -math.inf, "float32")]


def test_the_least_number_of_the_scores_own_type_is_another_one_in_fp16():
    def fill(h: torch.Tensor) -> torch.Tensor:
        return F.softmax(h.masked_fill(MASK, torch.finfo(h.dtype).min), -1)

    constant = one(of(fill, torch.ones(2, 2)), role=OpRole.CONSTANT)
    assert constant.value == torch.finfo(torch.float32).min
    assert (constant.amp_value, constant.in_fp16, constant.amp_error) == (-65504, -65504, None)


@pytest.mark.parametrize(
    "mask",
    [
        lambda h: h.masked_fill(MASK, -math.inf),
        lambda h: F.scaled_dot_product_attention(h[None], h[None], h[None], attn_mask=~MASK),
        lambda h: h * ~MASK,
    ],
)
def test_minus_infinity_and_boolean_masks_are_no_constants(mask):
    assert constants(of(mask, torch.ones(2, 2))) == []


def test_what_a_mask_was_filled_into_or_added_to_is_marked_and_nothing_else():
    def fill(h: torch.Tensor) -> torch.Tensor:
        scores = h.masked_fill(MASK, torch.finfo(h.dtype).min)
        return F.softmax(scores + 1, -1) * 2

    tables = of(fill, torch.ones(2, 2))
    assert {t.op for t in tables if t.masked} == {"masked_fill", "add", "softmax"}
    assert one(tables, op="softmax", role=OpRole.LOGITS).masked
    assert not one(tables, op="softmax").masked


# a softmax's logarithm, whole numbers


def test_the_probabilities_in_a_logarithm_are_seen_with_their_type():
    x = torch.tensor([[0.0, 40.0]])
    fp32 = one(of(lambda h: torch.log(F.softmax(h, -1)), x), role=OpRole.PROBABILITY)
    assert (fp32.op, fp32.amp_dtype, fp32.abs_max) == ("log", "float32", 1)
    assert fp32.abs_min == pytest.approx(math.exp(-40), rel=1e-6)
    half = one(of(lambda h: torch.log(F.softmax(h, -1).to(h.dtype) + 1e-8), x), role=OpRole.PROBABILITY)
    assert half.amp_dtype == "float16"


def test_a_log_softmax_and_another_logarithm_hold_no_probabilities():
    tables = of(lambda h: F.log_softmax(h, -1) + torch.log(h), torch.ones(1, 2))
    assert [t for t in tables if t.role is OpRole.PROBABILITY] == []


@pytest.mark.parametrize(
    ("numbers", "amp_dtype"),
    [
        (lambda h: torch.arange(3000.0)[:, None] @ torch.ones(1, 2), "float16"),
        (lambda h: torch.arange(3000).to(h.dtype), "float16"),
        (lambda h: torch.arange(3000)[:, None].float() * torch.ones(2), "float32"),
        (lambda h: torch.arange(3000, dtype=torch.float32) / 3000, "float32"),
    ],
    ids=["a product of positions", "cast to the type of an activation", "FP32", "normalised in FP32"],
)
def test_whole_numbers_beyond_2048_are_seen_with_the_type_that_holds_them(numbers, amp_dtype):
    tables = of(lambda h: numbers(h).float().sum() + h.sum(), torch.ones(1, 2))
    found = one(tables, role=OpRole.INTEGERS)
    assert (found.abs_max, found.amp_dtype) == (2999, amp_dtype)


@pytest.mark.parametrize("last", [0, 1, 2049])
def test_whole_numbers_up_to_2048_are_no_row(last):
    tables = of(lambda h: torch.arange(last).to(h.dtype).sum() + h.sum(), torch.ones(1, 2))
    assert select(tables, role=OpRole.INTEGERS) == []


# what is recorded, and where it belongs


def test_views_and_copies_are_not_recorded():
    def rename(h: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([h.view(-1), h.t().reshape(-1).clone()]).split(2)
        return torch.stack(parts).unsqueeze(0).contiguous()[..., :1].expand(1, 2, 3)

    assert {t.op for t in select(of(rename, torch.ones(1, 2)), module="Body")} == set()


def test_in_place_operators_are_recorded_with_their_results():
    def in_place(h: torch.Tensor) -> torch.Tensor:
        h = h * 1
        h += 3
        return F.relu(h, inplace=True)

    tables = of(in_place, torch.tensor([[1.0, -7.0]]))
    assert (one(tables, op="add").abs_max, bins(one(tables, op="add"))) == (4, {2: 2})
    assert (bins(one(tables, op="relu")), one(tables, op="relu").histogram.zeros) == ({2: 1}, 1)


def test_calls_on_one_line_are_one_row_and_on_two_lines_two():
    def twice(h: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            h = h + 1
        return h + 4

    found = select(of(twice, torch.ones(1, 2)), op="add")
    assert [(t.calls, t.elements, t.abs_max, t.source) for t in found] == [
        (3, 6, 4.0, line_of(twice, 2)), (1, 2, 8.0, line_of(twice, 3))
    ]  # fmt: skip


def test_calls_that_differ_in_type_are_rows_of_their_own():
    def mixed(h: torch.Tensor) -> torch.Tensor:
        for part in (h, h.float() * 2):
            h = part + 1
        return h

    def build() -> nn.Module:
        return Body(mixed, 2)

    found = select(seen(job(build, torch.ones(1, 2))), op="add")
    assert [(t.amp_dtype, t.abs_max) for t in found] == [("float16", 2.0), ("float32", 3.0)]


def test_operators_that_a_gpu_runs_in_16_bits_are_fp16_though_emulated_in_fp32():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 2, 1), nn.GELU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.LSTM(4, 4))

    tables = seen(job(build, torch.randn(1, 2, 4), lambda m, x: m(x)[0].sum()))
    types = {t.op: t.amp_dtype for t in select(tables) if t.op in ("convolution", "gelu", "addmm", "native_layer_norm")}
    assert types == {
        "convolution": "float16", "gelu": "float16", "addmm": "float16", "native_layer_norm": "float32"
    }  # fmt: skip
    assert {t.amp_dtype for t in select(tables, module="4")} == {"float16"}


def test_backward_operators_are_backward_at_the_module_and_line_of_their_forward():
    tables = of(attention, ROWS)
    back = select(tables, op="softmax_backward_data", direction="backward")
    assert [(t.module, t.source, t.amp_dtype) for t in back] == [("Body", line_of(attention, 3), "float32")]
    assert {t.op for t in select(tables, module="same")} == {"mm"}
    back = select(tables, module="same", direction="backward")
    assert [(t.op, t.source, t.amp_dtype) for t in back] == [("mm", line_of(Body.forward, 1), "float16")]


def test_the_gradient_of_a_product_has_its_values():
    # the loss is the sum of h * 3, so each element of h has gradient 3
    back = one(of(lambda h: h * 3, torch.ones(1, 2)), op="mul", direction="backward")
    assert (bins(back), back.amp_dtype, back.module) == ({1: 2}, "float16", "Body")


def test_the_optimizer_is_not_looked_at():
    names = {t.op for t in of(attention, ROWS)}
    assert names & {"addcdiv", "lerp", "sqrt", "foreach_add", "fused_adam"} == set()


def test_what_the_loss_function_computes_is_outside_the_model():
    tables = seen(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), lambda m, x: (m(x) - 1).pow(2).mean()))
    assert {t.op for t in select(tables, module=OUTSIDE)} == {"sub", "mean"}
    assert one(tables, module=OUTSIDE, role=OpRole.SQUARE).op == "pow"


class Block(nn.Module):
    def __init__(self, saving: str | None = None) -> None:
        super().__init__()
        self.inner = Body(lambda h: torch.sigmoid(h) * 2, 2)
        self.saving = saving

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.saving is None:
            return torch.exp(self.inner(x))
        return torch.exp(checkpoint(self.inner, x, use_reentrant=self.saving == "reentrant"))


class Nested(nn.Module):
    def __init__(self, saving: str | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([Block(saving), Block(saving)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return torch.cos(x)


def test_an_operator_belongs_to_the_innermost_module():
    tables = seen(job(Nested, torch.ones(1, 2)))
    assert [t.module for t in select(tables, op="sigmoid")] == ["blocks.0.inner", "blocks.1.inner"]
    assert [t.module for t in select(tables, op="exp")] == ["blocks.0", "blocks.1"]
    assert [t.module for t in select(tables, op="cos")] == ["Nested"]
    assert one(tables, op="addmm").module == "first"


def test_what_a_module_returns_is_marked():
    tables = seen(job(Nested, torch.ones(1, 2)))
    marked = {(t.module, t.op) for t in select(tables) if t.module_output}
    assert ("first", "addmm") in marked
    assert ("blocks.0.inner", "mul") in marked
    assert ("blocks.0.inner", "sigmoid") not in marked


@pytest.mark.parametrize("saving", ["reentrant", "not reentrant"])
def test_checkpointing_changes_neither_rows_nor_counts(saving):
    def forward(tables: tuple[OpTable, ...]) -> list[tuple[Any, ...]]:
        return [(t.module, t.op, t.calls, t.histogram, t.amp_dtype) for t in select(tables) if t.module != "Nested"]

    plain, saved = seen(job(Nested, torch.ones(1, 2))), seen(job(lambda: Nested(saving), torch.ones(1, 2)))
    assert forward(saved) == forward(plain)
    back = select(saved, op="sigmoid_backward", direction="backward")
    assert sorted((t.module, t.calls, t.amp_dtype) for t in back) == [
        ("blocks.0.inner", 1, "float16"), ("blocks.1.inner", 1, "float16")
    ]  # fmt: skip
    assert all(t.source is not None for t in saved)


def test_a_gradient_penalty_is_backward_and_has_its_types():
    def penalty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(torch.sigmoid(model(x)).sum(), x, create_graph=True)
        return slope.pow(2).sum()

    tables = seen(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), penalty))
    assert len(select(tables, op="sigmoid_backward", direction="backward")) >= 1
    assert all(t.amp_dtype is not None for t in tables)


def test_several_losses_are_all_seen():
    found = operations_of_target("gan")
    assert found.reason is None
    assert {t.module for t in found.tables or ()} >= {OUTSIDE}


def operations_of_target(name: str) -> Operations:
    from mpdiag.target import load_job

    the_job = load_job(str(TARGETS / f"{name}.py"))
    return observe_operations(the_job, the_job.start(0, 1), CPU)


def test_include_and_exclude_are_patterns_on_modules():
    the_job = job(Nested, torch.ones(1, 2))
    assert {t.module for t in seen(the_job, include=("blocks.0*",))} == {
        "blocks.0", "blocks.0.inner", "blocks.0.inner.same"
    }  # fmt: skip
    assert "first" not in {t.module for t in seen(the_job, exclude=("first",))}


# failures


def test_an_operator_that_autocast_refuses_ends_the_types_and_not_the_pass():
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        probable = torch.sigmoid(model(x))
        return F.binary_cross_entropy(probable, torch.ones_like(probable)) + probable.mean()

    found = operations(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), loss))
    assert found.reason is not None
    assert found.reason.startswith("types after sigmoid (")
    assert "binary_cross_entropy" in found.reason
    assert found.tables is not None
    assert one(found.tables, op="sigmoid").amp_dtype == "float16"
    assert one(found.tables, op="binary_cross_entropy").amp_dtype is None


def test_a_job_that_fails_in_fp32_gives_a_reason_and_no_tables():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            if Counting.calls > 1:
                raise ValueError("no more")
            return super().forward(x)

    found = operations(job(lambda: Counting(2, 2), torch.ones(1, 2)))
    assert found.tables is None
    assert found.reason == "the operations could not be observed: ValueError while computing the loss: no more"


def test_nothing_is_left_behind_whatever_happened():
    hooks = len(_global_forward_hooks)
    operations(job(lambda: Body(rms, 2), torch.ones(1, 2)))
    operations(job(lambda: Body(lambda h: h @ torch.ones(7, 7), 2), torch.ones(1, 2)))
    assert _get_current_dispatch_mode() is None
    assert len(_global_forward_hooks) == hooks
    assert emulated_operator() is None
    assert torch.is_grad_enabled()


# beside the observed run


def test_the_pass_changes_nothing_in_the_observed_run():
    target = str(TARGETS / "attention.py")
    plain = scan(target, steps=2, verify=False).capture
    deep = scan(target, steps=2, verify=False, depth="ops").capture
    assert (deep.tables, deep.losses, deep.unchanged) == (plain.tables, plain.losses, True)
    assert (plain.operations, plain.operations_reason) == (None, NOT_OBSERVED)
    assert (len(deep.operations) > 10, deep.operations_reason) == (True, None)


def test_the_pass_is_a_stage_of_its_own_and_timed():
    lines: list[str] = []
    target = str(TARGETS / "tied.py")
    deep = scan(target, steps=1, verify=False, depth="ops", report=lines.append)
    assert "two iterations, FP16 and FP32, to see every operation between the modules" in lines
    assert deep.elapsed_seconds["operations"] > 0
    assert "operations" not in scan(target, steps=1, verify=False).elapsed_seconds


def test_ctrl_c_during_the_pass_keeps_the_capture_and_its_advice(monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mpdiag.capture.op_scan.observe_operations", interrupted)
    with pytest.raises(InterruptedScanError) as stopped:
        scan(str(TARGETS / "tied.py"), steps=1, verify=False, depth="ops")
    seen = stopped.value.diagnosis
    assert seen is not None
    assert seen.advice is not None
    assert (seen.capture.operations, seen.capture.operations_reason) == (None, NOT_OBSERVED)


def test_an_unknown_depth_is_refused():
    with pytest.raises(UsageError, match="depth cannot be 'kernels'"):
        scan("x.py", depth="kernels")


def test_the_command_takes_the_depth_and_its_json_has_the_operations(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mpdiag", "scan", str(TARGETS / "tied.py"), "--depth", "ops", "--steps", "1",
         "--no-verify", "--plotly", "none", "--html", str(tmp_path / "x.html"), "--json", "-"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["capture"]
    assert record["operations_reason"] is None
    keys = {"op", "module", "direction", "role", "dtype", "amp_dtype", "elements", "calls", "abs_max", "source"}
    assert all(keys <= set(table) for table in record["operations"])
    assert {t["direction"] for t in record["operations"]} == {"forward", "backward"}
    assert 'id="operations"' in (tmp_path / "x.html").read_text()
    assert "two iterations, FP16 and FP32, to see every operation between the modules" in done.stderr


def test_compiled_code_is_seen_as_it_was_written():
    def build() -> nn.Module:
        return Body(torch.compile(lambda h: torch.sin(h) * 2, backend="aot_eager"), 2)

    tables = seen(job(build, torch.ones(1, 2)))
    assert one(tables, op="sin").amp_dtype == "float16"
    assert one(tables, op="mul").module == "Body"
