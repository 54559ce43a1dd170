"""What kernel names tell: names seen in public traces with their answers, some of them kept away from the rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.costs.kernel_names import Purpose, TensorCores, alignment, purpose, splits_fp32, tensor_cores

SAMPLES = Path(__file__).parents[1] / "samples"


def rows(file: str) -> list[dict[str, str]]:
    return json.loads((SAMPLES / file).read_text())["names"]


SEEN, HELD_OUT = rows("kernel_names.json"), rows("kernel_names_held_out.json")


def short(row: dict[str, str]) -> str:
    return row["name"][:70]


@pytest.mark.parametrize("row", SEEN, ids=short)
def test_a_name_that_the_rules_were_written_for_gets_its_answer(row):
    assert tensor_cores(row["name"]) == row["answer"]


@pytest.mark.parametrize("row", HELD_OUT, ids=short)
def test_a_name_kept_aside_is_never_told_wrong(row):
    # "ambiguous" and "unknown" for a yes or a no would be honest; the other word would not
    told = tensor_cores(row["name"])
    assert {told, row["answer"]} != {TensorCores.YES, TensorCores.NO}
    if row["answer"] in (TensorCores.AMBIGUOUS, TensorCores.UNKNOWN):
        assert told not in (TensorCores.YES, TensorCores.NO)


def test_nine_tenths_of_the_names_kept_aside_get_their_full_answer():
    right = [row for row in HELD_OUT if tensor_cores(row["name"]) == row["answer"]]
    assert len(right) >= 0.9 * len(HELD_OUT)


def test_no_name_is_in_both_files():
    assert not {row["name"] for row in SEEN} & {row["name"] for row in HELD_OUT}
    assert len({row["name"] for row in SEEN + HELD_OUT}) == len(SEEN) + len(HELD_OUT)


@pytest.mark.parametrize("answer", list(TensorCores))
def test_both_files_have_every_answer(answer):
    assert {answer} <= {row["answer"] for row in SEEN + HELD_OUT}


def test_a_plain_pattern_would_fail_on_these_names():
    plain = [row for row in SEEN if ("gemm" in row["name"]) != (row["answer"] == "yes")]
    assert len(plain) > 10


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void my_kernel<1688, 884>(int)", TensorCores.UNKNOWN),
        ("fused_16816_bias", TensorCores.UNKNOWN),
        ("void helper_s1688(int)", TensorCores.UNKNOWN),
        ("ampere_s1688gemm_fp16_128x128_nn", TensorCores.YES),
        ("layer_norm_forward_cuda", TensorCores.UNKNOWN),
        ("void fancy::gemm_kernel<float>(float*)", TensorCores.AMBIGUOUS),
        ("void (anonymous namespace)::my_attention<float>", TensorCores.AMBIGUOUS),
        ("nvjet_sm90_sss_64x32_64x16_1x2_h_bz_NNN", TensorCores.AMBIGUOUS),
        ("nvjet_sm90_sss_tf32_64x32_64x16_1x2_h_bz_NNN", TensorCores.YES),
        ("", TensorCores.UNKNOWN),
    ],
)
def test_digits_alone_and_the_word_gemm_alone_prove_nothing(name, expected):
    assert tensor_cores(name) == expected


@given(st.sampled_from([row for row in SEEN if row["name"].startswith("void ")]))
def test_the_return_type_in_front_changes_nothing(row):
    assert tensor_cores(row["name"].removeprefix("void ")) == tensor_cores(row["name"])


@given(st.text(max_size=60))
def test_every_text_has_an_answer_and_a_purpose(name):
    assert tensor_cores(name) in TensorCores
    assert purpose(name) in Purpose
    assert alignment(name) is None or alignment(name) >= 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("void cudnn::engines_precompiled::nchwToNhwcKernel<__half, __half, float>", Purpose.TRANSPOSE),
        ("void cudnn::ops::nhwcToNchwKernel<float, float, float>", Purpose.TRANSPOSE),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", Purpose.COPY),
        ("Memcpy DtoD (Device -> Device)", Purpose.COPY),
        ("nvjet_sm90_hsh_128x128_64x4_1x1_h_bz_TNN", Purpose.PRODUCT),
        ("ampere_sgemm_128x64_nn", Purpose.PRODUCT),
        ("void at::native::(anonymous namespace)::conv_depthwise2d_forward_kernel<3, float, int>", Purpose.PRODUCT),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float>", Purpose.OTHER),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::MulFunctor<float>>", Purpose.OTHER),
        ("triton_poi_fused_mm_0", Purpose.OTHER),
    ],
)
def test_the_purpose_of_a_kernel(name, expected):
    assert purpose(name) == expected


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("cutlass_75_tensorop_f16_s1688gemm_f16_128x128_nn_align1", 1),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_256x128_64x3_tn_align2>(X::Params)", 2),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize32x32x8_ffma_aligna4_alignc4_execute_kernel__5x_cublas", 4),
        ("sm80_xmma_gemm_f16f16_f16f32_f32_nn_n_aligna8_alignc2_execute", 2),
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_TNN", None),
    ],
)
def test_the_alignment_in_a_name_is_the_smallest(name, elements):
    assert alignment(name) == elements


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm80(X::Params)", True),
        ("fmha_cutlassB_f32_aligned_64x64_k32_dropout_sm80(X::Params)", True),
        ("fmha_cutlassF_f32_aligned_64x64_rf_sm75(X::Params)", False),
        ("fmha_cutlassF_f16_aligned_64x64_rf_sm80(X::Params)", False),
        ("cutlass_80_tensorop_s1688gemm_128x128_32x3_nn_align4", False),
    ],
)
def test_attention_that_makes_fp32_of_tf32_products_is_known_by_its_type_and_architecture(name, splits):
    assert splits_fp32(name) is splits
    assert not splits or tensor_cores(name) == TensorCores.YES
