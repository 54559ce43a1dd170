"""What mpdiag's own training loop costs beside one written by hand: the same model, batches and AMP recipe, in turns.

    python benchmarks/harness.py [OUT.json] [--rounds N] [--only "GPT-2 124M"]

ResNet-50 (batch 128, 224 px) and GPT-2 124M (8 x 1024) on a CUDA device, small ones on a CPU; FP32 (IEEE) and FP16
autocast with GradScaler, fused AdamW. A round has one block of each loop, in alternating order, timed by mpdiag's own
stopwatch; the ratio is the geometric mean over rounds, with the 95 % interval that reports use. `by hand again` is the
hand-written loop against itself. Reach: within 2 %.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mpdiag.device.environment import describe
from mpdiag.device.precision_settings import fp32_products
from mpdiag.device.select import select_device
from mpdiag.device.stopwatch import release_memory, time_block
from mpdiag.measure.steady import steady_run
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.verify.block_ratio import ratio_interval

REACH = 1.02
WARMUP = 10
LOG2_SCALE = 10  # low enough that no step is skipped
PRECISIONS = {
    "FP32": FP32_IEEE,
    "FP16": Precision("FP16", torch.float16, log2_scale=LOG2_SCALE, growth_interval=10**9),
}
BLOCK_STEPS = {"FP32": 4, "FP16": 8}

Loss = Callable[[nn.Module, Any], torch.Tensor]


def resnet(cuda: bool) -> tuple[Callable[[], nn.Module], Callable[[], list[Any]], Loss]:
    """Images and classes."""
    batch, side = (128, 224) if cuda else (4, 32)

    def model() -> nn.Module:
        if cuda:
            import torchvision

            built: nn.Module = torchvision.models.resnet50()
            return built
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))

    def batches() -> list[Any]:
        return [(torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))) for _ in range(2)]

    return model, batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def gpt2(cuda: bool) -> tuple[Callable[[], nn.Module], Callable[[], list[Any]], Loss]:
    """Tokens."""
    import transformers

    small = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**({} if cuda else small), loss_type="ForCausalLM")
    batch, length = (8, 1024) if cuda else (2, 32)
    batches = lambda: [torch.randint(config.vocab_size, (batch, length)) for _ in range(2)]
    return lambda: transformers.GPT2LMHeadModel(config), batches, lambda m, b: m(input_ids=b, labels=b).loss


SUBJECTS = {"ResNet-50": resnet, "GPT-2 124M": gpt2}


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any], loss_of: Loss, name: str, device: str
) -> Callable[[], None]:
    """The loop of torch's AMP recipe, as a user writes it."""
    half = name == "FP16"
    scaler = torch.amp.GradScaler(device, init_scale=2.0**LOG2_SCALE, growth_interval=10**9) if half else None

    def step() -> None:
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.float16) if half else nullcontext():
            loss = loss_of(model, batch)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    return step


def compare(subject: str, name: str, rounds: int, device: torch.device) -> dict[str, Any]:
    """One model in one precision: block medians of both loops, their ratio and the control."""
    cuda = device.type == "cuda"
    build, draw, loss_of = SUBJECTS[subject](cuda)

    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss_of(model, batch)

    def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        return {ONLY: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=cuda)}

    job = Job(subject, "benchmarks/harness.py", build, draw, losses, optimizers)
    start = job.start(0, 2)
    blocks: dict[str, list[float]] = {"harness": [], "by hand": [], "by hand again": []}
    with steady_run(job, start, PRECISIONS[name], device, WARMUP) as run:
        model = job.build(start, device)
        placed = cycle([run.session.place(batch) for batch in start.batches])
        step = by_hand(model, optimizers(model)[ONLY], placed, loss_of, name, device.type)
        with fp32_products("ieee"):
            for _ in range(WARMUP):
                step()
        for index in range(rounds):
            turns = list(blocks) if index % 2 == 0 else list(blocks)[::-1]
            for turn in turns:
                with run.in_force_again() as ours:  # FP32 in IEEE arithmetic for both
                    body = ours if turn == "harness" else step
                    body()  # the other loop's blocks lie in the caches
                    times, _ = time_block(body, BLOCK_STEPS[name], device)
                blocks[turn].append(statistics.median(times))
    del run, model, step, placed
    release_memory()
    row: dict[str, Any] = {"subject": subject, "precision": name, "rounds": rounds, "blocks_ms": blocks}
    for key, mine in (("ratio", "harness"), ("control", "by hand again")):
        ratios = [a / b for a, b in zip(blocks[mine], blocks["by hand"], strict=True)]
        row[key] = statistics.geometric_mean(ratios)
        row[f"{key}_interval"] = ratio_interval(ratios)
    row["step_ms"] = {turn: statistics.median(times) for turn, times in blocks.items()}
    return row


def main() -> None:
    device = select_device("auto")
    rounds = int(sys.argv[sys.argv.index("--rounds") + 1]) if "--rounds" in sys.argv else 12
    rows = []
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else None
    for subject in SUBJECTS if only is None else [only]:
        for name in PRECISIONS:
            row = compare(subject, name, rounds, device)
            rows.append(row)
            low, high = row["ratio_interval"]
            print(f"{subject} {name}: x{row['ratio']:.4f} ({low:.4f} to {high:.4f}), control x{row['control']:.4f}")
    record = {
        "command": f"python {' '.join(sys.argv)}",
        "reach": REACH,
        "environment": asdict(describe(device)),
        "rows": rows,
    }
    if len(sys.argv) > 1 and not sys.argv[1].startswith("--"):
        Path(sys.argv[1]).write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
