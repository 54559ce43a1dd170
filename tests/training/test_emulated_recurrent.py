"""The emulated policy under BF16: recurrent layers compute in FP16, as torch has cuDNN do; their cells follow it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from mpdiag.training.emulation import cuda_policy

BF16, HALF = torch.bfloat16, torch.float16


@contextmanager
def region(dtype: torch.dtype) -> Iterator[None]:
    with cuda_policy() as forget, torch.autocast("cpu", dtype=dtype):
        yield
    forget()


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("given", [torch.float32, BF16], ids=str)
def test_a_recurrent_layer_is_fp16_under_bf16_to_the_bit(make, given):
    torch.manual_seed(0)
    layer, x = make(3, 4), torch.randn(5, 2, 3).to(given)
    grads = []
    for dtype in (HALF, BF16):
        layer.zero_grad()
        with region(dtype):
            output, _ = layer(x)
        assert output.dtype == HALF
        output.float().pow(2).sum().backward()
        grads.append([weight.grad.clone() for weight in layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_a_cell_follows_the_type_of_the_region(make):
    with region(BF16):
        found = make(3, 4)(torch.randn(2, 3))
    assert (found[0] if isinstance(found, tuple) else found).dtype == BF16


def test_what_comes_after_the_layer_is_bf16_again():
    layer, head = nn.LSTM(3, 4), nn.Linear(4, 2)
    with region(BF16):
        assert head(layer(torch.randn(5, 2, 3))[0]).dtype == BF16


def test_gradients_below_fp16s_range_are_lost_in_a_recurrent_layer_under_bf16():
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4)
    with region(BF16):
        output, _ = layer(torch.randn(5, 2, 3))
    (output.float().sum() * 2.0**-40).backward()  # far below 2^-25, and well within BF16's range
    assert all(not weight.grad.any() for weight in layer.parameters())
