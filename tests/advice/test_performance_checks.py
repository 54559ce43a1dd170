"""MP4xx: what keeps mixed precision from being faster or smaller. Both sides of every threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from capture_samples import ACTIVATION, capture, layered, table
from mpdiag.advice import advise, advise_on_run, with_late_findings
from mpdiag.advice.checks import BY_CODE, RUN_CHECKS
from mpdiag.advice.checks.performance import layer_flops
from mpdiag.advice.loss_scale import recommend
from mpdiag.costs.kernels import ArmKernels, KernelTime
from mpdiag.costs.memory import MemorySplit, MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import Ceilings
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Comparison, Diagnosis, Environment, Finding, TargetRecord, Verification
from mpdiag.loop import Layer, LoopFacts

CPU_RUN = Environment("3", "2.13.0", "0", "p", 1, fp32_precision={"mkldnn.matmul": "none"})


def diagnosis(environment: Environment = CPU_RUN, *, kinds: tuple[str, ...] = ("Linear",), **parts: Any) -> Diagnosis:
    seen = capture(*(table(f"layer{i}", ACTIVATION, {0: 8}, module_type=kind) for i, kind in enumerate(kinds)))
    fields = {name: parts.pop(name) for name in ("comparisons",) if name in parts}
    run = Verification((), fields.get("comparisons", ()), "go", "r", costs=Costs(**parts))
    return Diagnosis("c", "m", environment, None, seen, verification=run)


def found(code: str, scanned: Diagnosis) -> list[Finding]:
    findings = list(BY_CODE[code].find(scanned))
    assert all((f.code, f.severity) == (code, "info") for f in findings)
    return findings


@pytest.mark.parametrize("check", RUN_CHECKS, ids=lambda c: c.code)
def test_a_run_on_a_cpu_has_no_finding(check):
    assert list(check.find(diagnosis())) == []
    assert list(check.find(replace(diagnosis(), verification=None))) == []
    assert list(check.find(replace(diagnosis(), capture=None, verification=None))) == []


# MP401 tf32-baseline


def gpu(capability: str = "9.0", **switches: str) -> Environment:
    precision = {"cuda.matmul": "none", "cudnn.conv": "none", "cudnn.rnn": "none"}
    precision |= {name.replace("_", "."): value for name, value in switches.items()}
    return replace(CPU_RUN, gpu="H100", compute_capability=capability, fp32_precision=precision)


@pytest.mark.parametrize(
    ("environment", "kinds", "says"),
    [
        (gpu(cudnn_conv="tf32"), ("Conv2d",), True),
        (gpu(cudnn_conv="tf32"), ("Linear",), False),
        (gpu("7.5", cudnn_conv="tf32"), ("Conv2d",), False),  # Turing has no TF32
        (gpu("8.0", cuda_matmul="tf32"), ("Linear",), True),
        (gpu(cudnn_rnn="tf32"), ("LSTM",), True),
        (gpu(cudnn_rnn="tf32"), ("Conv2d",), False),
        (gpu(cudnn_conv="ieee"), ("Conv2d",), False),
    ],
)
def test_mp401_tf32_where_the_model_has_such_layers(environment, kinds, says):
    assert bool(found("MP401", diagnosis(environment, kinds=kinds))) is says


def test_mp401_names_the_settings():
    (f,) = found("MP401", diagnosis(gpu(cudnn_conv="tf32", cuda_matmul="tf32"), kinds=("Conv2d",)))
    assert f.message == "with your settings cuda.matmul and cudnn.conv compute in TF32 on this GPU, not in FP32"


# MP402 tensor-core-alignment


def aligned(*layers: tuple[str, int, int, int]) -> list[Finding]:
    seen = layered(*layers)
    findings = list(BY_CODE["MP402"].find(seen, recommend(seen)))
    assert all(f.severity == "info" for f in findings)
    return findings


@pytest.mark.parametrize(
    ("features", "says"), [((8, 16), False), ((8, 10), True), ((3, 8), True), ((1, 8), False), ((9, 8), True)]
)
def test_mp402_channels_that_are_no_multiples_of_8(features, says):
    assert bool(aligned(("fc", *features, 64))) is says


def test_mp402_says_what_to_pad_to():
    (f,) = aligned(("body", 8, 8, 9), ("head", 8, 50257, 50257))
    assert (f.subject, f.remedy) == ("head", "pad head to 8 and 50264")
    assert f.evidence["flop_share"] == pytest.approx(50257 / 50266)


def test_mp402_a_tenth_of_the_flops_is_left_alone():
    assert aligned(("body", 8, 8, 900), ("head", 8, 10, 100)) == []
    assert len(aligned(("body", 8, 8, 899), ("head", 8, 10, 101))) == 1


def test_the_flops_of_a_layer_are_two_for_each_term_of_each_output():
    conv = Layer("conv", "Conv2d", 3, 8, 27)
    facts = LoopFacts({}, layers=(conv, Layer("x", "Linear", 8, 8, 8)))
    seen = replace(capture(table("conv", ACTIVATION, {0: 100})), loop=facts)
    assert layer_flops(seen) == {conv: 5400}  # x was never called


# MP403 model-state-memory


def used(arm: str, weights: int, activations: int) -> MemoryUse:
    return MemoryUse(arm, arm, split=MemorySplit(weights_bytes=weights, activations_bytes={"float32": activations}))


@pytest.mark.parametrize(("state", "says"), [(50, False), (51, True)])
def test_mp403_state_that_is_more_than_half_of_the_peak(state, says):
    assert bool(found("MP403", diagnosis(memory=(used("fp32", state, 100 - state),)))) is says


def test_mp403_says_what_fp16_came_to():
    (f,) = found("MP403", diagnosis(memory=(used("fp32", 80, 20), used("fp16", 80, 11))))
    assert (f.evidence["ratio"], f.evidence["foretold"]) == (0.91, 0.9)
    assert f.message.endswith(": FP16 peaks at 0.91 of FP32's, 0.90 at best")


def test_mp403_without_a_recorded_step_there_is_nothing_to_say():
    assert found("MP403", diagnosis(memory=(MemoryUse("fp32", "FP32", 100),))) == []


# MP404 low-product-share


def traced(arm: str, matrix: float = 0.8, busy: float = 0.9) -> ArmKernels:
    time = KernelTime(3, 10, 10.0, {}, {}, {}, matrix, 0.0, 0.0, 0.0, 0.0, 5.0, 9.0, 10.0, False, busy)
    return ArmKernels(arm, "FP16", time, None)


@pytest.mark.parametrize(("share", "says"), [(0.49, True), (0.5, False)])
def test_mp404_products_that_are_less_than_half_of_the_time(share, says):
    assert bool(found("MP404", diagnosis(kernels=(traced("fp32", share),)))) is says


def test_mp404_bounds_the_speedup_by_amdahl():
    ceilings = Ceilings({"FP16": 800.0, "FP32": 50.0}, None, None, 1.0)
    (f,) = found("MP404", diagnosis(kernels=(traced("fp32", 0.4),), ceilings=ceilings))
    assert f.evidence["bound"] == pytest.approx(1 / (0.6 + 0.4 / 16))
    assert f.message.endswith("a step can become 1.60 times as fast at best")
    (f,) = found("MP404", diagnosis(kernels=(traced("fp16", 0.4),), ceilings=ceilings))
    assert f.evidence["bound"] is None  # FP16's own shares do not bound it


# MP405 latency-bound


def timed(ratio: float, verdict: str = "better") -> tuple[Comparison, ...]:
    made = Comparison("step_time_ms", "ms", "fp32", "fp16", 10, 10 * ratio, ratio, None, 0.03, 1, verdict, None, True)
    return (made,)


@pytest.mark.parametrize(("ratio", "says"), [(0.5, False), (0.90, False), (0.92, True), (1.3, True)])
def test_mp405_a_speedup_below_a_tenth(ratio, says):
    assert bool(found("MP405", diagnosis(comparisons=timed(ratio)))) is says


@pytest.mark.parametrize(("busy", "says"), [(0.59, True), (0.6, False)])
def test_mp405_a_gpu_that_waits(busy, says):
    findings = found("MP405", diagnosis(comparisons=timed(0.5), kernels=(traced("fp16", busy=busy),)))
    assert bool(findings) is says


@pytest.mark.parametrize("verdict", ["not-measured", "inconclusive"])
def test_mp405_what_was_not_measured_or_drowns_in_noise_is_no_evidence(verdict):
    assert found("MP405", diagnosis(comparisons=timed(1.3, verdict))) == []
    (waiting,) = found("MP405", diagnosis(comparisons=timed(1.3, verdict), kernels=(traced("fp16", busy=0.1),)))
    assert waiting.message == "the GPU is busy 10 % of an FP16 step"


# MP406 input-bound


def drawing(batch_ms: float | None, **parts: Any) -> Diagnosis:
    arms = tuple(ArmTime(name, name, ms, None, None, (ms,), 1, 0) for name, ms in (("fp32", 40.0), ("fp16", 12.5)))
    timing = Timing(arms, arms[0], 8, 1, True, 1.0)
    target = TargetRecord("job", "job.py", 1, False, "SGD", 4, 8, None, True, batch_ms=batch_ms)
    return replace(diagnosis(timing=timing), target=target, **parts)


@pytest.mark.parametrize(("batch_ms", "says"), [(None, False), (12.5, False), (12.6, True), (31.0, True)])
def test_mp406_batches_that_take_longer_than_a_step(batch_ms, says):
    assert bool(found("MP406", drawing(batch_ms))) is says


def test_mp406_says_both_times():
    (f,) = found("MP406", drawing(31.0))
    assert f.message == "a batch takes at least 31 ms to draw, fp16's step 12.5 ms: training waits for data"
    assert f.evidence == {"batch_ms": 31.0, "limit": 12.5, "fp32_step_ms": 40.0}


def test_mp406_batches_drawn_on_another_machine_say_nothing():
    assert found("MP406", drawing(31.0, captured_on=CPU_RUN)) == []


def test_the_findings_of_a_run_come_by_code():
    scanned = diagnosis(gpu(cudnn_conv="tf32"), kinds=("Conv2d",), kernels=(traced("fp16", 0.3, 0.3),))
    assert [f.code for f in advise_on_run(scanned)] == ["MP401", "MP404", "MP405"]


def test_a_diagnosis_gets_the_findings_of_its_runs_once():
    scanned = diagnosis(gpu(cudnn_conv="tf32"), kinds=("Conv2d",), kernels=(traced("fp16", 0.3, 0.3),))
    assert with_late_findings(scanned) is scanned  # no advice yet
    assert scanned.capture is not None
    late = with_late_findings(replace(scanned, advice=advise(scanned.capture)))
    assert late.advice is not None
    assert [f.code for f in late.advice.findings] == ["MP401", "MP404", "MP405"]
    assert with_late_findings(late) == late
    unverified = with_late_findings(replace(late, verification=None))
    assert unverified.advice is not None
    assert [f.code for f in unverified.advice.findings] == ["MP401"]
