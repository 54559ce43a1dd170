"""What the second pass sees of norms: their squares and their sums, with the types they are held in."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mpdiag.operations import OpRole
from op_samples import Body, bins, job, line_of, of, one, rms, rms_by_pow, seen, select

# norms


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
