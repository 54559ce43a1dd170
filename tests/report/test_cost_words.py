"""What the text reports say of a comparison and of the costs of FP16 against FP32."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from mpdiag.costs.kernels import WhyNot
from mpdiag.diagnosis import Comparison, Diagnosis
from mpdiag.report.digest import comparison_line, digest_of
from text_samples import NO_GPU, flat, full, on_a_laptop, text

# comparisons in a line


def test_a_loss_is_shown_with_its_interval_and_margin():
    made = Comparison("loss", "mean", "fp32", "fp16", 1.93, 1.934, 0.004, (-0.011, 0.019), 0.05, 3, "equivalent")
    assert comparison_line(made) == (
        "loss",
        "1.93 -> 1.934, difference +0.004 (90 % within -0.011..+0.019, margin ±0.05): equivalent",
    )


def test_a_difference_of_zero_is_none():
    made = Comparison("accuracy", "metric", "fp32", "fp16", 0.9, 0.9, 0.0, (0.0, 0.0), 0.005, 3, "equivalent")
    shown = comparison_line(made)[1]
    assert shown.startswith("0.9 -> 0.9, no difference")
    assert "+0 " not in shown.replace("(", " ").split("90 %")[0]


# costs


def why(diagnosis: Diagnosis, **verification: Any) -> dict[str, str]:
    changed = replace(diagnosis, verification=replace(diagnosis.verification, **verification))
    return dict(digest_of(changed).why)


def cost(quantity: str, ratio: float, verdict: str = "better", **more: Any) -> Comparison:
    made = Comparison(quantity, "", "fp32", "fp16", 4.0, 4 * ratio, ratio, None, 0.03, 1, verdict, is_ratio=True)
    return replace(made, **more)


def told(quantity: str, ratio: float, verdict: str = "better", **more: Any) -> str:
    topic = {"step_time_ms": "time", "peak_memory_bytes": "memory"}.get(quantity, "energy")
    return why(full(), comparisons=(cost(quantity, ratio, verdict, **more),))[topic]


def test_a_step_time_is_told_with_its_interval_and_what_it_is_held_against():
    shown = told("step_time_ms", 0.5, interval=(0.4, 0.8))
    assert shown == "4 -> 2 ms a step: 2.00 times as fast as IEEE FP32 (95 % within 1.25..2.50)"


def test_a_slower_arm_is_told_as_longer():
    shown = told("step_time_ms", 1.5, "worse", interval=(1.4, 1.6))
    assert shown == "4 -> 6 ms a step: 1.50 times as long as IEEE FP32 (95 % within 1.40..1.60)"


def test_an_equal_time_is_told_as_equal():
    assert told("step_time_ms", 1.0, "equivalent") == "4 -> 4 ms a step: as fast as IEEE FP32 within 3 %"


def test_a_time_that_decides_nothing_says_why():
    shown = told("step_time_ms", 1.25, "inconclusive", reason="too noisy")
    assert shown == "4 -> 5 ms a step: undecided against IEEE FP32, x1.25 its time; too noisy"


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (("fp32-configured", "tf32"), "2.00 times as fast as IEEE FP32, 1.25 times as fast as your present settings"),
        (("tf32",), "2.00 times as fast as IEEE FP32, 1.25 times as fast as TF32"),
    ],
)
def test_a_time_is_also_told_against_the_present_settings_or_tf32(references, words):
    others = [cost("step_time_ms", 0.8, baseline=name) for name in references]
    shown = why(full(), comparisons=(cost("step_time_ms", 0.5), *others))["time"]
    assert shown == f"4 -> 2 ms a step: {words}"


def test_the_costs_told_are_those_of_the_arm_to_train_with():
    both = (cost("step_time_ms", 0.5), cost("step_time_ms", 0.8, candidate="bf16"))
    assert why(full(), comparisons=both, train_with="bf16")["time"].startswith("bf16: 4 -> 3.2 ms a step: 1.25 times")
    assert why(full(), comparisons=both, train_with=None)["time"].startswith("4 -> 2 ms a step: 2.00 times")


def test_bf16_that_raised_is_not_said_to_be_worse():
    crash = "the run failed: RuntimeError: no BF16 here"
    raised = [
        Comparison(name, "loss", "fp32", "bf16", 1.0, None, None, None, 0.01, 3, "worse", crash)
        for name in ("loss", "accuracy")
    ]
    assert why(full(), comparisons=tuple(raised))["bf16"] == crash


def test_a_launch_bound_step_says_so():
    gpu = samples.on_gpu()
    fp32, fp16, *others = gpu.verification.costs.kernels
    slow = replace(
        fp16, time=replace(fp16.time, busy_share=0.15), findings=(WhyNot("launch-bound", "", "", None, "formula"),)
    )
    costs = replace(gpu.verification.costs, kernels=(fp32, slow, *others))
    assert why(gpu, costs=costs)["time"].endswith("; launch bound, the GPU is busy 15.0\u202f% of the step")
    assert "launch bound" not in why(gpu)["time"]
    waits = replace(slow, findings=(WhyNot("gpu-waits", "", "", None, "formula"),))
    costs = replace(costs, kernels=(fp32, waits, *others))
    assert why(gpu, costs=costs)["time"].endswith("; the GPU waits for the host, it is busy 15.0\u202f% of the step")


def test_an_arm_without_a_split_has_its_memory_as_a_ratio():
    shown = told("peak_memory_bytes", 0.5, baseline_value=2.0**33, candidate_value=2.0**32)
    assert shown == "8.0\u202fGiB -> 4.0\u202fGiB, x0.50"


def test_energy_is_told_with_its_interval_and_why_it_decides_nothing():
    assert told("energy_joules_per_sample", 0.5, interval=(0.4, 0.6)) == (
        "4 -> 2 J a sample, x0.50 of IEEE FP32's (95 % within 0.40..0.60)"
    )
    one = told("energy_joules_per_sample", 0.5, "inconclusive", reason="one window an arm gives no interval")
    assert one == "4 -> 2 J a sample, x0.50 of IEEE FP32's; one window an arm gives no interval"


def test_energy_that_an_idle_gpu_draws_too_is_named():
    gpu = samples.on_gpu()
    fp32, fp16, *others = gpu.verification.costs.energy
    costs = replace(gpu.verification.costs, energy=(fp32, replace(fp16, idle_share=0.93), *others))
    assert why(gpu, costs=costs)["energy"].endswith("; 93.0\u202f% of it is drawn by an idle GPU too")
    assert "idle" not in why(gpu)["energy"]


def test_the_gains_on_a_gpu_are_four_lines_and_on_a_cpu_none():
    gains = {"time", "memory", "tensor", "energy"}
    assert gains <= set(why(samples.on_gpu()))
    assert not gains & set(why(on_a_laptop()))


def test_the_tensor_line_is_the_ladders_claim():
    assert why(samples.on_gpu())["tensor"].startswith("fp16: 2.7 TFLOP of FP16, 0.4 TFLOP of TF32")
    gpu = samples.on_gpu()
    bare = tuple(replace(each, ladder=None) for each in gpu.verification.costs.kernels)
    costs = replace(gpu.verification.costs, kernels=bare)
    assert why(gpu, costs=costs)["tensor"].startswith("GPU kernel time on tensor cores: fp32 0\u202f%")


def test_a_cost_that_later_seeds_do_not_have_is_not_told_as_missing():
    diagnosis = on_a_laptop()
    once = "costs are measured once an arm, with the first seed"
    trials = tuple(
        replace(t, not_measured=dict.fromkeys(t.not_measured, once)) if t.seed else t
        for t in diagnosis.verification.trials
    )
    shown = flat(text(replace(diagnosis, verification=replace(diagnosis.verification, trials=trials))))
    assert once not in shown
    assert shown.count(NO_GPU) == 1
