"""The type that each class of operator gives under the CUDA autocast policy on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emulation_samples import FP32, HALF, both, dtypes, h, region, x


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


Case = Callable[[], Any]
LOWER: dict[str, Case] = {
    "linear": lambda: F.linear(x(2, 3), x(4, 3), x(4)),
    "matmul": lambda: x(2, 3) @ x(3, 4),
    "matmul-3d": lambda: x(2, 3, 4) @ x(4, 5),
    "matmul-16-and-32": lambda: h(2, 3) @ x(3, 4),
    "mm": lambda: torch.mm(x(2, 3), x(3, 4)),
    "mv": lambda: torch.mv(x(2, 3), x(3)),
    "bmm": lambda: torch.bmm(x(2, 3, 4), x(2, 4, 5)),
    "addmm": lambda: torch.addmm(x(2, 4), x(2, 3), x(3, 4)),
    "addmv": lambda: torch.addmv(x(2), x(2, 3), x(3)),
    "addr": lambda: torch.addr(x(2, 3), x(2), x(3)),
    "addbmm": lambda: torch.addbmm(x(3, 5), x(2, 3, 4), x(2, 4, 5)),
    "baddbmm": lambda: torch.baddbmm(x(2, 3, 5), x(2, 3, 4), x(2, 4, 5)),
    "einsum": lambda: torch.einsum("bij,bjk->bik", x(2, 3, 4), x(2, 4, 5)),
    "einsum-of-three": lambda: torch.einsum("ij,jk,kl->il", x(2, 3), x(3, 4), x(4, 5)),
    "multi_dot": lambda: torch.linalg.multi_dot([x(2, 3), x(3, 4), x(4, 5)]),
    "vecdot": lambda: torch.linalg.vecdot(x(2, 3), x(2, 3)),
    "conv1d": lambda: F.conv1d(x(1, 2, 8), x(3, 2, 3)),
    "conv2d": lambda: F.conv2d(x(1, 2, 8, 8), x(3, 2, 3, 3)),
    "conv3d": lambda: F.conv3d(x(1, 2, 4, 4, 4), x(3, 2, 3, 3, 3)),
    "conv1d-same": lambda: F.conv1d(x(1, 2, 8), x(3, 2, 4), padding="same"),
    "conv2d-same": lambda: F.conv2d(x(1, 2, 8, 8), x(3, 2, 3, 3), padding="same"),
    "conv3d-same": lambda: F.conv3d(x(1, 2, 4, 4, 4), x(3, 2, 3, 3, 3), padding="same"),
    "conv2d-circular": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular")(x(1, 2, 8, 8)),
    "conv_tbc": lambda: torch.conv_tbc(x(3, 2, 4), x(2, 4, 5), x(5)),
    "conv_transpose1d": lambda: F.conv_transpose1d(x(1, 2, 8), x(2, 3, 3)),
    "conv_transpose2d": lambda: F.conv_transpose2d(x(1, 2, 8, 8), x(2, 3, 3, 3)),
    "conv_transpose3d": lambda: F.conv_transpose3d(x(1, 2, 4, 4, 4), x(2, 3, 3, 3, 3)),
    "prelu": lambda: nn.PReLU()(x(3)),
    "attention": lambda: F.scaled_dot_product_attention(x(1, 2, 4, 8), x(1, 2, 4, 8), x(1, 2, 4, 8)),
    "attention-causal": lambda: F.scaled_dot_product_attention(*[x(1, 2, 4, 8)] * 3, is_causal=True),
    "attention-float-mask": lambda: F.scaled_dot_product_attention(*[x(1, 2, 4, 8)] * 3, attn_mask=x(4, 4)),
    "lstm_cell": lambda: nn.LSTMCell(3, 4)(x(2, 3)),
    "gru_cell": lambda: nn.GRUCell(3, 4)(x(2, 3)),
    "rnn_cell": lambda: nn.RNNCell(3, 4)(x(2, 3)),
}
TO_FP32: dict[str, Case] = {
    "exp": lambda: h(3).exp(),
    "log": lambda: h(3).log(),
    "pow-scalar": lambda: h(3) ** 2,
    "pow-of-scalar": lambda: 2 ** h(3),
    "pow-tensor": lambda: h(3) ** h(3),
    "reciprocal": lambda: h(3).reciprocal(),
    "rsqrt": lambda: h(3).rsqrt(),
    "softplus": lambda: F.softplus(h(3)),
    "logsumexp": lambda: torch.logsumexp(h(2, 3), 1),
    "layer_norm": lambda: nn.LayerNorm(4)(h(2, 4)),
    "rms_norm": lambda: nn.RMSNorm(4)(h(2, 4)),
    "group_norm": lambda: nn.GroupNorm(2, 4)(h(2, 4, 3)),
    "cosine_similarity": lambda: F.cosine_similarity(h(2, 4), h(2, 4)),
    "cdist": lambda: torch.cdist(h(2, 4), h(3, 4)),
    "mse_loss": lambda: F.mse_loss(h(3), h(3)),
    "l1_loss": lambda: F.l1_loss(h(3), h(3)),
    "cross_entropy": lambda: F.cross_entropy(h(2, 4), torch.tensor([0, 1])),
    "cross_entropy-of-shares": lambda: F.cross_entropy(h(2, 4), h(2, 4)),
    "nll_loss": lambda: F.nll_loss(h(2, 4), torch.tensor([0, 1])),
    "bce_with_logits": lambda: F.binary_cross_entropy_with_logits(h(3), h(3)),
    "interpolate": lambda: F.interpolate(h(1, 1, 4, 4), scale_factor=2, mode="bilinear"),
}
TO_FP32_BY_ARGUMENT: dict[str, Case] = {
    "sum": lambda: h(2, 3).sum(),
    "sum-dim": lambda: h(2, 3).sum(1),
    "sum-dim-keyword": lambda: torch.sum(h(2, 3), dim=1, keepdim=True, dtype=None),
    "prod": lambda: h(3).prod(),
    "prod-dim": lambda: h(2, 3).prod(1),
    "cumsum": lambda: h(3).cumsum(0),
    "cumprod": lambda: h(3).cumprod(0),
    "softmax": lambda: F.softmax(h(2, 3), dim=-1),
    "softmax-method": lambda: h(2, 3).softmax(-1),
    "softmax-torch": lambda: torch.softmax(h(2, 3), dim=-1),
    "log_softmax": lambda: F.log_softmax(h(2, 3), dim=-1),
    "vector_norm": lambda: torch.linalg.vector_norm(h(3)),
    "matrix_norm": lambda: torch.linalg.matrix_norm(h(3, 3)),
    "matrix_norm-one": lambda: torch.linalg.matrix_norm(h(3, 3), 1),
    "norm": lambda: torch.norm(h(3)),
    "norm-p": lambda: torch.norm(h(3), p=3),
    "norm-dim": lambda: torch.norm(h(2, 3), dim=1),
    "norm-dim-keepdim": lambda: h(2, 3).norm(2, 1, True),
    "norm-fro": lambda: torch.norm(h(2, 3), "fro"),
    "norm-linalg": lambda: torch.linalg.norm(h(2, 3)),
    "norm-aten-scalar": lambda: torch.ops.aten.norm.Scalar(h(3)),
    "norm-aten-dim": lambda: torch.ops.aten.norm.ScalarOpt_dim(h(2, 3), 2, [1], True),
    "normalize": lambda: F.normalize(h(2, 3)),
}
DTYPE_GIVEN: dict[str, Callable[[torch.dtype], Any]] = {
    "softmax": lambda d: F.softmax(h(2, 3), -1, dtype=d),
    "softmax-positional": lambda d: torch.softmax(h(2, 3), -1, d),
    "log_softmax": lambda d: F.log_softmax(h(2, 3), -1, dtype=d),
    "sum": lambda d: h(2, 3).sum(dtype=d),
    "sum-dim": lambda d: h(2, 3).sum(1, dtype=d),
    "prod": lambda d: h(3).prod(dtype=d),
    "cumsum": lambda d: h(3).cumsum(0, dtype=d),
    "vector_norm": lambda d: torch.linalg.vector_norm(h(3), dtype=d),
    "norm": lambda d: torch.norm(h(3), dtype=d),
    "norm-dim": lambda d: torch.norm(h(2, 3), dim=1, dtype=d),
}
PROMOTED: dict[str, Callable[[Any, Any], Any]] = {
    "addcmul": lambda a, b: torch.addcmul(a(3), b(3), a(3)),
    "addcdiv": lambda a, b: torch.addcdiv(a(3), b(3), a(3)),
    "atan2": lambda a, b: torch.atan2(a(3), b(3)),
    "cross": lambda a, b: torch.cross(a(2, 3), b(2, 3), dim=1),
    "dot": lambda a, b: torch.dot(a(3), b(3)),
    "vdot": lambda a, b: torch.vdot(a(3), b(3)),
    "tensordot": lambda a, b: torch.tensordot(a(3, 3), b(3, 3), 1),
    "bilinear": lambda a, b: F.bilinear(a(2, 3), b(2, 4), a(5, 3, 4)),
    "grid_sample": lambda a, b: F.grid_sample(a(1, 1, 4, 4), b(1, 2, 2, 2), align_corners=False),
    "scatter_add": lambda a, b: a(4).scatter_add(0, torch.tensor([0, 1]), b(2)),
    "index_put": lambda a, b: a(4).index_put((torch.tensor([1]),), b(1)),
}
UNLISTED: dict[str, Case] = {
    "gelu": lambda: F.gelu(h(3)),
    "silu": lambda: F.silu(h(3)),
    "relu": lambda: F.relu(h(3)),
    "mean": lambda: h(3).mean(),
    "var": lambda: h(3).var(),
    "sqrt": lambda: h(3).sqrt(),
    "dropout": lambda: F.dropout(h(3)),
    "batch_norm": lambda: nn.BatchNorm2d(2)(h(2, 2, 3, 3)),
    "max_pool2d": lambda: F.max_pool2d(h(1, 1, 4, 4), 2),
    "exp-in-place": lambda: h(3).exp_(),
}
ONLY_ON_CPUS_LIST: dict[str, Case] = {
    "cat": lambda: torch.cat([h(3), h(3)]),
    "stack": lambda: torch.stack([h(3), h(3)]),
    "index_copy": lambda: torch.index_copy(h(3), 0, torch.tensor([1]), h(1)),
    "avg_pool3d": lambda: F.avg_pool3d(h(1, 1, 4, 4, 4), 2),
    "max_pool3d": lambda: F.max_pool3d(h(1, 1, 4, 4, 4), 2),
    "adaptive_avg_pool3d": lambda: F.adaptive_avg_pool3d(h(1, 1, 4, 4, 4), 2),
    "reflection_pad1d": lambda: F.pad(h(1, 4, 4), (1, 1), mode="reflect"),
    "replication_pad2d": lambda: F.pad(h(1, 1, 4, 4), (1, 1, 1, 1), mode="replicate"),
    "trace": lambda: torch.trace(h(3, 3)),
}


def each(cases: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


# the type of each class of operator


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@both
@each(LOWER)
def test_an_operator_of_the_lower_list_gives_16_bits(case, dtype):
    with region(dtype):
        assert dtypes(case()) == {dtype}


@both
@each(TO_FP32)
def test_an_operator_of_the_fp32_list_gives_fp32(case, dtype):
    with region(dtype):
        assert dtypes(case()) == {FP32}


@both
@each(TO_FP32_BY_ARGUMENT)
def test_an_operator_of_the_dtype_argument_list_gives_fp32(case, dtype):
    with region(dtype):
        assert dtypes(case()) == {FP32}


@each(DTYPE_GIVEN)
def test_a_given_dtype_is_honoured(case):
    with region():
        assert dtypes(case(HALF)) == {HALF}
        assert dtypes(case(torch.float64)) == {torch.float64}


@each(PROMOTED)
def test_an_operator_of_the_promote_list_takes_the_widest_type(case):
    with region():
        assert dtypes(case(h, x)) == {FP32}
        assert dtypes(case(x, h)) == {FP32}
        assert dtypes(case(h, h)) == {HALF}


@both
@each(UNLISTED)
def test_an_unlisted_operator_runs_in_its_inputs_type(case, dtype):
    with region(dtype):
        assert dtypes(case()) == {dtype}


@each(ONLY_ON_CPUS_LIST)
def test_an_operator_that_only_the_cpus_policy_lists_runs_in_its_inputs_type(case):
    with region():
        assert dtypes(case()) == {HALF}


@pytest.mark.parametrize("join", [torch.cat, torch.stack])
def test_joining_16_and_32_bits_gives_fp32(join):
    with region():
        assert join([h(3), x(3)]).dtype == FP32


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(lambda: x(2, 2).double(), torch.float64), (lambda: torch.ones(2, 2, dtype=torch.long), torch.int64)],
    ids=["float64", "int64"],
)
def test_doubles_and_integers_are_left_alone(make, dtype):
    with region():
        assert (make() @ make()).dtype == dtype
        assert make().sum().dtype == dtype


def test_complex_products_are_left_alone():
    with region():
        assert (torch.ones(2, 2) + 0j).matmul(torch.ones(2, 2) + 0j).dtype == torch.complex64


def test_in_place_and_out_variants_are_not_cast():
    with region():
        assert x(3, 3).addmm_(x(3, 3), x(3, 3)).dtype == FP32
        assert torch.mm(x(3, 3), x(3, 3), out=torch.empty(3, 3)).dtype == FP32


@pytest.mark.parametrize("loss", [F.binary_cross_entropy, nn.BCELoss()], ids=["function", "module"])
def test_binary_cross_entropy_is_refused_in_cudas_words(loss):
    with region(), pytest.raises(RuntimeError, match="unsafe to autocast"):
        loss(torch.rand(3), torch.rand(3))


def test_binary_cross_entropy_is_allowed_in_an_island():
    with region(), torch.autocast("cuda", enabled=False):
        assert F.binary_cross_entropy(torch.rand(3), torch.rand(3)).dtype == FP32
