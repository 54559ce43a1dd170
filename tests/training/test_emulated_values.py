"""The values that emulated operators give, on paper and against torch's own 16-bit kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from emulation_samples import BF16, HALF, both, h, region, x


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_fp32_operators_compute_in_fp32_and_are_not_merely_widened():
    # 65504^2 is infinite in FP16
    with region():
        assert torch.tensor([65504.0], dtype=HALF).pow(2).item() == 65504.0**2
        assert torch.full((4,), 65504.0, dtype=HALF).sum().item() == 4 * 65504.0


def test_softmax_is_more_exact_than_16_bits():
    with region():
        logits = h(8)
        assert torch.equal(F.softmax(logits, -1), F.softmax(logits.float(), -1))
        assert not torch.equal(F.softmax(logits, -1), F.softmax(logits.float(), -1).half().float())


@both
@pytest.mark.parametrize("log", [True, False])
def test_a_softmax_in_16_bits_sums_in_fp32_and_rounds_once_each_way(dtype, log):
    # F.cross_entropy asks for the type of its logits; a CPU's own kernel makes zeros of small gradients
    logits = (3 * torch.randn(256, 11)).to(dtype)
    logits[:, 0] += 8
    logits.requires_grad_()
    out = torch.randn(256, 11).to(dtype)
    function = torch.log_softmax if log else torch.softmax
    with region(dtype):
        result = function(logits, 1, dtype=dtype)
    exact = function(logits.detach().float(), 1).to(dtype)
    assert torch.equal(result, exact)
    (found,) = torch.autograd.grad(result, logits, out)
    wide, kept = out.double(), exact.double()
    share = kept.exp() if log else kept
    paper = wide - share * wide.sum(1, keepdim=True) if log else share * (wide - (wide * share).sum(1, keepdim=True))
    # FP32 sums in another order: by half a unit of the 16 bits at the most
    torch.testing.assert_close(found.double(), paper, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-6)


def test_a_cross_entropy_of_fp16_logits_keeps_the_gradient_of_a_sure_target():
    logits = torch.tensor([[7.0, 0.0, 0.0]], dtype=HALF, requires_grad=True)
    with region():
        F.cross_entropy(logits, torch.tensor([0])).backward()
    share = math.exp(-0.001822)  # log_softmax is -0.0018222, which FP16 has as -0.001822
    assert logits.grad[0, 0].item() == pytest.approx(share - 1, rel=2e-3)


# against torch's own 16-bit kernels


def ulps_apart(ours: torch.Tensor, theirs: torch.Tensor, terms: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference in units in the last place of the reference, FP32's own error of the sum apart.

    terms: sum of the magnitudes added up. FP32 sums of n terms differ by their order by up to about n * 2^-24 of it,
    which is more than a unit of a result that nearly cancelled.
    """
    mantissa = {HALF: 10, BF16: 7}[dtype]
    ours, theirs = ours.double(), theirs.double()
    smallest = -24 if dtype == HALF else -133
    exponent = torch.frexp(theirs.abs().clamp(min=2.0**-126)).exponent - 1
    unit = torch.ldexp(torch.ones_like(theirs), (exponent - mantissa).clamp(min=smallest))
    slack = terms.double().abs() * 2.0**-20
    return float((((ours - theirs).abs() - slack).clamp(min=0) / unit).max())


KERNELS: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(16, 64), (32, 64), (32,)]),
    "conv2d": (F.conv2d, [(2, 8, 10, 10), (16, 8, 3, 3), (16,)]),
    "conv1d": (F.conv1d, [(2, 8, 32), (16, 8, 5), (16,)]),
    "bmm": (torch.bmm, [(4, 16, 32), (4, 32, 8)]),
    "matmul": (torch.matmul, [(2, 16, 32), (32, 8)]),
}


def run_kernel(
    name: str, dtype: torch.dtype
) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(what, emulated, torch's own, exact in FP64, sum of magnitudes) of the output and of every gradient."""
    op, shapes = KERNELS[name]
    ours = [x(*shape).requires_grad_() for shape in shapes]
    native = [tensor.detach().to(dtype).requires_grad_() for tensor in ours]
    exact = [tensor.detach().double().requires_grad_() for tensor in native]
    sizes = [tensor.detach().double().abs().requires_grad_() for tensor in native]
    with region(dtype):
        emulated = op(*ours)
    outputs = [emulated, op(*native), op(*exact), op(*sizes)]
    upstream = torch.randn(emulated.shape).to(dtype)
    for output, gradient in zip(outputs, (upstream, upstream, upstream.double(), upstream.double().abs()), strict=True):
        output.backward(gradient)
    found = [("output", *(output.detach() for output in outputs))]
    for index, tensors in enumerate(zip(ours, native, exact, sizes, strict=True)):
        found.append((f"gradient {index}", *(tensor.grad for tensor in tensors)))
    return found


@both
@pytest.mark.parametrize("name", KERNELS)
def test_the_emulation_rounds_the_exact_result_once_forward_and_backward(name, dtype):
    for what, emulated, _, exact, size in run_kernel(name, dtype):
        assert ulps_apart(emulated, exact, size, dtype) <= 0.5, what


@both
@pytest.mark.parametrize("name", KERNELS)
def test_the_emulation_agrees_with_torchs_own_16_bit_kernels_within_an_ulp(name, dtype):
    for what, emulated, native, _, size in run_kernel(name, dtype):
        if what != "output" and name.startswith("conv") and dtype == HALF:
            continue  # torch's CPU kernels add up an FP16 convolution's gradients in FP16; the next test
        assert ulps_apart(emulated, native, size, dtype) <= 1, what


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
@pytest.mark.parametrize("index", [1, 2], ids=["input", "weight"])
def test_a_gradient_of_an_fp16_convolution_is_nearer_the_truth_than_torchs_cpu_kernel(name, index):
    _, emulated, native, exact, size = run_kernel(name, HALF)[index]
    assert ((emulated - exact).abs() <= size * 2.0**-11).all()
    assert ((native - exact).abs() <= size * 2.0**-9).all()
    assert (emulated - exact).abs().mean() < (native - exact).abs().mean()


def test_the_ulp_measure_can_fail():
    theirs = torch.tensor([1.0, 0.5])
    assert ulps_apart(theirs + 2.0**-9, theirs, torch.zeros(2), HALF) == 4.0


@both
def test_attention_agrees_with_torchs_own_16_bit_kernel(dtype):
    q, k, v = (x(2, 2, 8, 16) for _ in range(3))
    with region(dtype):
        emulated = F.scaled_dot_product_attention(q, k, v)
    native = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))
    exact = F.scaled_dot_product_attention(*(t.to(dtype).float() for t in (q, k, v)))
    unit = {HALF: 2.0**-10, BF16: 2.0**-7}[dtype]
    assert (emulated.float() - exact).abs().max() <= unit  # values are below 4: half an ulp is below one unit
    assert (native.float() - emulated.float()).abs().max() <= 4 * unit


def test_the_whole_tree_of_a_nested_argument_is_cast():
    # multi_dot takes a list of tensors
    tensors = [x(2, 3), x(3, 4), x(4, 2)]
    with region():
        product = torch.linalg.multi_dot(tensors)
    expected = tensors[0].half().float() @ tensors[1].half().float() @ tensors[2].half().float()
    assert pytree.tree_leaves(product)[0].dtype == HALF
    assert (product.float() - expected).abs().max() < 2**-6
