"""The types that whole layers give under the emulated policy, in training and without grad."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from emulation_samples import FP32, HALF, both, dtypes, region, x


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


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
