"""Layer by layer: tensor cores or not, why not, and what mending gives; on traces written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mpdiag.costs.kernels import Flops, HostWait, KernelTime, LayerUse, WhyNot
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.measure.layers import arithmetic_of, beyond_cuda_cores, facts_of, layers_of, verdict
from mpdiag.measure.padding import body_of
from mpdiag.measure.products import Product, product_of
from mpdiag.measure.step_findings import findings_of
from mpdiag.measure.trace_events import Trace, TracedKernel, TracedOp
from mpdiag.measure.why_not import ModuleFacts
from mpdiag.training.islands import fp32_islands
from mpdiag.training.precision import FP32_IEEE, Precision

NVJET, ALIGN1 = "nvjet_sm90_hsh_128x128_64x4_1x1_h_bz_TNN", "cutlass_75_tensorop_f16_s1688gemm_f16_128x128_nn_align1"
SGEMM, ADD = "ampere_sgemm_128x64_nn", "void at::native::vectorized_elementwise_kernel<4>"
TO_NHWC = "void cudnn::ops::nchwToNhwcKernel<__half, __half, float>"
CEILINGS = Ceilings({"FP16": 600.0, "FP32": 50.0}, None, 8192, 1.0)


def mm(m: int, n: int, k: int, dtype: str = "float16", op: str = "aten::mm") -> TracedOp:
    return TracedOp(op, ((m, k), (k, n)), ((k, 1), (n, 1)), (dtype, dtype), dtype)


def kernel(name: str, us: float, module: str | None = "fc", op: TracedOp | None = None, phase: str = "forward",
           **more: Any) -> TracedKernel:  # fmt: skip
    return TracedKernel(name, 0.0, us, more.pop("step", 0), op, module, phase, **more)


LINEAR, CONV = ModuleFacts("Linear", 1, 0, False), ModuleFacts("Conv2d", 1, 64, False)


def layers(
    *kernels: TracedKernel,
    fact: ModuleFacts = LINEAR,
    arithmetic: str = "FP16",
    times: dict[Product, float] | None = None,
    flops: Flops | None = None,
    ceilings: Ceilings | None = None,
    steps: int = 1,
) -> tuple[LayerUse, ...]:
    facts = dict.fromkeys(("", "fc", "other"), fact)
    trace = Trace(in_turn(*kernels), steps, 1000.0)
    return layers_of(trace, facts, arithmetic, flops, ceilings, lambda products: times or {})


def in_turn(*kernels: TracedKernel) -> tuple[TracedKernel, ...]:
    """The same kernels, each beginning where the one before it ends."""
    placed, at = [], 0.0
    for each in kernels:
        placed.append(replace(each, start_us=at))
        at += each.duration_us
    return tuple(placed)


def reasons(*kernels: TracedKernel, **more: Any) -> list[WhyNot]:
    return [why for layer in layers(*kernels, **more) for why in layer.why_not]


def test_a_layers_times_are_per_step_and_its_share_of_all_kernel_time():
    found = layers(
        kernel(NVJET, 30, op=mm(64, 64, 64)),
        kernel(NVJET, 50, op=mm(64, 64, 64), phase="backward"),
        kernel(ADD, 20, module="fc", phase="backward"),
        kernel(ADD, 100, module=None, phase="optimizer"),
        kernel("Memcpy HtoD (Pinned -> Device)", 500, module=None, phase="other", copy=True),
        steps=2,
    )
    assert found == (LayerUse("fc", "Linear", 0.015, 0.035, 0.5, "float16", "yes"),)


def test_a_module_without_a_product_is_listed_only_from_a_hundredth_of_the_time_on():
    found = layers(kernel(NVJET, 985, op=mm(64, 64, 64)), kernel(ADD, 10.1, module="other"), kernel(ADD, 5, module=""))
    assert [layer.name for layer in found] == ["fc", "other"]
    assert found[1].tensor_cores == "no"
    assert [(w.code, w.gain_ms) for w in found[1].why_not] == [("no-product", 0.0)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({NVJET: 100}, "yes"),
        ({NVJET: 96, SGEMM: 4}, "yes"),
        ({NVJET: 50, SGEMM: 50}, "mixed"),
        ({NVJET: 4, SGEMM: 96}, "no"),
        ({"some_gemm_kernel": 100}, "unknown"),
        ({"some_gemm_kernel": 60, NVJET: 40}, "unknown"),
        ({"some_gemm_kernel": 30, NVJET: 70}, "mixed"),
        ({"some_gemm_kernel": 30, SGEMM: 70}, "unknown"),
        ({}, "no"),
    ],
)
def test_the_answer_of_a_layer_is_by_time_and_never_made_of_unclear_names(names, expected):
    assert verdict([kernel(name, us) for name, us in names.items()]) == expected


def test_split_k_and_bias_kernels_do_not_make_a_tensor_core_layer_mixed():
    (layer,) = layers(
        kernel(NVJET, 60, op=mm(64, 64, 64)),
        kernel("void cublasLt::splitKreduce_kernel<32, 16>", 20, op=mm(64, 64, 64)),
        kernel("void at::native::reduce_kernel<512, 1>", 20, phase="backward"),
    )
    assert layer.tensor_cores == "yes"


def test_a_rate_is_flops_over_the_products_time_and_held_against_the_ceiling_of_its_type():
    flops = Flops(0, 0, 0, {"fc": (10**9, 2 * 10**9)})
    (layer,) = layers(kernel(NVJET, 10, op=mm(64, 64, 64)), kernel(ADD, 90), flops=flops, ceilings=CEILINGS)
    assert layer.flops == 3 * 10**9
    assert layer.tflops_per_s == pytest.approx(300.0)
    assert layer.of_ceiling == pytest.approx(0.5)
    assert layer.impossible_without is True


@pytest.mark.parametrize(
    ("rate", "dtype", "expected"),
    [(57.4, "float32", False), (57.6, "float32", True), (229.0, "float16", False), (231.0, "bfloat16", True),
     (500.0, "float64", None), (None, "float16", None)],
)  # fmt: skip
def test_beyond_the_cuda_cores_is_1_15_times_their_ceiling_four_times_that_in_16_bits(rate, dtype, expected):
    assert beyond_cuda_cores(rate, dtype, CEILINGS) is expected
    assert beyond_cuda_cores(rate, dtype, Ceilings({}, None, None, 0.0)) is None
    assert beyond_cuda_cores(rate, dtype, None) is None


ODD = Product(1, 2048, 1021, 1024, "float16")


def test_odd_dimensions_give_the_measured_gain_of_the_padded_shape():
    times = {ODD: 0.040, ODD.padded: 0.010}
    (why,) = reasons(kernel(ALIGN1, 80, op=mm(2048, 1021, 1024)), times=times, steps=2)
    assert why.code == "odd-dimensions"
    assert why.text == "2048x1021x1024 takes 40 us alone, 10 us as 2048x1024x1024"
    assert (why.gain_ms, why.gain_from) == (pytest.approx(0.030), "measured")  # three quarters of 40 us a step


def test_odd_dimensions_that_cost_nothing_are_not_mentioned():
    assert reasons(kernel(ALIGN1, 80, op=mm(2048, 1021, 1024)), times={ODD: 0.0104, ODD.padded: 0.010}) == []


def test_odd_dimensions_that_were_not_timed_are_told_without_a_number_if_the_kernel_shows_them():
    (why,) = reasons(kernel(ALIGN1, 80, op=mm(2048, 1021, 1024)))
    assert (why.gain_ms, why.gain_from) == (None, "not measured: its padded shape was not timed")
    assert "align1" in why.text
    assert reasons(kernel(NVJET, 80, op=mm(2048, 1021, 1024))) == []


def test_an_fp32_arm_is_told_no_reasons():
    assert reasons(kernel(SGEMM, 80, op=mm(2048, 1021, 1024, "float32")), arithmetic="FP32") == []


def test_products_in_fp32_below_autocast_are_named_with_what_16_bits_would_give():
    product = Product(1, 64, 64, 64, "float32")
    times = {product: 0.08, replace(product, dtype="float16"): 0.02}
    (why,) = reasons(kernel(SGEMM, 80, op=mm(64, 64, 64, "float32")), times=times)
    assert (why.code, why.gain_ms, why.gain_from) == ("forced-fp32", pytest.approx(0.060), "measured")
    assert why.text == "aten::mm computed in FP32 though the arm is FP16"


def test_an_fp32_island_is_told_to_be_on_purpose():
    (why,) = reasons(kernel(SGEMM, 80, op=mm(64, 64, 64, "float32")), fact=replace(LINEAR, island=True))
    assert why.remedy == "it is an FP32 island, on purpose"
    assert why.gain_ms is None


def test_a_tf32_arm_is_not_told_off_for_its_fp32_inputs():
    assert reasons(kernel("cutlass_80_tensorop_s1688gemm_x", 80, op=mm(64, 64, 64, "float32")), arithmetic="TF32") == []


def test_a_recurrent_layer_that_autocast_runs_in_the_other_16_bit_type_is_named():
    rnn = TracedOp("aten::_cudnn_rnn", ((2, 3, 4),), ((12, 4, 1),), ("float16",), "float16")
    (why,) = reasons(kernel(NVJET, 90, op=rnn), arithmetic="BF16")
    assert why.text == "aten::_cudnn_rnn computed in float16 though the arm is BF16"
    assert (why.gain_ms, why.gain_from) == (None, "a matter of range, not of time")
    assert reasons(kernel(NVJET, 90, op=rnn), arithmetic="FP16") == []


def test_what_is_in_no_module_is_a_row_of_its_own_and_the_optimizer_is_not():
    found = layers(kernel(NVJET, 60, op=mm(64, 64, 64)), kernel(ADD, 30, module=None, phase="backward"),
                   kernel(ADD, 10, module=None, phase="optimizer"))  # fmt: skip
    assert [(layer.name, layer.time_share) for layer in found] == [("fc", 0.6), ("(outside the model)", 0.3)]


def test_a_convolutions_rate_proves_nothing_since_winograd_needs_fewer_operations():
    flops = Flops(0, 0, 0, {"fc": (10**9, 2 * 10**9)})
    (layer,) = layers(kernel(XMMA, 10, op=CONV_OP), fact=CONV, flops=flops, ceilings=CEILINGS)
    assert layer.tflops_per_s == pytest.approx(300.0)
    assert layer.impossible_without is None


CONV_OP = TracedOp("aten::cudnn_convolution", ((8, 64, 9, 9), (64, 64, 3, 3)), ((), ()), ("float16",) * 2, "float16")
XMMA = "sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc_tilesize128x128x64"


def test_transposes_around_a_convolution_would_go_away_with_channels_last():
    (why,) = reasons(kernel(XMMA, 90, op=CONV_OP), kernel(TO_NHWC, 10, op=CONV_OP), fact=CONV)
    assert (why.code, why.gain_ms, why.gain_from) == ("nchw-transposes", pytest.approx(0.010), "bound")


def test_a_depthwise_convolution_can_gain_nothing():
    fact = ModuleFacts("Conv2d", 64, 64, False)
    name = "void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, c10::Half, int>"
    (why,) = reasons(kernel(name, 90, op=CONV_OP), fact=fact)
    assert (why.code, why.gain_ms, why.gain_from) == ("grouped-convolution", 0.0, "formula")


@pytest.mark.parametrize(("arithmetic", "dtype"), [("FP16", "float16"), ("TF32", "float32")])
def test_a_convolution_on_cuda_cores_asks_for_another_algorithm(arithmetic, dtype):
    op = replace(CONV_OP, dtype=dtype)
    name = "void implicit_convolve_sgemm<__half, __half, 1024>"
    (why,) = reasons(kernel(name, 90, op=op), fact=CONV, arithmetic=arithmetic)
    assert why.code == "no-tensor-core-algorithm"
    assert "implicit_convolve_sgemm" in why.text
    assert why.gain_ms is None


def test_the_first_convolution_has_few_channels():
    assert [w.code for w in reasons(kernel(XMMA, 90, op=CONV_OP), fact=ModuleFacts("Conv2d", 1, 3, False))] == [
        "few-channels"
    ]


def test_the_timer_is_asked_once_for_each_large_odd_or_fp32_product_and_its_counterpart():
    asked: list[Product] = []

    def timer(products):
        asked.extend(products)
        return {}

    kernels = (
        kernel(ALIGN1, 80, op=mm(2048, 1021, 1024)),
        kernel(NVJET, 80, op=mm(2048, 1024, 1024)),
        kernel(SGEMM, 80, "other", op=mm(16, 8, 8, "float32")),
        kernel(ALIGN1, 0.1, op=mm(3, 3, 3)),
    )
    layers_of(Trace(kernels, 1, 1.0), {}, "FP16", None, None, timer)
    single = Product(1, 16, 8, 8, "float32")
    assert asked == [ODD, ODD.padded, single, replace(single, dtype="float16")]


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (mm(2, 3, 4), Product(1, 2, 3, 4, "float16")),
        (TracedOp("aten::addmm", ((3,), (2, 4), (4, 3)), ((1,), (4, 1), (1, 4)), ("float32",) * 3, "float32"),
         Product(1, 2, 3, 4, "float32", False, True)),
        (TracedOp("aten::bmm", ((5, 2, 4), (5, 4, 3)), ((8, 1, 2), (12, 3, 1)), ("bfloat16",) * 2, "bfloat16"),
         Product(5, 2, 3, 4, "bfloat16", True, False)),
        (TracedOp("aten::mm", ((2, 4), (4, 3)), (), ("float16",) * 2, "float16"), Product(1, 2, 3, 4, "float16")),
        (TracedOp("aten::mm", ((2, 4), (5, 3)), (), ("float16",) * 2, "float16"), None),
        (TracedOp("aten::mm", ((0, 4), (4, 3)), (), ("float16",) * 2, "float16"), None),
        (TracedOp("aten::mm", ((2, 4),), (), ("float16",), "float16"), None),
        (TracedOp("aten::mm", ((2, 4), (4, 3)), (), ("float64",) * 2, "float64"), None),
        (CONV_OP, None),
        (None, None),
    ],
)  # fmt: skip
def test_a_product_is_read_from_its_operators_shapes_and_strides(op, expected):
    assert product_of(op) == expected


def test_padding_rounds_every_dimension_up_to_one_load():
    assert ODD.odd == (1021,)
    assert ODD.padded == Product(1, 2048, 1024, 1024, "float16")
    assert Product(1, 6, 8, 12, "float32").odd == (6,)
    assert Product(2, 1, 2, 3, "bfloat16").padded == Product(2, 8, 8, 8, "bfloat16")
    assert Product(2, 3, 4, 5, "float16").bytes == 2 * 2 * (15 + 20 + 12)


@pytest.mark.parametrize(
    "product", [Product(1, 3, 4, 5, "float32", True, False), Product(2, 3, 4, 5, "bfloat16", False, True)]
)
def test_a_product_alone_has_the_layers_shape_and_layout(product):
    made = body_of(product, torch.device("cpu"))()
    assert isinstance(made, torch.Tensor)
    assert made.dtype == getattr(torch, product.dtype)
    assert made.shape[-2:] == (3, 4)


def test_facts_know_groups_channels_and_islands():
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Linear(4, 4))
    fp32_islands(model, ["1"])
    facts = facts_of(model)
    assert facts["0"] == ModuleFacts("Conv2d", 8, 8, False)
    assert facts["1"].island
    assert facts[""] == ModuleFacts("Sequential", 1, 0, False)


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (FP32_IEEE, "FP32"),
        (Precision("as configured"), "FP32"),
        (Precision("x", tf32=True), "TF32"),
        (Precision("x", autocast=torch.float16), "FP16"),
        (Precision("x", autocast=torch.bfloat16, tf32=True), "BF16"),
    ],
)
def test_the_arithmetic_of_an_arm(precision, expected):
    assert arithmetic_of(precision) == expected


CALM = KernelTime(1, 100, 10.0, {}, {}, {}, 0.8, 0.0, 0.0, 0.0, 0.0, 50.0, 9.9, 10.0, False, 0.99)


@pytest.mark.parametrize(
    ("change", "arithmetic", "code", "gain"),
    [
        ({"median_kernel_us": 5.0, "busy_share": 0.4, "busy_ms": 4.0}, "FP16", "launch-bound", None),
        ({"median_kernel_us": 12.7, "busy_share": 0.61, "busy_ms": 6.1}, "FP16", "gpu-waits", None),
        ({"waits": (HostWait("cudaStreamSynchronize", "aten::item", "", 1.0, 2.0),)}, "FP16", "host-waits", None),
        ({"cast_share": 0.05}, "FP16", "casts", 0.5),
        ({"transpose_share": 0.1}, "BF16", "nchw-transposes", 1.0),
        ({"optimizer_share": 0.2}, "FP16", "optimizer", None),
        ({"matrix_share": 0.24}, "FP32", "bound-elsewhere", 2.4 * (1 - 50 / 600)),
    ],
)
def test_each_finding_of_a_step_has_its_trigger_and_gain(change, arithmetic, code, gain):
    (found,) = findings_of(replace(CALM, **change), arithmetic, CEILINGS)
    assert found.code == code
    assert found.gain_ms == (None if gain is None else pytest.approx(gain))
    assert findings_of(CALM, arithmetic, CEILINGS) == ()


def test_findings_come_with_the_largest_gain_first():
    time = replace(CALM, cast_share=0.05, transpose_share=0.1, optimizer_share=0.5)
    assert [f.code for f in findings_of(time, "FP16", None)] == ["nchw-transposes", "casts", "optimizer"]


def test_without_ceilings_the_bound_elsewhere_has_no_number():
    (found,) = findings_of(replace(CALM, matrix_share=0.1), "FP32", None)
    assert (found.gain_ms, found.gain_from) == (None, "not measured: no ceilings on this GPU")


def test_what_would_go_away_is_a_bound_and_what_was_timed_alone_is_measured():
    time = replace(CALM, cast_share=0.05, transpose_share=0.1)
    assert {f.code: f.gain_from for f in findings_of(time, "FP16", None)} == {
        "nchw-transposes": "bound",
        "casts": "bound",
    }
    (odd,) = reasons(kernel(ALIGN1, 80, op=mm(2048, 1021, 1024)), times={ODD: 0.04, ODD.padded: 0.01})
    assert odd.gain_from == "measured"


def test_a_step_that_waits_for_the_host_says_so_first_and_calls_its_idle_time_no_gain():
    time = replace(CALM, median_kernel_us=5.0, busy_share=0.4, busy_ms=4.0, cast_share=0.5)
    first, second = findings_of(time, "FP16", None)
    assert (first.code, second.code) == ("launch-bound", "casts")
    assert first.gain_ms is None
    assert first.gain_from == "not measured: at most the 6 ms of a step in which the GPU waits"
    (first, _) = findings_of(replace(time, step_traced=True), "FP16", None)
    assert first.gain_from.endswith("a step that the profiler made longer")


def test_a_gpu_that_waits_is_told_in_ms_however_long_its_kernels_are():
    # gpt_code's FP16 step on an H100: 10 of 25.8 ms idle, median kernel 12.7 us
    time = replace(CALM, median_kernel_us=12.672, busy_share=0.613, busy_ms=15.81, step_ms=25.78, cast_share=0.13)
    first, second = findings_of(time, "FP16", None)
    assert (first.code, second.code) == ("gpu-waits", "casts")
    assert first.text == "the GPU waits 9.97 of 25.8 ms a step for the host: it is busy 61% of it"
    assert findings_of(replace(time, busy_share=0.7), "FP16", None)[0].code == "casts"


def test_on_a_shared_gpu_nobody_is_said_to_wait_for_the_host():
    time = replace(CALM, busy_share=0.4, cast_share=0.13, waits=(ITEM,))
    assert [f.code for f in findings_of(time, "FP16", None, shared="others")] == ["casts"]


ITEM = HostWait("cudaStreamSynchronize", "aten::item", "head", 2.0, 3.14)


def test_layers_are_held_against_the_burst_and_cuda_cores_too_so_that_a_fast_clock_proves_nothing():
    flops = Flops(0, 0, 0, {"fc": (10**9, 2 * 10**9)})
    bursts = replace(CEILINGS, burst_tflops={"FP16": 750.0, "FP32": 66.0})
    (layer,) = layers(kernel(NVJET, 10, op=mm(64, 64, 64)), flops=flops, ceilings=bursts)
    assert (layer.of_ceiling, layer.of_burst) == (pytest.approx(300 / 750), True)
    (layer,) = layers(kernel(NVJET, 10, op=mm(64, 64, 64)), flops=flops, ceilings=CEILINGS)
    assert (layer.of_ceiling, layer.of_burst) == (pytest.approx(0.5), False)
    assert beyond_cuda_cores(58.0, "float32", CEILINGS) is True
    assert beyond_cuda_cores(58.0, "float32", bursts) is False


def test_a_layer_faster_than_its_ceiling_is_not_cut_at_it():
    flops = Flops(0, 0, 0, {"fc": (10**9, 2 * 10**9)})
    (layer,) = layers(kernel(NVJET, 4, op=mm(64, 64, 64)), flops=flops, ceilings=CEILINGS)
    assert layer.of_ceiling == pytest.approx(1.25)
