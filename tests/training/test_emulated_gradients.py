"""Gradients round where a GPU rounds them, and a weight is cast once a region."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emulation_samples import BF16, HALF, region, x
from mpdiag.training.emulation import cuda_policy


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# gradients round where a GPU rounds


def linear_gradient(weight: float, inputs: list[float], upstream: list[float], dtype: torch.dtype = HALF) -> float:
    """The weight gradient of a 1 -> 1 Linear, sum(inputs * upstream), as the emulation gives it."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(weight)
    with region(dtype):
        output = layer(torch.tensor(inputs)[:, None])
    output.backward(torch.tensor(upstream, dtype=dtype)[:, None])
    return layer.weight.grad.item()


@pytest.mark.parametrize(
    ("inputs", "upstream", "expected"),
    [
        ([2.0], [3.0], 6.0),
        ([2048.0, 1.0], [1.0, 1.0], 2048.0),  # 2049 is a tie to the even 2048
        ([2048.0, 3.0], [1.0, 1.0], 2052.0),  # 2051 is a tie to the even 2052
        ([256.0], [255.875], 65504.0),
        ([256.0], [256.0], float("inf")),  # 65536
        ([32768.0, 32752.0], [1.0, 1.0], float("inf")),  # 65520, the first to overflow
        ([32768.0, 32736.0], [1.0, 1.0], 65504.0),
        ([2.0**-13], [2.0**-13], 0.0),  # 2^-26
        ([2.0**-13], [2.0**-12], 0.0),  # 2^-25, the tie
        ([2.0**-13], [1.5 * 2.0**-12], 2.0**-24),
        ([2.0**-12], [2.0**-12], 2.0**-24),
        ([60000.0, -60000.0, 1.0], [4.0, 4.0, 1.0], 1.0),  # sums run in FP32: no overflow on the way
    ],
)
def test_the_weight_gradient_of_a_linear_is_the_fp32_sum_rounded_once_to_fp16(inputs, upstream, expected):
    assert linear_gradient(0.5, inputs, upstream) == expected


def test_a_bf16_weight_gradient_neither_overflows_nor_underflows_there():
    assert linear_gradient(0.5, [256.0], [256.0], BF16) == 65536.0
    assert linear_gradient(0.5, [2.0**-13], [2.0**-13], BF16) == 2.0**-26
    assert linear_gradient(0.5, [256.0, 1.0], [1.0, 1.0], BF16) == 256.0  # 257 is a tie to the even 256


def test_the_weight_gradient_of_a_random_linear_is_the_fp32_product_rounded():
    layer, inputs, upstream = nn.Linear(16, 8), x(32, 16), x(32, 8).half()
    with region():
        output = layer(inputs)
    output.backward(upstream)
    product = upstream.float().T @ inputs.half().float()
    assert torch.equal(layer.weight.grad, product.half().float())
    assert torch.equal(layer.bias.grad, upstream.float().sum(0).half().float())
    assert not torch.equal(layer.weight.grad, product)


def test_an_activation_gradient_is_rounded_on_its_way_through_a_linear():
    inputs = torch.ones(1, 1, requires_grad=True)
    with region():
        output = F.linear(inputs, torch.tensor([[2.0**-20]]))
    output.backward(torch.tensor([[2.0**-6]], dtype=HALF))
    assert inputs.grad.item() == 0.0  # 2^-26


def test_an_activation_gradient_that_overflows_becomes_infinite():
    inputs = torch.ones(1, 1, requires_grad=True)
    with region():
        output = F.linear(inputs, torch.tensor([[512.0]]))
    output.backward(torch.tensor([[128.0]], dtype=HALF))
    assert inputs.grad.item() == float("inf")


def test_an_fp32_loss_gradient_is_rounded_where_it_enters_16_bits():
    layer = nn.Linear(1, 1, bias=False)
    with region():
        loss = layer(torch.ones(1, 1)).float().sum() * 2.0**-26
    loss.backward()
    assert layer.weight.grad.item() == 0.0


def test_a_forward_that_overflows_becomes_infinite():
    with region():
        assert F.linear(torch.tensor([[256.0]]), torch.tensor([[256.0]])).item() == float("inf")
        assert F.linear(torch.tensor([[256.0, -256.0]]), torch.tensor([[256.0, 256.0]])).item() == 0.0


# the weight cache


def shared_weight_gradient(cached: bool) -> float:
    """The gradient of a weight used twice: 2048 from one use and 1 from the other."""
    weight = nn.Parameter(torch.ones(1, 1))
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(cached)
    try:
        with cuda_policy(), torch.autocast("cpu", dtype=HALF, cache_enabled=cached):
            total = F.linear(torch.tensor([[2048.0]]), weight).float() + F.linear(torch.ones(1, 1), weight).float()
        total.backward()
    finally:
        torch.set_autocast_cache_enabled(before)
    return weight.grad.item()


def test_two_uses_of_a_weight_add_their_gradients_in_fp16():
    assert shared_weight_gradient(cached=True) == 2048.0  # 2049 in FP32


def test_without_the_cache_two_uses_add_their_gradients_in_fp32():
    assert shared_weight_gradient(cached=False) == 2049.0


def casts_of(weight: torch.Tensor, body: Callable[[], Any]) -> int:
    """How many 16-bit copies of a weight a body makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0] is weight:
                self.count += 1
            return func(*args, **(kwargs or {}))

    with Casts() as casts:
        body()
    return casts.count


def test_a_weight_is_cast_once_a_region():
    weight = nn.Parameter(x(3, 3))

    def body() -> None:
        with region():
            F.linear(x(2, 3), weight)
            F.linear(x(2, 3), weight)

    assert casts_of(weight, body) == 1


def test_a_weight_is_cast_anew_in_the_next_region():
    weight = nn.Parameter(x(3, 3))

    def body() -> None:
        with cuda_policy() as forget:
            for _ in range(3):
                with torch.autocast("cpu", dtype=HALF):
                    F.linear(x(2, 3), weight)
                forget()

    assert casts_of(weight, body) == 3


def test_a_weight_that_was_stepped_between_regions_is_seen_with_its_new_value():
    weight = nn.Parameter(torch.ones(1, 1))
    with cuda_policy() as forget:
        for expected in (1.0, 2.0):
            with torch.autocast("cpu", dtype=HALF):
                assert F.linear(torch.ones(1, 1), weight).item() == expected
            forget()
            weight.data += 1


def test_a_copy_made_without_grad_does_not_serve_a_training_forward():
    weight = nn.Parameter(torch.ones(1, 1))
    with region():
        with torch.no_grad():
            F.linear(torch.ones(1, 1), weight)
        output = F.linear(torch.full((1, 1), 3.0), weight)
    output.backward()
    assert weight.grad.item() == 3.0


def test_no_weight_is_kept_alive_after_the_block():
    weight = nn.Parameter(x(3, 3))
    with region():
        F.linear(x(2, 3), weight)
    alive = weakref.ref(weight)
    del weight
    assert alive() is None
