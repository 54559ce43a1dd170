"""Which operators CUDA autocast casts, and how: read from the installed torch, with a frozen table behind.

The lists change between releases (rms_norm is in some and not in others), so the header that ships inside the wheel
(ATen/autocast_mode.h) is read first. The frozen table is torch 2.13's, for builds that ship no headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class AutocastLists:
    """Operator names ("linear", "pow.Tensor_Scalar") by what CUDA autocast does with them.

    lower: run in FP16/BF16. fp32: run in FP32. fp32_dtype: FP32 through their `dtype` argument unless it is given.
    promote: run in the widest type among the inputs. source: where the lists were read.
    """

    lower: tuple[str, ...]
    fp32: tuple[str, ...]
    fp32_dtype: tuple[str, ...]
    promote: tuple[str, ...]
    source: str


_MACROS = {
    "lower": "AT_FORALL_LOWER_PRECISION_FP",
    "fp32": "AT_FORALL_FP32",
    "fp32_dtype": "AT_FORALL_FP32_SET_OPT_DTYPE",
    "promote": "AT_FORALL_PROMOTE",
}

# from torch 2.13.0's header; a test compares it with the installed one
FROZEN = AutocastLists(
    lower=tuple(
        """_convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d
        conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm mv
        linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
        _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell _scaled_dot_product_flash_attention
        scaled_dot_product_attention""".split()
    ),
    fp32=tuple(
        """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
        pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim
        nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
        hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
        multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
        binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
        _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d
        _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa
        upsample_trilinear3d upsample_bicubic2d _upsample_bicubic2d_aa""".split()
    ),
    fp32_dtype=tuple(
        """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
        linalg_matrix_norm.str_ord sum sum.dim_IntList""".split()
    ),
    promote=tuple("addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add".split()),
    source="frozen table of torch 2.13.0",
)


def parse(header: str) -> AutocastLists | None:
    """The lists in the text of ATen/autocast_mode.h, or None when it does not hold all four macros."""
    found: dict[str, tuple[str, ...]] = {}
    for key, macro in _MACROS.items():
        match = re.search(rf"#define {macro}\(_\)((?:.*\\\n)*.*)", header)
        if match is None:
            return None
        entries = re.findall(r"_\(\s*(\w+)\s*(?:,\s*(\w+)\s*)?\)", match.group(1))
        found[key] = tuple(f"{op}.{overload}" if overload else op for op, overload in entries)
    if not all(found.values()):
        return None
    return AutocastLists(**found, source="ATen/autocast_mode.h")


@cache
def installed() -> AutocastLists:
    """The lists of the installed torch, or the frozen ones."""
    import torch

    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    try:
        text = header.read_text(encoding="utf-8")
    except OSError:
        return FROZEN
    return parse(text) or FROZEN
