"""The user's own regions and functions within the emulation, everything as before afterwards, and a pure policy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import autocast_mode

from emulation_samples import BF16, FP32, HALF, h, region, x
from mpdiag.training.cuda_regions import cuda_regions_on_cpu
from mpdiag.training.emulation import cuda_policy


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


# the user's own islands


@pytest.mark.parametrize(
    "island",
    [
        lambda: torch.autocast("cuda", enabled=False),
        lambda: torch.autocast(device_type="cuda", enabled=False),
        lambda: torch.amp.autocast("cuda", enabled=False),
        lambda: torch.autocast("cpu", enabled=False),
    ],
    ids=["autocast", "keyword", "amp", "cpu"],
)
def test_a_disabled_island_computes_in_fp32(island):
    with region():
        with island():
            inside = x(2, 3) @ x(3, 4)
        outside = x(2, 3) @ x(3, 4)
    assert (inside.dtype, outside.dtype) == (FP32, HALF)


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast")
def test_an_island_of_the_older_spelling_computes_in_fp32():
    with region(), torch.cuda.amp.autocast(enabled=False):
        assert (x(2, 3) @ x(3, 4)).dtype == FP32


def test_an_island_as_a_decorator_computes_in_fp32():
    with region():

        @torch.autocast("cuda", enabled=False)
        def forward():
            return x(2, 3) @ x(3, 4)

        assert forward().dtype == FP32


def test_regions_on_cuda_are_the_cpus_only_within_a_cpu_run():
    init = torch.autocast.__init__
    with cuda_regions_on_cpu(), region():
        assert (torch.autocast("cuda").device, torch.autocast("cuda", HALF)._enabled) == ("cpu", True)
        assert torch.autocast("cpu", BF16, False)._enabled is False
    assert torch.autocast.__init__ is init


def test_an_island_in_another_type_computes_in_that_type():
    with region(), torch.autocast("cuda", dtype=BF16):
        assert (x(2, 3) @ x(3, 4)).dtype == BF16


# afterwards


class Product(torch.autograd.Function):
    """A hand-written product as torch's documentation has users decorate it for CUDA: in FP32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, a: torch.Tensor, named: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        b = named["b"][0]
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        _, b = ctx.saved_tensors
        return gradient @ b.t(), None


def test_a_custom_function_that_casts_its_inputs_on_cuda_casts_them_here():
    a, b = h(2, 3).half().requires_grad_(), x(3, 4)
    with region():
        product = Product.apply(a, {"b": [b]})
        product.sum().backward()
    assert product.dtype == FP32
    assert torch.equal(product, a.detach().float() @ b)
    assert a.grad is not None
    assert torch.equal(a.grad, (torch.ones(2, 4) @ b.t()).half())


def test_a_custom_function_keeps_double_inputs_as_cuda_does():
    with region():
        assert Product.apply(x(2, 3).double(), {"b": [x(3, 4).double()]}).dtype == torch.float64


def test_a_custom_function_casts_nothing_in_a_pure_policy():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert Product.apply(x(2, 3).half(), {"b": [x(3, 4).half()]}).dtype == HALF


def test_after_the_block_a_custom_function_casts_nothing_on_a_cpu():
    theirs = autocast_mode._cast
    with pytest.raises(RuntimeError, match="unsafe"), region():
        F.binary_cross_entropy(Product.apply(h(2, 3), {"b": [x(3, 4)]}), torch.rand(2, 4))
    assert autocast_mode._cast is theirs
    assert autocast_mode._cast(x(2).half(), "cuda", FP32).dtype == HALF


def registrations() -> set[str]:
    return set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCPU"))


def cpu_behaviour() -> list[str]:
    """The types that plain CPU autocast gives: it differs from CUDA's in softmax, layer_norm, sum and BCE."""
    with torch.autocast("cpu", dtype=BF16):
        product = x(3, 3) @ x(3, 3)
        results = [
            product,
            product.softmax(-1),
            product.sum(),
            product.exp(),
            F.layer_norm(product, (3,)),
            F.avg_pool3d(product.reshape(1, 1, 1, 3, 3), (1, 3, 3)),
            torch.cat([product, x(3, 3)]),
            F.binary_cross_entropy(torch.rand(3), torch.rand(3)),
            nn.LSTM(3, 4)(x(5, 2, 3))[0],
            torch.norm(product),
            torch.linalg.svdvals(x(3, 3)),
        ]
    return [str(result.dtype) for result in results]


def test_within_the_block_the_cpu_behaves_otherwise():
    # so that the tests below could fail
    before = registrations()
    with cuda_policy():
        assert registrations() != before


def test_after_the_block_the_registrations_are_as_before():
    before = registrations()
    with region():
        pass
    assert registrations() == before


def test_after_the_block_plain_cpu_autocast_is_as_before():
    before = cpu_behaviour()
    with region():
        F.linear(x(2, 3), x(4, 3)).softmax(-1)
    assert cpu_behaviour() == before
    assert "torch.bfloat16" in before[1]  # softmax, FP32 under CUDA's policy


def test_after_the_block_autocasts_constructor_is_torchs_own():
    original = torch.autocast.__init__
    with cuda_policy():
        assert torch.autocast.__init__ is not original
    assert torch.autocast.__init__ is original


def test_an_exception_inside_leaves_everything_as_before():
    before, behaviour, original = registrations(), cpu_behaviour(), torch.autocast.__init__
    with pytest.raises(RuntimeError, match="unsafe"), region():
        F.binary_cross_entropy(torch.rand(3), torch.rand(3))
    assert registrations() == before
    assert cpu_behaviour() == behaviour
    assert torch.autocast.__init__ is original
    assert not torch.is_autocast_enabled("cpu")


def test_the_block_may_be_entered_again_and_again():
    before = registrations()
    for _ in range(3):
        with region():
            assert x(2, 2).matmul(x(2, 2)).softmax(-1).dtype == FP32
    assert registrations() == before


def test_outside_a_region_the_block_changes_nothing():
    a, b = x(3, 3), x(3, 3)
    expected = a @ b
    with cuda_policy():
        assert torch.equal(a @ b, expected)
        assert F.binary_cross_entropy(torch.full((3,), 0.5), torch.ones(3)).item() == pytest.approx(0.6931472)


def test_backward_after_the_block_gives_the_same_gradients_as_within_it():
    gradients = []
    for inside in (True, False):
        torch.manual_seed(1)
        layer = nn.Linear(3, 3)
        with cuda_policy() as forget:
            with torch.autocast("cpu", dtype=HALF):
                loss = layer(x(2, 3)).softmax(-1).pow(2).sum()
            forget()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


# a pure 16-bit model


def test_a_pure_policy_casts_nothing_to_fp32():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        product = x(3, 3).half() @ x(3, 3).half()
        assert product.dtype == HALF
        assert product.softmax(-1).dtype == HALF
        assert product.sum().dtype == HALF
        assert F.layer_norm(product, (3,)).dtype == HALF


def test_a_pure_policy_leaves_fp32_operands_alone():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert (x(3, 3) @ x(3, 3)).dtype == FP32


def test_a_pure_policy_accumulates_products_in_fp32():
    ones = torch.ones(1, 4096, dtype=HALF)
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert (ones @ ones.T).item() == 4096.0  # adding ones one by one in FP16 stalls at 2048
