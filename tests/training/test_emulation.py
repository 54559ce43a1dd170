"""The CUDA autocast policy on a CPU: types, gradients, and everything as before afterwards."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import autocast_mode
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree as pytree

from mpdiag.target.batches import tensors_in
from mpdiag.training.cuda_regions import cuda_regions_on_cpu
from mpdiag.training.emulation import cuda_policy

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
both = pytest.mark.parametrize("dtype", [HALF, BF16], ids=["float16", "bfloat16"])


@contextmanager
def region(dtype: torch.dtype = HALF) -> Iterator[None]:
    """One emulated autocast region."""
    with cuda_policy() as forget, torch.autocast("cpu", dtype=dtype):
        try:
            yield
        finally:
            forget()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def h(*shape: int) -> torch.Tensor:
    """16-bit inputs in the region's type, as a linear layer would hand them on."""
    return torch.rand(*shape).add(0.1).to(torch.get_autocast_dtype("cpu"))


def dtypes(value: Any) -> set[torch.dtype]:
    return {t.dtype for t in tensors_in(value) if t.is_floating_point()}


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


def test_fp32_operators_compute_in_fp32_and_are_not_merely_widened():
    # 65504^2 is infinite in FP16
    with region():
        assert torch.tensor([65504.0], dtype=HALF).pow(2).item() == 65504.0**2
        assert torch.full((4,), 65504.0, dtype=HALF).sum().item() == 4 * 65504.0


def test_softmax_is_more_exact_than_16_bits():
    with region():
        logits = h(8)
        assert torch.equal(F.softmax(logits, -1), F.softmax(logits.float(), -1))
        assert not torch.equal(F.softmax(logits, -1), F.softmax(logits.float(), -1).half().float())


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


@both
@pytest.mark.parametrize("log", [True, False])
def test_a_softmax_in_16_bits_sums_in_fp32_and_rounds_once_each_way(dtype, log):
    # F.cross_entropy asks for the type of its logits; a CPU's own kernel makes zeros of small gradients
    logits = (3 * torch.randn(256, 11)).to(dtype)
    logits[:, 0] += 8
    logits.requires_grad_()
    out = torch.randn(256, 11).to(dtype)
    function = torch.log_softmax if log else torch.softmax
    with region(dtype):
        result = function(logits, 1, dtype=dtype)
    exact = function(logits.detach().float(), 1).to(dtype)
    assert torch.equal(result, exact)
    (found,) = torch.autograd.grad(result, logits, out)
    wide, kept = out.double(), exact.double()
    share = kept.exp() if log else kept
    paper = wide - share * wide.sum(1, keepdim=True) if log else share * (wide - (wide * share).sum(1, keepdim=True))
    # FP32 sums in another order: by half a unit of the 16 bits at the most
    torch.testing.assert_close(found.double(), paper, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-6)


def test_a_cross_entropy_of_fp16_logits_keeps_the_gradient_of_a_sure_target():
    logits = torch.tensor([[7.0, 0.0, 0.0]], dtype=HALF, requires_grad=True)
    with region():
        F.cross_entropy(logits, torch.tensor([0])).backward()
    share = math.exp(-0.001822)  # log_softmax is -0.0018222, which FP16 has as -0.001822
    assert logits.grad[0, 0].item() == pytest.approx(share - 1, rel=2e-3)


@pytest.mark.parametrize("loss", [F.binary_cross_entropy, nn.BCELoss()], ids=["function", "module"])
def test_binary_cross_entropy_is_refused_in_cudas_words(loss):
    with region(), pytest.raises(RuntimeError, match="unsafe to autocast"):
        loss(torch.rand(3), torch.rand(3))


def test_binary_cross_entropy_is_allowed_in_an_island():
    with region(), torch.autocast("cuda", enabled=False):
        assert F.binary_cross_entropy(torch.rand(3), torch.rand(3)).dtype == FP32


# layers


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.LSTM(3, 4),
        lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True, dropout=0.1),
        lambda: nn.LSTM(3, 4, proj_size=2),
        lambda: nn.GRU(3, 4),
        lambda: nn.GRU(3, 4, num_layers=2, bidirectional=True),
        lambda: nn.RNN(3, 4),
        lambda: nn.RNN(3, 4, nonlinearity="relu"),
    ],
    ids=["lstm", "lstm-deep", "lstm-projected", "gru", "gru-deep", "rnn-tanh", "rnn-relu"],
)
def test_a_recurrent_layer_gives_16_bit_outputs_and_states(make, packed):
    layer = make()
    inputs = pack_sequence([x(5, 3), x(2, 3)]) if packed else x(5, 2, 3)
    with region():
        output = layer(inputs)
    assert dtypes(output) == {HALF}
    assert isinstance(output[0], PackedSequence) == packed


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_gets_fp32_gradients_of_16_bit_values(make):
    layer = make(3, 4)
    with region():
        output, _ = layer(x(5, 2, 3))
    output.float().pow(2).sum().backward()
    for weight in layer.parameters():
        assert weight.grad.dtype == FP32
        assert torch.equal(weight.grad, weight.grad.half().float())
        assert weight.grad.abs().sum() > 0


def test_a_recurrent_layer_is_near_its_fp32_self():
    layer, inputs = nn.LSTM(3, 4), pack_sequence([x(5, 3), x(2, 3)])
    expected = layer(inputs)[0].data
    with region():
        found = layer(inputs)[0].data
    assert 0 < (found.float() - expected).abs().max() < 2**-9


def test_multihead_attention_gives_16_bits_and_fp32_weights():
    layer = nn.MultiheadAttention(8, 2)
    with region():
        output, weights = layer(x(3, 2, 8), x(3, 2, 8), x(3, 2, 8))
    assert (output.dtype, weights.dtype) == (HALF, FP32)  # the weights are a softmax


def test_multihead_attention_without_weights_gives_16_bits():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    with region():
        output, weights = layer(x(2, 3, 8), x(2, 3, 8), x(2, 3, 8), need_weights=False)
    assert (output.dtype, weights) == (HALF, None)


def test_a_transformer_encoder_layer_has_the_types_of_cuda():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    seen = {}
    for name, module in layer.named_modules():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: dtypes(output)}))
    with region():
        layer(x(2, 3, 8))
    assert seen["self_attn"] == seen["linear1"] == seen["linear2"] == {HALF}
    assert seen["norm1"] == seen["norm2"] == seen[""] == {FP32}


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_encoder_layer_evaluates_without_grad_as_it_trains(batch_first):
    # CUDA autocast keeps nn.TransformerEncoderLayer off its fused path; there is no such entry on its list
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=batch_first)
    inputs = x(4, 5, 16)
    with region():
        trained = layer(inputs)
    layer.eval()
    with torch.no_grad(), region():
        evaluated = layer(inputs)
    assert torch.equal(evaluated, trained)


def test_multihead_attention_evaluates_without_grad_as_it_trains():
    layer = nn.MultiheadAttention(16, 2, batch_first=True)
    inputs = x(4, 5, 16)
    with region():
        trained = layer(inputs, inputs, inputs, need_weights=False)[0]
    layer.eval()
    with torch.no_grad(), region():
        evaluated = layer(inputs, inputs, inputs, need_weights=False)[0]
    assert evaluated.dtype == HALF
    assert torch.equal(evaluated, trained)


@both
def test_conv_same_equals_conv_with_the_padding_written_out(dtype):
    image, weight = x(1, 2, 8, 8), x(3, 2, 3, 3)
    with region(dtype):
        same, written = F.conv2d(image, weight, padding="same"), F.conv2d(image, weight, padding=1)
    assert torch.equal(same, written)


def test_user_code_that_asks_whether_autocast_is_on_hears_yes():
    # torch's own layers ask so too: nn.MultiheadAttention and nn.TransformerEncoderLayer choose their path by it
    with region():
        assert torch.is_autocast_enabled()
        assert torch.get_autocast_dtype("cuda") == HALF
    assert not torch.is_autocast_enabled()


# gradients round where a GPU rounds


def linear_gradient(weight: float, inputs: list[float], upstream: list[float], dtype: torch.dtype = HALF) -> float:
    """The weight gradient of a 1 -> 1 Linear, sum(inputs * upstream), as the emulation gives it."""
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(weight)
    with region(dtype):
        output = layer(torch.tensor(inputs)[:, None])
    output.backward(torch.tensor(upstream, dtype=dtype)[:, None])
    return layer.weight.grad.item()


@pytest.mark.parametrize(
    ("inputs", "upstream", "expected"),
    [
        ([2.0], [3.0], 6.0),
        ([2048.0, 1.0], [1.0, 1.0], 2048.0),  # 2049 is a tie to the even 2048
        ([2048.0, 3.0], [1.0, 1.0], 2052.0),  # 2051 is a tie to the even 2052
        ([256.0], [255.875], 65504.0),
        ([256.0], [256.0], float("inf")),  # 65536
        ([32768.0, 32752.0], [1.0, 1.0], float("inf")),  # 65520, the first to overflow
        ([32768.0, 32736.0], [1.0, 1.0], 65504.0),
        ([2.0**-13], [2.0**-13], 0.0),  # 2^-26
        ([2.0**-13], [2.0**-12], 0.0),  # 2^-25, the tie
        ([2.0**-13], [1.5 * 2.0**-12], 2.0**-24),
        ([2.0**-12], [2.0**-12], 2.0**-24),
        ([60000.0, -60000.0, 1.0], [4.0, 4.0, 1.0], 1.0),  # sums run in FP32: no overflow on the way
    ],
)
def test_the_weight_gradient_of_a_linear_is_the_fp32_sum_rounded_once_to_fp16(inputs, upstream, expected):
    assert linear_gradient(0.5, inputs, upstream) == expected


def test_a_bf16_weight_gradient_neither_overflows_nor_underflows_there():
    assert linear_gradient(0.5, [256.0], [256.0], BF16) == 65536.0
    assert linear_gradient(0.5, [2.0**-13], [2.0**-13], BF16) == 2.0**-26
    assert linear_gradient(0.5, [256.0, 1.0], [1.0, 1.0], BF16) == 256.0  # 257 is a tie to the even 256


def test_the_weight_gradient_of_a_random_linear_is_the_fp32_product_rounded():
    layer, inputs, upstream = nn.Linear(16, 8), x(32, 16), x(32, 8).half()
    with region():
        output = layer(inputs)
    output.backward(upstream)
    product = upstream.float().T @ inputs.half().float()
    assert torch.equal(layer.weight.grad, product.half().float())
    assert torch.equal(layer.bias.grad, upstream.float().sum(0).half().float())
    assert not torch.equal(layer.weight.grad, product)


def test_an_activation_gradient_is_rounded_on_its_way_through_a_linear():
    inputs = torch.ones(1, 1, requires_grad=True)
    with region():
        output = F.linear(inputs, torch.tensor([[2.0**-20]]))
    output.backward(torch.tensor([[2.0**-6]], dtype=HALF))
    assert inputs.grad.item() == 0.0  # 2^-26


def test_an_activation_gradient_that_overflows_becomes_infinite():
    inputs = torch.ones(1, 1, requires_grad=True)
    with region():
        output = F.linear(inputs, torch.tensor([[512.0]]))
    output.backward(torch.tensor([[128.0]], dtype=HALF))
    assert inputs.grad.item() == float("inf")


def test_an_fp32_loss_gradient_is_rounded_where_it_enters_16_bits():
    layer = nn.Linear(1, 1, bias=False)
    with region():
        loss = layer(torch.ones(1, 1)).float().sum() * 2.0**-26
    loss.backward()
    assert layer.weight.grad.item() == 0.0


def test_a_forward_that_overflows_becomes_infinite():
    with region():
        assert F.linear(torch.tensor([[256.0]]), torch.tensor([[256.0]])).item() == float("inf")
        assert F.linear(torch.tensor([[256.0, -256.0]]), torch.tensor([[256.0, 256.0]])).item() == 0.0


# the weight cache


def shared_weight_gradient(cached: bool) -> float:
    """The gradient of a weight used twice: 2048 from one use and 1 from the other."""
    weight = nn.Parameter(torch.ones(1, 1))
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(cached)
    try:
        with cuda_policy(), torch.autocast("cpu", dtype=HALF, cache_enabled=cached):
            total = F.linear(torch.tensor([[2048.0]]), weight).float() + F.linear(torch.ones(1, 1), weight).float()
        total.backward()
    finally:
        torch.set_autocast_cache_enabled(before)
    return weight.grad.item()


def test_two_uses_of_a_weight_add_their_gradients_in_fp16():
    assert shared_weight_gradient(cached=True) == 2048.0  # 2049 in FP32


def test_without_the_cache_two_uses_add_their_gradients_in_fp32():
    assert shared_weight_gradient(cached=False) == 2049.0


def casts_of(weight: torch.Tensor, body: Callable[[], Any]) -> int:
    """How many 16-bit copies of a weight a body makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0] is weight:
                self.count += 1
            return func(*args, **(kwargs or {}))

    with Casts() as casts:
        body()
    return casts.count


def test_a_weight_is_cast_once_a_region():
    weight = nn.Parameter(x(3, 3))

    def body() -> None:
        with region():
            F.linear(x(2, 3), weight)
            F.linear(x(2, 3), weight)

    assert casts_of(weight, body) == 1


def test_a_weight_is_cast_anew_in_the_next_region():
    weight = nn.Parameter(x(3, 3))

    def body() -> None:
        with cuda_policy() as forget:
            for _ in range(3):
                with torch.autocast("cpu", dtype=HALF):
                    F.linear(x(2, 3), weight)
                forget()

    assert casts_of(weight, body) == 3


def test_a_weight_that_was_stepped_between_regions_is_seen_with_its_new_value():
    weight = nn.Parameter(torch.ones(1, 1))
    with cuda_policy() as forget:
        for expected in (1.0, 2.0):
            with torch.autocast("cpu", dtype=HALF):
                assert F.linear(torch.ones(1, 1), weight).item() == expected
            forget()
            weight.data += 1


def test_a_copy_made_without_grad_does_not_serve_a_training_forward():
    weight = nn.Parameter(torch.ones(1, 1))
    with region():
        with torch.no_grad():
            F.linear(torch.ones(1, 1), weight)
        output = F.linear(torch.full((1, 1), 3.0), weight)
    output.backward()
    assert weight.grad.item() == 3.0


def test_no_weight_is_kept_alive_after_the_block():
    weight = nn.Parameter(x(3, 3))
    with region():
        F.linear(x(2, 3), weight)
    alive = weakref.ref(weight)
    del weight
    assert alive() is None


# the user's own islands


@pytest.mark.parametrize(
    "island",
    [
        lambda: torch.autocast("cuda", enabled=False),
        lambda: torch.autocast(device_type="cuda", enabled=False),
        lambda: torch.amp.autocast("cuda", enabled=False),
        lambda: torch.autocast("cpu", enabled=False),
    ],
    ids=["autocast", "keyword", "amp", "cpu"],
)
def test_a_disabled_island_computes_in_fp32(island):
    with region():
        with island():
            inside = x(2, 3) @ x(3, 4)
        outside = x(2, 3) @ x(3, 4)
    assert (inside.dtype, outside.dtype) == (FP32, HALF)


@pytest.mark.filterwarnings("ignore:.*torch.cuda.amp.autocast")
def test_an_island_of_the_older_spelling_computes_in_fp32():
    with region(), torch.cuda.amp.autocast(enabled=False):
        assert (x(2, 3) @ x(3, 4)).dtype == FP32


def test_an_island_as_a_decorator_computes_in_fp32():
    with region():

        @torch.autocast("cuda", enabled=False)
        def forward():
            return x(2, 3) @ x(3, 4)

        assert forward().dtype == FP32


def test_regions_on_cuda_are_the_cpus_only_within_a_cpu_run():
    init = torch.autocast.__init__
    with cuda_regions_on_cpu(), region():
        assert (torch.autocast("cuda").device, torch.autocast("cuda", HALF)._enabled) == ("cpu", True)
        assert torch.autocast("cpu", BF16, False)._enabled is False
    assert torch.autocast.__init__ is init


def test_an_island_in_another_type_computes_in_that_type():
    with region(), torch.autocast("cuda", dtype=BF16):
        assert (x(2, 3) @ x(3, 4)).dtype == BF16


# afterwards


class Product(torch.autograd.Function):
    """A hand-written product as torch's documentation has users decorate it for CUDA: in FP32."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, a: torch.Tensor, named: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        b = named["b"][0]
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        _, b = ctx.saved_tensors
        return gradient @ b.t(), None


def test_a_custom_function_that_casts_its_inputs_on_cuda_casts_them_here():
    a, b = h(2, 3).half().requires_grad_(), x(3, 4)
    with region():
        product = Product.apply(a, {"b": [b]})
        product.sum().backward()
    assert product.dtype == FP32
    assert torch.equal(product, a.detach().float() @ b)
    assert a.grad is not None
    assert torch.equal(a.grad, (torch.ones(2, 4) @ b.t()).half())


def test_a_custom_function_keeps_double_inputs_as_cuda_does():
    with region():
        assert Product.apply(x(2, 3).double(), {"b": [x(3, 4).double()]}).dtype == torch.float64


def test_a_custom_function_casts_nothing_in_a_pure_policy():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert Product.apply(x(2, 3).half(), {"b": [x(3, 4).half()]}).dtype == HALF


def test_after_the_block_a_custom_function_casts_nothing_on_a_cpu():
    theirs = autocast_mode._cast
    with pytest.raises(RuntimeError, match="unsafe"), region():
        F.binary_cross_entropy(Product.apply(h(2, 3), {"b": [x(3, 4)]}), torch.rand(2, 4))
    assert autocast_mode._cast is theirs
    assert autocast_mode._cast(x(2).half(), "cuda", FP32).dtype == HALF


def registrations() -> set[str]:
    return set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCPU"))


def cpu_behaviour() -> list[str]:
    """The types that plain CPU autocast gives: it differs from CUDA's in softmax, layer_norm, sum and BCE."""
    with torch.autocast("cpu", dtype=BF16):
        product = x(3, 3) @ x(3, 3)
        results = [
            product,
            product.softmax(-1),
            product.sum(),
            product.exp(),
            F.layer_norm(product, (3,)),
            F.avg_pool3d(product.reshape(1, 1, 1, 3, 3), (1, 3, 3)),
            torch.cat([product, x(3, 3)]),
            F.binary_cross_entropy(torch.rand(3), torch.rand(3)),
            nn.LSTM(3, 4)(x(5, 2, 3))[0],
            torch.norm(product),
            torch.linalg.svdvals(x(3, 3)),
        ]
    return [str(result.dtype) for result in results]


def test_within_the_block_the_cpu_behaves_otherwise():
    # so that the tests below could fail
    before = registrations()
    with cuda_policy():
        assert registrations() != before


def test_after_the_block_the_registrations_are_as_before():
    before = registrations()
    with region():
        pass
    assert registrations() == before


def test_after_the_block_plain_cpu_autocast_is_as_before():
    before = cpu_behaviour()
    with region():
        F.linear(x(2, 3), x(4, 3)).softmax(-1)
    assert cpu_behaviour() == before
    assert "torch.bfloat16" in before[1]  # softmax, FP32 under CUDA's policy


def test_after_the_block_autocasts_constructor_is_torchs_own():
    original = torch.autocast.__init__
    with cuda_policy():
        assert torch.autocast.__init__ is not original
    assert torch.autocast.__init__ is original


def test_an_exception_inside_leaves_everything_as_before():
    before, behaviour, original = registrations(), cpu_behaviour(), torch.autocast.__init__
    with pytest.raises(RuntimeError, match="unsafe"), region():
        F.binary_cross_entropy(torch.rand(3), torch.rand(3))
    assert registrations() == before
    assert cpu_behaviour() == behaviour
    assert torch.autocast.__init__ is original
    assert not torch.is_autocast_enabled("cpu")


def test_the_block_may_be_entered_again_and_again():
    before = registrations()
    for _ in range(3):
        with region():
            assert x(2, 2).matmul(x(2, 2)).softmax(-1).dtype == FP32
    assert registrations() == before


def test_outside_a_region_the_block_changes_nothing():
    a, b = x(3, 3), x(3, 3)
    expected = a @ b
    with cuda_policy():
        assert torch.equal(a @ b, expected)
        assert F.binary_cross_entropy(torch.full((3,), 0.5), torch.ones(3)).item() == pytest.approx(0.6931472)


def test_backward_after_the_block_gives_the_same_gradients_as_within_it():
    gradients = []
    for inside in (True, False):
        torch.manual_seed(1)
        layer = nn.Linear(3, 3)
        with cuda_policy() as forget:
            with torch.autocast("cpu", dtype=HALF):
                loss = layer(x(2, 3)).softmax(-1).pow(2).sum()
            forget()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


# a pure 16-bit model


def test_a_pure_policy_casts_nothing_to_fp32():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        product = x(3, 3).half() @ x(3, 3).half()
        assert product.dtype == HALF
        assert product.softmax(-1).dtype == HALF
        assert product.sum().dtype == HALF
        assert F.layer_norm(product, (3,)).dtype == HALF


def test_a_pure_policy_leaves_fp32_operands_alone():
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert (x(3, 3) @ x(3, 3)).dtype == FP32


def test_a_pure_policy_accumulates_products_in_fp32():
    ones = torch.ones(1, 4096, dtype=HALF)
    with cuda_policy(pure=True), torch.autocast("cpu", dtype=HALF):
        assert (ones @ ones.T).item() == 4096.0  # adding ones one by one in FP16 stalls at 2048


# against torch's own 16-bit kernels


def ulps_apart(ours: torch.Tensor, theirs: torch.Tensor, terms: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference in units in the last place of the reference, FP32's own error of the sum apart.

    terms: sum of the magnitudes added up. FP32 sums of n terms differ by their order by up to about n * 2^-24 of it,
    which is more than a unit of a result that nearly cancelled.
    """
    mantissa = {HALF: 10, BF16: 7}[dtype]
    ours, theirs = ours.double(), theirs.double()
    smallest = -24 if dtype == HALF else -133
    exponent = torch.frexp(theirs.abs().clamp(min=2.0**-126)).exponent - 1
    unit = torch.ldexp(torch.ones_like(theirs), (exponent - mantissa).clamp(min=smallest))
    slack = terms.double().abs() * 2.0**-20
    return float((((ours - theirs).abs() - slack).clamp(min=0) / unit).max())


KERNELS: dict[str, tuple[Callable[..., torch.Tensor], list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(16, 64), (32, 64), (32,)]),
    "conv2d": (F.conv2d, [(2, 8, 10, 10), (16, 8, 3, 3), (16,)]),
    "conv1d": (F.conv1d, [(2, 8, 32), (16, 8, 5), (16,)]),
    "bmm": (torch.bmm, [(4, 16, 32), (4, 32, 8)]),
    "matmul": (torch.matmul, [(2, 16, 32), (32, 8)]),
}


def run_kernel(
    name: str, dtype: torch.dtype
) -> list[tuple[str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(what, emulated, torch's own, exact in FP64, sum of magnitudes) of the output and of every gradient."""
    op, shapes = KERNELS[name]
    ours = [x(*shape).requires_grad_() for shape in shapes]
    native = [tensor.detach().to(dtype).requires_grad_() for tensor in ours]
    exact = [tensor.detach().double().requires_grad_() for tensor in native]
    sizes = [tensor.detach().double().abs().requires_grad_() for tensor in native]
    with region(dtype):
        emulated = op(*ours)
    outputs = [emulated, op(*native), op(*exact), op(*sizes)]
    upstream = torch.randn(emulated.shape).to(dtype)
    for output, gradient in zip(outputs, (upstream, upstream, upstream.double(), upstream.double().abs()), strict=True):
        output.backward(gradient)
    found = [("output", *(output.detach() for output in outputs))]
    for index, tensors in enumerate(zip(ours, native, exact, sizes, strict=True)):
        found.append((f"gradient {index}", *(tensor.grad for tensor in tensors)))
    return found


@both
@pytest.mark.parametrize("name", KERNELS)
def test_the_emulation_rounds_the_exact_result_once_forward_and_backward(name, dtype):
    for what, emulated, _, exact, size in run_kernel(name, dtype):
        assert ulps_apart(emulated, exact, size, dtype) <= 0.5, what


@both
@pytest.mark.parametrize("name", KERNELS)
def test_the_emulation_agrees_with_torchs_own_16_bit_kernels_within_an_ulp(name, dtype):
    for what, emulated, native, _, size in run_kernel(name, dtype):
        if what != "output" and name.startswith("conv") and dtype == HALF:
            continue  # torch's CPU kernels add up an FP16 convolution's gradients in FP16; the next test
        assert ulps_apart(emulated, native, size, dtype) <= 1, what


@pytest.mark.parametrize("name", ["conv1d", "conv2d"])
@pytest.mark.parametrize("index", [1, 2], ids=["input", "weight"])
def test_a_gradient_of_an_fp16_convolution_is_nearer_the_truth_than_torchs_cpu_kernel(name, index):
    _, emulated, native, exact, size = run_kernel(name, HALF)[index]
    assert ((emulated - exact).abs() <= size * 2.0**-11).all()
    assert ((native - exact).abs() <= size * 2.0**-9).all()
    assert (emulated - exact).abs().mean() < (native - exact).abs().mean()


def test_the_ulp_measure_can_fail():
    theirs = torch.tensor([1.0, 0.5])
    assert ulps_apart(theirs + 2.0**-9, theirs, torch.zeros(2), HALF) == 4.0


@both
def test_attention_agrees_with_torchs_own_16_bit_kernel(dtype):
    q, k, v = (x(2, 2, 8, 16) for _ in range(3))
    with region(dtype):
        emulated = F.scaled_dot_product_attention(q, k, v)
    native = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))
    exact = F.scaled_dot_product_attention(*(t.to(dtype).float() for t in (q, k, v)))
    unit = {HALF: 2.0**-10, BF16: 2.0**-7}[dtype]
    assert (emulated.float() - exact).abs().max() <= unit  # values are below 4: half an ulp is below one unit
    assert (native.float() - emulated.float()).abs().max() <= 4 * unit


def test_the_whole_tree_of_a_nested_argument_is_cast():
    # multi_dot takes a list of tensors
    tensors = [x(2, 3), x(3, 4), x(4, 2)]
    with region():
        product = torch.linalg.multi_dot(tensors)
    expected = tensors[0].half().float() @ tensors[1].half().float() @ tensors[2].half().float()
    assert pytree.tree_leaves(product)[0].dtype == HALF
    assert (product.float() - expected).abs().max() < 2**-6
