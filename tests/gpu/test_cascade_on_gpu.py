"""What the FP16 kernels of a GPU round inside is what the cascade rounds, element by element; and whole jobs hold."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mpdiag.capture.autocast_types import observe
from mpdiag.device.precision_settings import fp32_products
from mpdiag.diagnosis import TensorKind
from mpdiag.target import load_job
from mpdiag.verify.cascade.fused_attention import ROUNDED, attention, kernel_rounding
from mpdiag.verify.cascade.recurrent import unrolled
from mpdiag.verify.prediction import compare_with_fp16

pytestmark = pytest.mark.gpu

TARGETS = Path(__file__).resolve().parents[1] / "targets"
MISSED = 0.01
"""Share of elements that may wrongly be foretold to be zero or not: right rules missed 0.0008 at most, others 0.09."""


@pytest.fixture(autouse=True)
def _ieee():
    with fp32_products("ieee"):
        yield


def zero(told):
    return told.abs() <= 2.0**-25


@pytest.mark.parametrize("power", [12, 16, 19])
@pytest.mark.parametrize("backend", ["MATH", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION"])
def test_attention_loses_what_its_kernel_loses(backend, power, gpu):
    torch.manual_seed(0)
    q, k, v, do = (torch.randn(8, 4, 128, 64, device=gpu).half() * 0.5 for _ in range(4))
    do = (do.float() * 2.0**-power).half()
    seen = [t.clone().requires_grad_() for t in (q, k, v)]
    told = [t.float().requires_grad_() for t in (q, k, v)]
    with sdpa_kernel(getattr(SDPBackend, backend)):
        F.scaled_dot_product_attention(*seen).backward(do)
        rounded = kernel_rounding(*told)
    assert rounded == ROUNDED[getattr(SDPBackend, backend).value]
    attention(*told, rounded=rounded).backward(do.float())
    for mine, its in zip(told, seen, strict=True):
        assert (zero(mine.grad) != (its.grad == 0)).float().mean() <= MISSED


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_loses_as_much_as_cudnn_loses(kind, gpu):
    torch.manual_seed(0)
    net = kind(128, 256, 2).to(gpu)
    name = "rnn_tanh" if kind is nn.RNN else kind.__name__.lower()
    data, state = torch.randn(32, 64, 128, device=gpu), torch.zeros(2, 64, 256, device=gpu)
    hx = (state, state) if kind is nn.LSTM else state
    for power in (16, 18, 20):
        do = (torch.randn(32, 64, 256, device=gpu) * 2.0**-power).half()
        with torch.autocast("cuda", dtype=torch.float16):
            seen = torch.autograd.grad(net(data)[0], list(net.parameters()), do)
        output = unrolled(name, (data, hx, net._flat_weights, True, 2, 0.0, True, False, False), 0)[0]
        told = torch.autograd.grad(output, list(net.parameters()), do.float())
        for mine, its in zip(told, seen, strict=True):
            if its.numel() > 10_000:
                assert abs(zero(mine).float().mean() - (its == 0).float().mean()) <= 0.01


@pytest.mark.parametrize(
    "name", ["resnet", "lstm", "encoder", "attention", "packed_gru", "unet", "vae", "convnext", "gan"]
)
def test_real_kinds_of_model_do_what_the_cascade_foretells(name, gpu):
    job = load_job(str(TARGETS / f"{name}.py"))
    start = job.start(0, 20)
    types = observe(job, start, gpu)
    keys = {(TensorKind.ACTIVATION_GRADIENT, n): dtype for n, dtype in types.outputs.items()}
    keys |= {(TensorKind.WEIGHT_GRADIENT, n): "float16" for n in types.cast}
    found = compare_with_fp16(job, start, gpu, keys, (0, 10), 20)
    assert found.cascade_reason is None
    assert found.median_error_points <= 0.1
    assert found.p95_error_points <= 1.0
