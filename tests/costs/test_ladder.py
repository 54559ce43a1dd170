"""The ladder of tensor-core evidence: the highest level that answers gives the claim, contradictions are flagged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernels import ArmKernels, Flops, KernelTime, LayerUse, NamedKernel
from mpdiag.costs.ladder import NOT_COUNTED, ladder_of
from mpdiag.costs.tensor_cores import CounterEvidence, GpmEvidence


def kernels(
    yes: float = 0.8, ambiguous: float = 0.0, unknown: float = 0.0, matrix: float = 0.9, arithmetic: str = "FP16",
    beyond: tuple[bool | None, ...] = (),
) -> ArmKernels:  # fmt: skip
    classes = {"yes": yes, "no": 1 - yes - ambiguous - unknown, "ambiguous": ambiguous, "unknown": unknown}
    time = KernelTime(3, 100, 10.0, classes, {}, {}, matrix, 0, 0, 0, 0, 50.0, 9.0, 10.0, False, 0.9)
    layers = tuple(
        LayerUse(f"l{i}", "Linear", 1, 1, 0.1, "float16", "yes", tflops_per_s=100.0 + i, impossible_without=b)
        for i, b in enumerate(beyond)
    )
    return ArmKernels("arm", arithmetic, time, layers)


def gpm(used: bool | None, share: float = 0.4, **more: Any) -> GpmEvidence:
    reason = None if used else "not above the threshold"
    return GpmEvidence("arm", used, share, share, 0.0, 0.03, 2.0, {"any_tensor": share}, reason, **more)


def counters(instructions: float | None = None, **operations: float) -> CounterEvidence:
    return CounterEvidence("arm", operations or None, instructions, reason=None if operations else "refused")


def test_the_highest_level_that_answers_gives_the_claim():
    found = ladder_of(kernels(beyond=(True, False)), gpm(True), counters(1e6, fp16=9e12, bf16=1e12, fp8=0.0))
    assert (found.reached, found.used) == ("E1", True)
    assert found.claim == "9 TFLOP of FP16, 1 TFLOP of BF16 tensor-core math a step"
    assert [level.used for level in found.levels] == [True] * 5


@pytest.mark.parametrize(
    ("given", "reached", "claim"),
    [
        ({"counters": counters(2e6)}, "E2", "the tensor pipe ran 2,000,000 instructions a step"),
        ({"gpm": gpm(True)}, "E3", "tensor pipe active 40.0% of the time while this ran alone"),
        ({"kernels": kernels(0.8, 0.05, 0.01)}, "E4",
         "80.0% of GPU kernel time in kernels known as tensor-core, 5.0% in names that can be either, 1.0% unknown"),
        ({"kernels": kernels(0.0, 0.5, beyond=(True, True, None))}, "E5",
         "2 of 2 layers run faster than CUDA cores can (l1: 101 TFLOP/s): impossible without tensor cores"),
    ],
)  # fmt: skip
def test_each_level_has_the_sentence_it_allows(given, reached, claim):
    found = ladder_of(**{"kernels": None, **given})
    assert (found.reached, found.claim, found.used) == (reached, claim, True)


REFUSED = "fp16: cuptiProfilerHostConfigAddMetrics returned 17"


@pytest.mark.parametrize("instructions", [None, 5e5])
def test_a_count_without_the_refused_type_never_says_that_none_ran(instructions):
    partial = CounterEvidence("arm", {"bf16": 0.0, "tf32": 0.0}, instructions, reason=REFUSED)
    found = ladder_of(kernels(0.8), None, partial, Flops(10**12, 2 * 10**12, 0))
    assert found.levels[0].used is None
    assert found.levels[0].text == f"BF16, TF32: none; not counted: {REFUSED}"
    assert found.used is True
    assert found.reached == ("E4" if instructions is None else "E2")
    assert found.disagreements == ()


def test_what_a_partial_count_has_is_told_beside_what_it_lacks():
    partial = CounterEvidence("arm", {"bf16": 0.0, "tf32": 2e12}, 1e6, reason=REFUSED)
    found = ladder_of(kernels(), None, partial, Flops(10**12, 2 * 10**12, 0))
    assert (found.reached, found.used) == ("E1", True)
    assert found.claim == f"2 TFLOP of TF32 tensor-core math a step; not counted: {REFUSED}"
    assert (found.of_formulas, found.disagreements) == (None, ())  # 100 % TF32, two thirds of the FLOPs: not so


def test_instructions_that_were_not_counted_leave_the_operations_their_answer():
    none = CounterEvidence("arm", {"fp16": 0.0, "bf16": 0.0}, instructions_reason="refused")
    found = ladder_of(kernels(0.0), None, none)
    assert [(level.used, level.text) for level in found.levels[:2]] == [
        (False, "no tensor-core operation in a step"),
        (None, "refused"),
    ]


def test_the_count_is_told_as_a_multiple_of_the_formulas():
    # char_gpt's FP16 step on an H100
    flops = Flops(3812622336, 7893680128, 0, by_batch=(11706302464, 11706302464))
    found = ladder_of(kernels(), None, counters(5e5, fp16=13725859840.0, bf16=0.0), flops)
    assert found.of_formulas == pytest.approx(1.1725, abs=1e-4)
    assert found.claim == "0.0137 TFLOP of FP16 tensor-core math a step, 1.17 times the FLOPs by formula"
    assert found.disagreements == ()
    ieee = ladder_of(fp32_arm(0.15, (BACKWARD, 1.5)), None, counters(tf32=6.6e9), flops)
    assert (ieee.of_formulas, ieee.claim) == (None, "0.0066 TFLOP of TF32 tensor-core math a step")


@pytest.mark.parametrize(
    ("beyond", "text"),
    [
        ((False, None), "the one layer that was judged is not faster than CUDA cores can be, which proves nothing"),
        ((False, False), "none of 2 layers is faster than CUDA cores can be, which proves nothing"),
        ((True,), "the one layer that was judged runs faster than CUDA cores can (l0: 100 TFLOP/s): impossible "
                  "without tensor cores"),
        ((True, False), "1 of 2 layers runs faster than CUDA cores can (l0: 100 TFLOP/s): impossible without "
                        "tensor cores"),
    ],
)  # fmt: skip
def test_layers_are_counted_in_words(beyond, text):
    assert ladder_of(kernels(beyond=beyond)).levels[4].text == text


def test_nothing_measured_is_not_known_and_never_no():
    found = ladder_of(None)
    assert (found.reached, found.used) == (None, None)
    assert found.claim == "not known whether tensor cores ran: no level of evidence gave an answer"
    assert {level.text for level in found.levels} == {"not measured"}


def test_each_missing_level_gives_its_own_reason():
    nothing = ArmKernels("a", "FP16", None, None, reason="needs a GPU", layers_reason="compiled")
    unread = GpmEvidence("a", None, None, None, None, None, 0.0, None, "not on this GPU")
    found = ladder_of(nothing, unread, counters())
    assert [level.text for level in found.levels] == [
        "refused",
        "refused",
        "not on this GPU",
        "needs a GPU",
        "compiled",
    ]


def test_only_unclear_names_are_no_answer_and_only_plain_ones_are_no():
    assert ladder_of(kernels(0.0, 0.1)).levels[3].used is None
    assert ladder_of(kernels(0.0, 0.0, 0.1)).levels[3].used is None
    assert ladder_of(kernels(0.0)).levels[3].used is False
    assert ladder_of(kernels(0.0, 0.005, 0.005)).levels[3].used is False
    assert "0.5% unknown" in ladder_of(kernels(0.0, 0.005, 0.005)).claim


def test_pipe_activity_without_a_traced_product_proves_nothing():
    found = ladder_of(kernels(0.0, matrix=0.0), gpm(True), counters(5.0))
    assert [level.used for level in found.levels[1:3]] == [None, None]
    assert "packed FP16" in found.levels[1].text


def test_slow_layers_prove_nothing():
    assert ladder_of(kernels(0.0, 0.1, beyond=(False,))).levels[4].used is None


def test_names_that_say_yes_while_gpm_sits_at_its_floor_are_flagged():
    (told,) = ladder_of(kernels(0.5), gpm(None, 0.02)).disagreements
    assert "E4" in told
    assert "E3" in told
    assert ladder_of(kernels(0.01), gpm(None, 0.02)).disagreements == ()
    busy = GpmEvidence("a", None, None, None, None, 0.03, 2.0, None, "others used the GPU")
    assert ladder_of(kernels(0.5), busy).disagreements == ()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"counters": counters(fp16=0.0)}, {"kernels": kernels(0.5)}),
        ({"gpm": gpm(True)}, {"kernels": kernels(0.0)}),
        ({"counters": counters(0.0)}, {"gpm": gpm(True)}),
    ],
)
def test_levels_that_contradict_each_other_are_flagged(first, second):
    assert len(ladder_of(**{"kernels": None, **first, **second}).disagreements) == 1


def test_an_fp32_arm_on_tensor_cores_is_flagged():
    (told,) = ladder_of(kernels(0.3, arithmetic="FP32")).disagreements
    assert "TF32" in told
    assert ladder_of(kernels(0.0, arithmetic="FP32")).disagreements == ()


BACKWARD = "fmha_cutlassB_f32_aligned_64x64_k32_sm80(PyTorchMemEffAttention::AttentionBackwardKernel<float>::Params)"
FORWARD = "fmha_cutlassF_f32_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<float>::Params)"
TF32_PRODUCT = "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x128_32x3_nn_align4>(X::Params)"


def fp32_arm(yes: float, *top: tuple[str, float], arm: str = "fp32", ambiguous: float = 0.0) -> ArmKernels:
    """An FP32 arm of 10 ms with these kernels in them, (name, ms)."""
    made = kernels(yes, ambiguous, arithmetic="FP32")
    assert made.time is not None
    listed = tuple(NamedKernel(name, None, "float32", "yes", 1.0, ms) for name, ms in top)
    return replace(made, arm=arm, time=replace(made.time, top=listed))


def test_fp32_attention_on_tensor_cores_is_told_by_name_and_share():
    arm = fp32_arm(0.15, (BACKWARD, 1.1), (FORWARD, 0.4), ("ampere_sgemm_128x64_nn", 2.0))
    (told,) = ladder_of(arm).disagreements
    assert told == (
        "the IEEE FP32 arm uses tensor cores in: attention (fmha_cutlassB_f32_aligned_64x64_k32_sm80, "
        "fmha_cutlassF_f32_aligned_64x64_rf_sm80), 15.0% of its kernel time. That is no fault: torch's "
        "memory-efficient attention makes each FP32 product of three TF32 ones, which is about as exact"
    )


def test_fp32_attention_beside_tf32_products_is_two_things():
    arm = fp32_arm(0.4, (BACKWARD, 1.5), (TF32_PRODUCT, 2.5), arm="fp32-configured")
    attention, leak = ladder_of(arm).disagreements
    assert attention.startswith("the FP32 arm uses tensor cores in: attention (fmha_cutlassB")
    assert leak.startswith("the FP32 arm uses tensor cores in: cutlass::Kernel2, 25.0% of its kernel time: in TF32")


@pytest.mark.parametrize(
    ("evidence", "level"),
    [
        ({"counters": counters(tf32=6.6e9)}, "E1 (hardware counters by type)"),
        ({"counters": counters(2e6)}, "E2 (instructions of the tensor pipe)"),
        ({"gpm": gpm(True, 0.002)}, "E3 (NVML GPM)"),
    ],
)
def test_an_fp32_arm_on_tensor_cores_is_flagged_at_every_level(evidence, level):
    (told,) = ladder_of(fp32_arm(0.0, ambiguous=0.153), **evidence).disagreements
    assert told == (
        f"the IEEE FP32 arm uses tensor cores by {level}; no kernel's name shows where, maybe in the 15.3% of its "
        "kernel time whose names can be either"
    )


def test_an_fp32_arm_with_layers_beyond_the_cuda_cores_is_flagged():
    arm = replace(kernels(0.0, 0.5, arithmetic="FP32", beyond=(True,)), arm="fp32")
    (told,) = ladder_of(arm).disagreements
    assert told.startswith("the IEEE FP32 arm uses tensor cores by E5 (arithmetic)")


def test_an_fp32_arm_is_not_held_against_the_formulas_of_products_on_cuda_cores():
    arm = fp32_arm(0.15, (BACKWARD, 1.5))
    (told,) = ladder_of(arm, None, counters(tf32=6.6e9), Flops(4 * 10**9, 8 * 10**9, 0)).disagreements
    assert "attention" in told


def test_an_arm_that_was_not_counted_says_why():
    why = NOT_COUNTED.format(arms="fp16")
    found = ladder_of(kernels(), counters_reason=why, gpm_reason="the counters were not calibrated")
    assert [level.text for level in found.levels[:3]] == [
        "only fp16 is counted: every arm takes a process of its own and up to a minute",
        "only fp16 is counted: every arm takes a process of its own and up to a minute",
        "the counters were not calibrated",
    ]
    assert ladder_of(kernels(), gpm(True), counters(fp16=1e12), None, why, why).levels[0].used is True


def test_another_type_than_the_arms_is_flagged_from_a_tenth_on():
    (told,) = ladder_of(kernels(), None, counters(fp16=8e12, tf32=2e12)).disagreements
    assert told == "20% of the tensor-core operations of this FP16 arm are TF32, which FP32 layers of the arm may do"
    assert ladder_of(kernels(), None, counters(fp16=9.5e12, tf32=0.5e12)).disagreements == ()


def test_counters_far_from_the_formulas_are_flagged():
    flops = Flops(10**12, 2 * 10**12, 0)
    (told,) = ladder_of(kernels(), None, counters(fp16=1.5e12), flops).disagreements
    assert told == "the hardware counted 1.5 TFLOP on tensor cores and formulas 3 in all products of a step"
    assert ladder_of(kernels(), None, counters(fp16=3.3e12), flops).disagreements == ()


def test_counters_are_held_against_the_first_batch_which_they_count_and_not_against_a_mean():
    flops = Flops(2 * 10**12, 4 * 10**12, 0, by_batch=(3 * 10**12, 9 * 10**12))
    assert ladder_of(kernels(), None, counters(fp16=3.3e12), flops).disagreements == ()
    (told,) = ladder_of(kernels(), None, counters(fp16=6e12), flops).disagreements
    assert "formulas 3 in" in told


@given(
    st.none() | st.floats(0, 1).map(lambda yes: kernels(yes)),
    st.none() | st.sampled_from([True, None]).map(gpm),
    st.none() | st.floats(0, 1e15).map(lambda n: counters(fp16=n)),
)
def test_the_answer_is_that_of_the_first_level_with_one(arm, reading, counted):
    found = ladder_of(arm, reading, counted)
    answers = [level.used for level in found.levels if level.used is not None]
    assert found.used == (answers[0] if answers else None)
    assert (found.reached is None) == (not answers)
    assert len(found.levels) == 5
