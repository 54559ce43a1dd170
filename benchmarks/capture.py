"""What observing costs: a training step without hooks and with the probe, interleaved in one process.

    python benchmarks/capture.py [OUT.json]          (models of full size on a CUDA device, small ones on a CPU)

FP32 (IEEE), AdamW. The probe counts every activation, activation gradient, weight, weight gradient and update, every
step, and copies its table to the host once a step. Blocks of steps alternate; the ratio is of the medians over all
blocks, with the smallest and largest ratio of a pair of blocks beside it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mpdiag.capture.probe import Probe
from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import ieee_fp32

Step = Callable[[], None]
BLOCKS, STEPS = 6, 4


def resnet50(device: torch.device) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    import torchvision

    batch, side = (128, 224) if device.type == "cuda" else (2, 64)
    model = torchvision.models.resnet50().to(device)
    images, labels = torch.randn(batch, 3, side, side, device=device), torch.randint(1000, (batch,), device=device)
    return model, lambda: torch.nn.functional.cross_entropy(model(images), labels)


def gpt2(device: torch.device) -> tuple[torch.nn.Module, Callable[[], torch.Tensor]]:
    import transformers

    full = device.type == "cuda"
    config = transformers.GPT2Config() if full else transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4)
    model = transformers.GPT2LMHeadModel(config).to(device)
    codes = torch.randint(config.vocab_size, (8, 1024) if full else (2, 64), device=device)
    return model, lambda: model(input_ids=codes, labels=codes).loss


def measure(name: str, device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    model, loss = MODELS[name](device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    def block(probed: bool) -> float:
        probe = Probe(model, [optimizer], device) if probed else None
        times = []
        for index in range(STEPS + 1):
            began = time.perf_counter()
            step()
            if probe is not None:
                probe.step_done()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if index:  # the first step of a block warms up
                times.append((time.perf_counter() - began) * 1000)
        if probe is not None:
            tensors.append(len(probe.tables()))
            probe.remove()
        return statistics.median(times)

    tensors: list[int] = []
    with ieee_fp32():
        block(False)
        pairs = [(block(False), block(True)) for _ in range(BLOCKS)]
    bare, probed = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [with_probe / without for without, with_probe in pairs]
    return {
        "model": name,
        "tensors": tensors[-1],
        "no_hooks_ms": bare,
        "probe_ms": probed,
        "ratio": probed / bare,
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }


MODELS = {"resnet50": resnet50, "gpt2": gpt2}


def main() -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    rows = []
    for name in MODELS:
        try:
            rows.append(measure(name, device))
        except ImportError as error:
            rows.append({"model": name, "not_measured": str(error)})
        print(*(f"{v:.4g}" if isinstance(v, float) else v for v in rows[-1].values()))
    record = {"command": "python benchmarks/capture.py", "environment": vars(describe(device)), "rows": rows}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
