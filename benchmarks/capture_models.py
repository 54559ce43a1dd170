"""The models of benchmarks/capture.py: full size for a GPU, small ones for a CPU, random data of a fixed seed.

Each function returns the model and a function that gives the loss of one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Subject = tuple[nn.Module, Callable[[], torch.Tensor]]


def _classifier(model: nn.Module, batch: int, side: int, classes: int, device: torch.device) -> Subject:
    model = model.to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(classes, (batch,), device=device)
    return model, lambda: nn.functional.cross_entropy(model(images), labels)


def _causal(batch: int, length: int, device: torch.device, **config: int) -> Subject:
    import transformers

    settings = transformers.GPT2Config(**config)
    with device:
        model = transformers.GPT2LMHeadModel(settings)
    codes = torch.randint(settings.vocab_size, (batch, length), device=device)
    return model, lambda: model(input_ids=codes, labels=codes).loss


def _masked(batch: int, length: int, device: torch.device, **config: int) -> Subject:
    """15 % of the tokens are masked; the loss is of those."""
    import transformers

    settings = transformers.BertConfig(**config)
    with device:
        model = transformers.BertForMaskedLM(settings)
    codes = torch.randint(settings.vocab_size, (batch, length), device=device)
    masked = torch.rand(batch, length, device=device) < 0.15
    labels, codes = torch.where(masked, codes, -100), torch.where(masked, 103, codes)
    return model, lambda: model(input_ids=codes, labels=labels).loss


def resnet50(device: torch.device) -> Subject:
    """Batch 128, 224 px."""
    import torchvision

    return _classifier(torchvision.models.resnet50(), 128, 224, 1000, device)


def gpt2(device: torch.device) -> Subject:
    """GPT-2 124M, batch 8, 1024 tokens."""
    return _causal(8, 1024, device)


def bert_large(device: torch.device) -> Subject:
    """BERT-large (24 layers), masked tokens, batch 8, 512 tokens."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    return _masked(8, 512, device, **large)


def small_cnn(device: torch.device) -> Subject:
    """Six convolutions with batch norm, batch 16, 48 px."""
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 1), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return _classifier(model, 16, 48, 10, device)


def small_gpt2(device: torch.device) -> Subject:
    """4 layers 128 wide, 4096 codes, batch 4, 128 tokens."""
    return _causal(4, 128, device, n_layer=4, n_embd=128, n_head=4, vocab_size=4096, bos_token_id=0, eos_token_id=0)


def small_bert(device: torch.device) -> Subject:
    """4 layers 128 wide, 4096 codes, masked tokens, batch 4, 128 tokens."""
    small = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
    return _masked(4, 128, device, vocab_size=4096, **small)


FULL = (resnet50, gpt2, bert_large)
SMALL = (small_cnn, small_gpt2, small_bert)
MODELS = {make.__name__: make for make in FULL + SMALL}
