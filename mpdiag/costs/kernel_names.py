"""What a GPU kernel's name tells: whether it computes on tensor cores, and what it is for.

A name is evidence, not proof. What a name cannot tell is "ambiguous" and counts as neither; a name that no rule
knows is "unknown". No type is read from a name: cuDNN's attention says f16 for BF16 too.

Rules: first what cannot be tensor cores, then what must be, then what still looks like a matrix product. Numbers
such as 884 or 16816 (the shape of one tensor-core instruction) count only behind a letter and before gemm, conv or
cudnn: bare digits stand in template arguments as well.
"""

from __future__ import annotations

import re
from enum import StrEnum


class TensorCores(StrEnum):
    """Whether a kernel computes on tensor cores, by its name."""

    YES = "yes"
    NO = "no"
    AMBIGUOUS = "ambiguous"
    UNKNOWN = "unknown"


class Purpose(StrEnum):
    """What a kernel is there for, as far as its name tells. A convolution or an attention is a product, too."""

    TRANSPOSE = "transpose"
    COPY = "copy"
    PRODUCT = "product"
    OTHER = "other"


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# torch's own tinygemm is the one tensor-core kernel of at::native that is no cuBLAS, cuDNN or CUTLASS kernel
_NATIVE_PRODUCT = _any(r"tinygemm_m\d+n\d+k\d+")

# products on CUDA cores
_CUDA_CORE_PRODUCT = _any(
    r"_ffma",  # FP32 multiply-add, also in names that begin with xmma
    r"simt",  # CUTLASS's word for CUDA cores
    r"_f32f32_f32(_|$)",  # xmma's second word is the arithmetic: FP32, whatever goes in; TF32 reads _tf32f32_f32
    r"(?<![a-z0-9])[sdhcz]gemm",  # ampere_sgemm, implicit_convolve_sgemm: no digits, so no tensor-core instruction
    r"scudnn",
    r"implicit_?convolve\w*_sgemm|explicit_convolve",
    r"gemv|gemmSN_|gemmk1|(?<![a-z])dot_kernel",
    r"winograd\w*(Data|Filter|Output|Delta)\d|generateWinogradTiles",
    r"fft[12]d_|region_transform",
    r"[dw]grad2d_(alg|grouped_direct)|conv2d_grouped_direct|[dw]grad_(alg\d+_)?engine",
    r"conv_depthwise\dd",
    r"fmha_cutlass[FB]_\w*_sm50",  # before Volta there were no tensor cores
    r"fmha_cutlass[FB]_f32_\w*_sm7\d",  # CUTLASS makes FP32 of TF32 products from sm80 on
)

# namespaces and generators that hold no other products
_NOT_BY_ORIGIN = _any(
    r"^(void )?at(_cuda_detail)?::",
    r"^(void )?\(anonymous namespace\)::\w*(softmax|norm|dropout|embedding)",  # torch's own, outside at::native
    r"^(void )?(at_cuda_detail::|thrust::)?(cuda_cub::)?cub::",
    r"^(void )?thrust::",
    r"^_ZN2at",
    r"^triton_(poi|red|per)_",  # Inductor's pointwise, reduction and persistent reduction
    r"^nccl",
    r"^mem(cpy|set)\b",
)

# what prepares a product, ends it, or has nothing to do with one
_BESIDE = _any(
    r"split_?k_?reduce|reduce_?split_?k|reduce_kernel|reduce_1block|reduce_wgrad_\w*helper",
    r"nchwToNhwc|nhwcToNchw|AddPadding|convertTensor|tensorTransform|compute\w*Offsets|im2col|col2im",
    r"precompute_indices|flip_filter|scalePackedTensor|init_device_workspace",
    r"flash_bwd_(dot_do_o|convert_d\w+|clear_\w+|preprocess|postprocess)|splitkv_combine",
    r"compute_dot_do_o|convert_dq_to_16bits",
    r"(rnn|lstm|gru|generic)\w*_?elementwise|elementwise_?(rnn|lstm|gru)|elemWiseRNNcell",
    r"elementwise_kernel|copy_kernel|CatArrayBatchedCopy|multi_tensor_apply",
    r"cudnn::(ops|bn_|norm|pooling|reduction)|::bn_[fb]w_|::batchnorm_[fb]wtr",
)

_SHAPE = r"(884|1688|8816|16816|161616|16832|16864)"  # m, n and k of one tensor-core instruction

# torch's memory-efficient attention in FP32, from sm80 on: CUTLASS makes each FP32 product of three TF32 ones
# (OpMultiplyAddFastF32; an H100's counters read 3.5 times its FLOPs in TF32: tiles are padded)
_SPLIT_FP32 = r"fmha_cutlass[FB]_f32_\w*_sm(8|9|1\d)\d"

_YES = _any(
    r"nvjet(?!_(sm\d+_)?sss_(?!tf32))",  # cuBLASLt's generator from sm90 on; FP32 throughout may be anything
    r"tensor_?op",
    rf"(?<![a-z0-9])[a-z]{_SHAPE}(tf32)?(gemm|cudnn|conv|fprop|dgrad|wgrad|_)",
    r"tensor\d+x\d+x\d+",
    r"(?<![a-z])(h|hg|wg|qg|i|ig|b|d|g|u|w)mma",
    r"utc[a-z]*mma|tcgen05",
    r"sm(90|10\d|12\d)_xmma",
    r"Sm(90|100|120)\w*(Gmma|Umma|Mma)|MainloopSm\d+",
    r"SM\d+_\d+x\d+x\d+_F\d+",  # CuTe's name of one tensor-core instruction
    r"xmma_(sparse_)?(gemm|fprop|dgrad|wgrad|implicit|warp_specialized)",
    r"fmha_cutlass[FB]_(f16|bf16)_",
    _SPLIT_FP32,
    r"(?<![a-z])flash_(fwd|bwd)_(kernel|splitkv_kernel|dq_dk_dv|dkv|dq)|FlashAttn(Fwd|Bwd)|FlashAttention(For|Back)ward",
    r"sdpa_sm\d+_flash",  # cuDNN's attention engines are written for tensor cores only
)

_PRODUCT_LIKE = _any(
    r"gemm|matmul|cutlass|cublas|nvjet|(?<![a-z])b?mm(?![a-z])|(?<![a-z])mma|baddbmm",
    r"conv(?!ert)|fprop|[dw]grad|winograd|xmma|cudnn_generated",
    r"attention|attn|fmha|flash|sdpa|rnn|lstm|(?<![a-z])gru",
    r"^triton_(tem|mm|bmm)",
)

_TRANSPOSE = _any(r"nchwToNhwc|nhwcToNchw|transpose_readWrite|permute_kernel|transpose_kernel|batch_transpose")
_COPY = _any(r"copy_kernel|direct_copy|copy_device_to_device|CatArrayBatchedCopy|^memcpy\b")
_ALIGN = re.compile(r"_align[a-c]?(\d+)")


def tensor_cores(name: str) -> TensorCores:
    """Whether a kernel of this name computes on tensor cores: yes, no, ambiguous, or unknown to every rule."""
    if _NATIVE_PRODUCT.search(name):
        return TensorCores.YES
    if any(rule.search(name) for rule in (_NOT_BY_ORIGIN, _BESIDE, _CUDA_CORE_PRODUCT)):
        return TensorCores.NO
    if _YES.search(name):
        return TensorCores.YES
    return TensorCores.AMBIGUOUS if _PRODUCT_LIKE.search(name) else TensorCores.UNKNOWN


def splits_fp32(name: str) -> bool:
    """Whether this kernel multiplies FP32 on tensor cores in IEEE's accuracy or nearly: three TF32 products for one."""
    return re.search(_SPLIT_FP32, name) is not None


def purpose(name: str) -> Purpose:
    """What a kernel is there for: a layout change, a copy or cast, a product on whatever cores, or else."""
    if _TRANSPOSE.search(name):
        return Purpose.TRANSPOSE
    if _COPY.search(name):
        return Purpose.COPY
    if _BESIDE.search(name):
        return Purpose.OTHER
    if _NATIVE_PRODUCT.search(name) or _CUDA_CORE_PRODUCT.search(name):
        return Purpose.PRODUCT
    product = not _NOT_BY_ORIGIN.search(name) and (_YES.search(name) or _PRODUCT_LIKE.search(name))
    return Purpose.PRODUCT if product else Purpose.OTHER


def alignment(name: str) -> int | None:
    """Elements that one load of this kernel takes (`_align1` is 1), the smallest named; None where the name has none.

    1, 2 or 4 on 16-bit data means that a dimension or stride was no multiple of 8: tensor cores run, but slower.
    """
    found = [int(number) for number in _ALIGN.findall(name)]
    return min(found) if found else None
