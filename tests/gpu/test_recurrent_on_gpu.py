"""BF16 autocast runs torch's recurrent layers in FP16 on a GPU: what MP309 says, and what the emulation does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpdiag.training.emulation import cuda_policy

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_gives_fp16_under_bf16_autocast(make):
    layer = make(16, 32, batch_first=True).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output, _ = layer(torch.randn(4, 8, 16, device="cuda"))
    assert output.dtype == torch.float16, "MP309, advice/format_choice.py and training/emulation.py rest on this"


def test_a_bf16_input_goes_the_same_way_where_cudnn_takes_it():
    if torch.backends.cudnn.version() < 91300:
        pytest.skip("this cuDNN has no BF16 recurrent layers: torch's own cells compute it, in BF16")
    first, layer = nn.Linear(16, 16).cuda(), nn.LSTM(16, 32, batch_first=True).cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        given = first(torch.randn(4, 8, 16, device="cuda"))
        output, _ = layer(given)
    assert (given.dtype, output.dtype) == (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell])
def test_a_cell_follows_autocast(make):
    with torch.autocast("cuda", dtype=torch.bfloat16):
        found = make(16, 32).cuda()(torch.randn(4, 16, device="cuda"))
    assert (found[0] if isinstance(found, tuple) else found).dtype == torch.bfloat16


def test_its_small_gradients_underflow_under_bf16_as_emulated():
    torch.manual_seed(0)
    layer, x = nn.LSTM(16, 32, batch_first=True), torch.randn(4, 8, 16)
    lost = []
    for device in ("cuda", "cpu"):
        own = nn.LSTM(16, 32, batch_first=True)
        own.load_state_dict(layer.state_dict())
        own.to(device)
        if device == "cuda":
            with torch.autocast("cuda", dtype=torch.bfloat16):
                output, _ = own(x.to(device))
        else:
            with cuda_policy() as forget, torch.autocast("cpu", dtype=torch.bfloat16):
                output, _ = own(x)
            forget()
        (output.float().sum() * 2.0**-40).backward()
        lost.append(all(not weight.grad.any() for weight in own.parameters()))
    assert lost == [True, True]
