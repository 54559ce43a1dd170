"""What the second pass sees of attention: logits written by hand, and those inside torch's own kernel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.capture.attention import logits_of, rows_to_read
from mpdiag.operations import OpRole
from op_samples import ROWS, attention, bins, job, line_of, of, one, seen, select

# attention written by hand


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
