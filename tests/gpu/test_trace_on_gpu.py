"""What only a GPU can tell: which kernels run, what a trace of them looks like, and what padding gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.costs.kernels import SCALERS_READ, WAITING, ArmKernels, LayerUse
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure.ceiling import measure_ceilings
from mpdiag.measure.flops import flops_of
from mpdiag.measure.padding import time_products
from mpdiag.measure.products import Product
from mpdiag.measure.profiled import kernel_ms
from mpdiag.measure.steady import steady_run
from mpdiag.measure.trace import trace_arm
from mpdiag.target.job import Job
from mpdiag.training.precision import FP32_IEEE, Precision

pytestmark = pytest.mark.gpu

FP16 = Precision("FP16", autocast=torch.float16, log2_scale=10)
BF16 = Precision("BF16", autocast=torch.bfloat16)
TF32 = Precision("TF32", tf32=True)


def job(build: Callable[[], nn.Module], make: Callable[[], torch.Tensor]) -> Job:
    def losses(model, batch):
        out = model(batch)
        yield "loss", (out[0] if isinstance(out, tuple) else out).float().square().mean()

    return Job("tiny", "tiny.py", build, lambda: [make() for _ in range(2)], losses,
               lambda model: {"loss": torch.optim.AdamW(model.parameters())})  # fmt: skip


def linear(width: int = 2048) -> Job:
    build = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    return job(build, lambda: torch.randn(2048, width))


def arm(each: Job, precision: Precision, gpu: torch.device, **more: Any) -> ArmKernels:
    with steady_run(each, each.start(0, 2), precision, gpu, 3) as run:
        found = trace_arm(run, **more)
    assert found.time is not None, found.reason
    return found


def products(found: ArmKernels) -> list[LayerUse]:
    """The layers that multiply matrices; others have rows too where they take a hundredth of the time."""
    return [layer for layer in found.layers if layer.module_type in ("Linear", "Conv2d")]


@pytest.mark.parametrize(("precision", "dtype"), [(FP16, "float16"), (BF16, "bfloat16")])
def test_a_16_bit_linear_model_runs_on_tensor_cores_in_its_type(gpu, precision, dtype):
    found = arm(linear(), precision, gpu)
    assert {layer.name: (layer.tensor_cores, layer.dtype) for layer in products(found)} == {
        "0": ("yes", dtype),
        "2": ("yes", dtype),
    }
    assert found.time.by_class["yes"] > 0.1  # the optimizer, in FP32, takes most of so small a step
    assert found.time.by_class["unknown"] < 0.01
    assert max(found.time.tensor_by_dtype, key=found.time.tensor_by_dtype.get) == dtype
    assert all(layer.forward_ms > 0 and layer.backward_ms > 0 for layer in products(found))


def test_ieee_fp32_runs_on_no_tensor_core_and_tf32_does(gpu):
    plain, loose = arm(linear(), FP32_IEEE, gpu), arm(linear(), TF32, gpu)
    assert plain.time.by_class["yes"] == 0
    assert {layer.tensor_cores for layer in products(plain)} == {"no"}
    assert {layer.tensor_cores for layer in products(loose)} == {"yes"}
    assert {layer.dtype for layer in products(loose)} == {"float32"}


def test_nearly_all_kernel_time_has_an_owner_and_an_operator(gpu):
    found = arm(linear(), FP16, gpu)
    owned = sum(layer.time_share for layer in found.layers)
    assert owned + found.time.optimizer_share > 0.7  # the rest: loss, scaling, accumulation
    assert all(kernel.op is not None for kernel in found.time.top)


def test_the_rate_of_fp16_layers_is_beyond_what_cuda_cores_reach(gpu):
    each = linear(4096)
    flops = flops_of(each, each.start(0, 2), gpu)
    assert flops.forward == 2 * 2 * 2048 * 4096 * 4096
    ceilings = Ceilings({"FP32": 60.0, "FP16": 700.0}, None, 8192, 1.0)
    found = arm(each, FP16, gpu, flops=flops, ceilings=ceilings)
    assert max(layer.tflops_per_s for layer in products(found)) > 60
    assert all(0 < layer.of_ceiling < 1.5 for layer in products(found))
    bursts = replace(ceilings, burst_tflops={"FP16": 900.0})
    assert all(layer.of_burst for layer in products(arm(each, FP16, gpu, flops=flops, ceilings=bursts)))


def test_layers_of_a_large_product_stay_near_or_below_the_burst_ceiling(gpu):
    ceilings, _ = measure_ceilings(gpu, names=("FP16 matmul",))
    assert ceilings.burst_tflops["FP16"] >= ceilings.tflops["FP16"]
    each = job(lambda: nn.Linear(8192, 8192, bias=False), lambda: torch.randn(8192, 8192))
    flops = flops_of(each, each.start(0, 2), gpu)
    found = arm(each, FP16, gpu, flops=flops, ceilings=ceilings)
    (layer,) = products(found)
    assert layer.of_burst
    assert 0.5 < layer.of_ceiling < 1.1  # the ceiling's own shape: what is above is the clock's and the shape's share


class Reading(nn.Module):
    """Two Linears; with `read`, a number of the first one's output is read in every forward."""

    def __init__(self, read: bool) -> None:
        super().__init__()
        self.first, self.second, self.read = nn.Linear(2048, 2048), nn.Linear(2048, 2048), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        if self.read:
            h.sum().item()
        return self.second(h)


def test_a_number_read_in_every_forward_is_named_as_a_wait_of_the_host(gpu):
    own = arm(job(lambda: Reading(True), lambda: torch.randn(16384, 2048)), BF16, gpu)  # long enough for a finding
    (wait,) = own.time.waits
    assert (wait.op, wait.module, wait.calls) == ("aten::item", "", 1.0)
    assert wait.call in ("cudaStreamSynchronize", "cudaMemcpyAsync")
    assert wait.time_ms > 0
    (told,) = [f for f in own.findings if f.code == "host-waits"]
    assert "in aten::item of the model" in told.text
    plain = arm(job(lambda: Reading(False), lambda: torch.randn(2048, 2048)), BF16, gpu)
    assert plain.time.waits == ()


def test_a_gradscalers_read_is_known_and_a_fused_optimizer_has_none(gpu):
    each = job(lambda: Reading(False), lambda: torch.randn(2048, 2048))
    (wait,) = arm(each, FP16, gpu).time.waits
    assert (wait.op, wait.calls) == (SCALERS_READ, 1.0)
    fused = replace(each, build_optimizers=lambda model: {"loss": torch.optim.AdamW(model.parameters(), fused=True)})
    assert arm(fused, FP16, gpu).time.waits == ()


def test_a_synchronization_in_the_step_is_in_no_operator(gpu):
    class Waiting(Reading):
        def forward(self, x):
            h = super().forward(x)
            torch.cuda.synchronize()
            return h

    found = arm(job(lambda: Waiting(False), lambda: torch.randn(2048, 2048)), BF16, gpu)
    assert [(w.call, w.op, w.calls) for w in found.time.waits] == [("cudaDeviceSynchronize", None, 1.0)]


def test_a_step_that_waits_for_the_host_is_told_in_ms(gpu):
    class Slow(Reading):
        def forward(self, x):
            time.sleep(0.02)
            return super().forward(x)

    found = arm(job(lambda: Slow(False), lambda: torch.randn(2048, 2048)), BF16, gpu)
    first = found.findings[0]
    assert first.code in WAITING
    assert first.text.startswith("the GPU waits ")


def test_batches_of_several_lengths_are_all_counted_and_all_traced(gpu):
    each = replace(linear(1024), train_batches=lambda: [torch.randn(rows, 1024) for rows in (256, 4096, 512, 1024)])
    start = each.start(0, 4)
    flops = flops_of(each, start, gpu)
    assert len(set(flops.by_batch)) == 4
    with steady_run(each, start, FP16, gpu, 3) as run:
        found = trace_arm(run, step_ms=1.0, flops=flops, ceilings=Ceilings({"FP16": 700.0}, None, 8192, 1.0))
    assert found.time.steps == 4
    assert found.tflops_per_s is None
    assert "differ" in found.throughput_reason
    assert all(layer.tflops_per_s for layer in products(found))


def test_a_body_that_fails_while_it_is_timed_leaves_the_others_their_time(gpu):
    a = torch.randn(512, 512, device=gpu)

    def failing():
        calls = iter(range(100))

        def body():
            if next(calls) == 3:
                raise RuntimeError("in the middle")
            return a @ a

        return body

    times = kernel_ms([lambda: lambda: a @ a, failing, lambda: lambda: a @ a], 5)
    assert times[1] is None
    assert times[0] == pytest.approx(times[2], rel=0.5)


def test_on_a_gpu_said_to_be_shared_an_arm_is_marked_and_has_no_rate(gpu):
    each = linear(2043)
    found = arm(each, FP16, gpu, flops=flops_of(each, each.start(0, 2), gpu), step_ms=1.0, shared="others work here")
    assert (found.shared, found.tflops_per_s, found.throughput_reason) == ("others work here", None, "others work here")
    assert {layer.tflops_per_s for layer in found.layers} == {None}
    assert not [w for layer in found.layers for w in layer.why_not if w.gain_from == "measured"]


def test_odd_dimensions_are_told_with_a_measured_gain(gpu):
    found = arm(linear(2043), FP16, gpu)
    reasons = [why for layer in found.layers for why in layer.why_not if why.code == "odd-dimensions"]
    assert reasons
    assert all(why.gain_from == "measured" and why.gain_ms > 0 for why in reasons)


def test_an_odd_product_is_slower_alone_than_padded(gpu):
    odd = Product(1, 2048, 1021, 1023, "float16")
    times = time_products([odd, odd.padded], gpu)
    assert times[odd] > 1.2 * times[odd.padded]


def test_timing_leaves_out_what_does_not_fit(gpu):
    assert time_products([Product(1, 10**6, 10**6, 10**6, "float16")], gpu) == {}


def convolution() -> Job:
    build = lambda: nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, padding=1))
    return job(build, lambda: torch.randn(32, 64, 56, 56))


def test_nchw_convolutions_show_their_transposes_and_channels_last_has_none(gpu):
    as_is = arm(convolution(), FP16, gpu)
    last = arm(convolution(), Precision("last", torch.float16, log2_scale=10, channels_last=True), gpu)
    assert as_is.time.transpose_share > 0.02
    assert last.time.transpose_share < as_is.time.transpose_share / 2
    assert {layer.tensor_cores for layer in as_is.layers if layer.module_type == "Conv2d"} == {"yes"}
    assert "nchw-transposes" in {f.code for f in as_is.findings}


def test_a_product_kept_in_fp32_below_autocast_is_named(gpu):
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.fast, self.kept = nn.Linear(1024, 1024), nn.Linear(1024, 1024)

        def forward(self, x):
            h = self.fast(x)
            with torch.autocast("cuda", enabled=False):
                return self.kept(h.float())

    found = arm(job(Kept, lambda: torch.randn(2048, 1024)), FP16, gpu)
    (why,) = [w for layer in found.layers if layer.name == "kept" for w in layer.why_not if w.code == "forced-fp32"]
    assert why.gain_from == "measured"
    assert why.gain_ms > 0


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_owns_its_kernels_and_its_flops(gpu, kind):
    each = job(lambda: kind(256, 256, 2, batch_first=True), lambda: torch.randn(32, 64, 256))
    flops = flops_of(each, each.start(0, 2), gpu)
    gates = 4 if kind is nn.LSTM else 3
    assert flops.forward == 2 * 32 * 64 * gates * 256 * 512 * 2
    assert flops.backward == 2 * flops.forward
    found = arm(each, FP16, gpu, flops=flops)
    (layer,) = [each for each in found.layers if each.name == ""]
    assert layer.tflops_per_s is not None
    assert layer.backward_ms > 0


def test_attention_is_the_work_of_the_module_that_calls_it(gpu):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(512, 1536)

        def forward(self, x):
            q, k, v = (p.unflatten(2, (8, 64)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
            return nn.functional.scaled_dot_product_attention(q, k, v)

    each = job(Attention, lambda: torch.randn(16, 512, 512))
    flops = flops_of(each, each.start(0, 2), gpu)
    found = arm(each, FP16, gpu, flops=flops)
    layers = {layer.name: layer for layer in found.layers}
    assert layers[""].tensor_cores == "yes"
    assert layers["qkv"].tensor_cores == "yes"
    assert layers[""].flops == pytest.approx(7 * 2 * 16 * 8 * 512 * 512 * 64, rel=0.5)


def test_a_compiled_arm_has_times_and_says_why_it_has_no_layers(gpu):
    found = arm(linear(), Precision("compiled", torch.float16, log2_scale=10, compiled=True), gpu)
    assert found.layers is None
    assert "torch.compile" in found.layers_reason
    assert found.time.by_class["yes"] > 0.1  # the optimizer, in FP32, takes most of so small a step


def test_a_recurrent_layer_of_a_bf16_arm_is_told_to_run_in_fp16(gpu):
    # torch's autocast casts what goes to cuDNN's recurrent layers to FP16, whichever type the region asks for
    each = job(lambda: nn.LSTM(256, 256, batch_first=True), lambda: torch.randn(32, 64, 256))
    (layer,) = [layer for layer in arm(each, BF16, gpu).layers if layer.name == ""]
    assert layer.dtype == "float16"
    assert "other-16-bit-type" in {why.code for why in layer.why_not}


def test_the_rate_of_a_winograd_convolution_is_no_proof_of_tensor_cores(gpu):
    each = convolution()
    flops = flops_of(each, each.start(0, 2), gpu)
    found = arm(each, FP32_IEEE, gpu, flops=flops, ceilings=Ceilings({"FP32": 50.0}, None, 8192, 1.0))
    assert {layer.impossible_without for layer in found.layers} == {None}
