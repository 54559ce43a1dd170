"""Counting tensors of any memory order, size and type: each element is counted once and none is changed."""

from __future__ import annotations

import math

import pytest
import torch

from counting_samples import CPU, random_bits, row_of
from mpdiag.capture.counting import CountTable
from mpdiag.capture.layout import flat, layout_of, real_part
from mpdiag.histogram import ExponentHistogram

# any tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(48.0)[::2],
        torch.arange(24.0).reshape(4, 6)[:, 1:4],
        torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(3.0).expand(4, 3),
        torch.tensor(3.0).expand(7),
        torch.arange(12.0).reshape(3, 4).T[1:],
        torch.arange(10.0).unfold(0, 3, 1),
        torch.arange(6.0).flip(0),
    ],
    ids=[
        "transposed",
        "strided",
        "sliced",
        "channels_last",
        "expanded",
        "expanded-0-dim",
        "both",
        "overlapping",
        "flip",
    ],
)
def test_any_memory_order_counts_each_element_once(tensor):
    assert row_of(tensor).histogram == ExponentHistogram.of(tensor.flatten().tolist())


def test_a_dense_tensor_in_another_order_is_read_without_a_copy():
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = flat(tensor)
    assert values.shape == (120,)
    assert values.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "sizes", "strides", "times"),
    [
        (torch.ones(2, 3, 4), (24,), (1,), 1),
        (torch.ones(2, 3, 4).transpose(0, 2), (24,), (1,), 1),
        (torch.ones(()), (1,), (1,), 1),
        (torch.ones(()).expand(6, 2), (1,), (1,), 12),
        (torch.ones(3).expand(4, 3), (3,), (1,), 4),
        (torch.ones(4, 6)[:, 1:4], (4, 3), (6, 1), 1),
        (torch.ones(4, 5, 6)[:, :, ::2], (60,), (2,), 1),
        (torch.ones(4, 1, 6)[:, :, :2].expand(4, 9, 2), (4, 2), (6, 1), 9),
        (torch.ones(10).unfold(0, 3, 1), (8, 3), (1, 1), 1),
        (torch.ones(0, 3), (0,), (1,), 1),
    ],
)
def test_a_layout_has_as_few_dimensions_as_can_be(tensor, sizes, strides, times):
    layout = layout_of(tensor)
    assert (layout.sizes, layout.strides, layout.times) == (sizes, strides, times)
    assert layout.count * layout.times == tensor.numel()


def test_a_view_into_the_middle_of_a_storage_reads_its_own_elements():
    tensor = torch.arange(60.0).reshape(5, 12)[2:4].reshape(2, 3, 4).permute(1, 2, 0)
    assert sorted(flat(tensor).tolist()) == [float(v) for v in range(24, 48)]


def test_a_0_dim_tensor_is_one_element():
    row = row_of(torch.tensor(-6.0))
    assert row.histogram == ExponentHistogram(2, (1,))
    assert (row.abs_max, row.abs_min) == (6.0, 6.0)


def test_an_empty_tensor_counts_nothing():
    table = CountTable(CPU)
    table.add(0, torch.empty(0, 4))
    assert table.take() == {}


@pytest.mark.parametrize("conjugate", [False, True])
def test_a_complex_tensor_gives_both_parts(conjugate):
    tensor = torch.tensor([[1 + 2j, 0 - 4j], [complex(math.inf, math.nan), 0.5 + 0j]])
    tensor = tensor.conj() if conjugate else tensor
    histogram = row_of(tensor).histogram
    assert histogram == ExponentHistogram.of([1, 2, 0, 4, math.inf, math.nan, 0.5, 0])


def test_the_imaginary_part_of_a_conjugate_is_read():
    # .imag of a conjugate view is a real tensor with the negative bit set
    tensor = torch.tensor([1 + 2j, 3 + 8j]).conj().imag
    assert row_of(tensor).histogram.bins == {1: 1, 3: 1}


def test_a_sparse_tensor_gives_its_stored_values_coalesced():
    indices = torch.tensor([[0, 2, 0]])
    sparse = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 8.0, 1.0]), (5,), check_invariants=True)
    assert row_of(sparse).histogram == ExponentHistogram.of([2.0, 8.0])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_compressed_sparse_tensor_gives_its_stored_values():
    sparse = torch.tensor([[0.0, 3.0], [0.5, 0.0]]).to_sparse_csr()
    assert row_of(sparse).histogram == ExponentHistogram.of([3.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.uint8])
def test_other_types_have_no_values(dtype):
    assert real_part(torch.ones(3, dtype=dtype)) is None


def test_a_tensor_that_requires_grad_is_read_detached():
    values = real_part(torch.ones(3, requires_grad=True) * 2)
    assert not values.requires_grad


def test_float64_is_rounded_to_fp32_first():
    tensor = torch.tensor([1e300, 1e-300, 1.0, 1 - 2.0**-40], dtype=torch.float64)
    assert row_of(tensor).histogram == ExponentHistogram(0, (2,), zeros=1, infs=1)


def test_counting_does_not_change_the_tensor():
    bits = random_bits(1000, seed=5)
    before = bits.clone()
    row_of(bits.view(torch.float32))
    assert torch.equal(bits, before)
