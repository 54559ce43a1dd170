"""What mpdiag's own training loop costs beside one written by hand: the same model, batches and AMP recipe, in turns.

    python benchmarks/harness.py [OUT.json] [--rounds N] [--only "GPT-2 124M"] [--small]

ResNet-50 (batch 128, 224 px) and GPT-2 124M (8 x 1024) on a CUDA device, small ones on a CPU and with --small; FP32
(IEEE) and FP16 autocast with GradScaler, fused AdamW.

- Time: a round has one block of each loop, in an order in which each follows each other one equally often, by mpdiag's
  own stopwatch; the ratio is the geometric mean over rounds, with the 95 % interval that reports use. `by hand again`
  is the hand-written loop against itself.
- Memory: torch's peak (max_memory_allocated) over warm steps, once for each loop, with nothing else on the device.

Reach: both within 2 %.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from made_on import origin
from mpdiag.device.precision_settings import fp32_products
from mpdiag.device.select import select_device
from mpdiag.device.stopwatch import release_memory, time_block
from mpdiag.measure.steady import steady_run
from mpdiag.measure.turns import turns_of
from mpdiag.target.job import ONLY, Job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.verify.block_ratio import MIN_BLOCKS, ratio_interval

REACH = 1.02
ROUNDS = 10
WARMUP = 10
MEMORY_STEPS = 4
LOG2_SCALE = 10  # low enough that no step is skipped
PRECISIONS = {
    "FP32": FP32_IEEE,
    "FP16": Precision("FP16", torch.float16, log2_scale=LOG2_SCALE, growth_interval=10**9),
}
BLOCK_STEPS = {"FP32": 4, "FP16": 8}
OURS, HAND, HAND_AGAIN = "harness", "by hand", "by hand again"
NO_CPU_MEMORY = "torch keeps no peak of CPU memory"

Loss = Callable[[nn.Module, Any], torch.Tensor]
Step = Callable[[], object]


def resnet(large: bool) -> tuple[Callable[[], nn.Module], Callable[[], list[Any]], Loss]:
    """Images and classes."""
    batch, side = (128, 224) if large else (4, 32)

    def model() -> nn.Module:
        if large:
            import torchvision

            built: nn.Module = torchvision.models.resnet50()
            return built
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000))

    def batches() -> list[Any]:
        return [(torch.randn(batch, 3, side, side), torch.randint(1000, (batch,))) for _ in range(2)]

    return model, batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])


def gpt2(large: bool) -> tuple[Callable[[], nn.Module], Callable[[], list[Any]], Loss]:
    """Tokens."""
    import transformers

    small = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(**({} if large else small), loss_type="ForCausalLM")
    batch, length = (8, 1024) if large else (2, 32)
    batches = lambda: [torch.randint(config.vocab_size, (batch, length)) for _ in range(2)]
    return lambda: transformers.GPT2LMHeadModel(config), batches, lambda m, b: m(input_ids=b, labels=b).loss


SUBJECTS = {"ResNet-50": resnet, "GPT-2 124M": gpt2}


def by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterator[Any], loss_of: Loss, name: str, device: str
) -> Step:
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


def compare(subject: str, name: str, rounds: int, device: torch.device, large: bool) -> dict[str, Any]:
    """One model in one precision: both loops' peaks, their block medians, the ratio and the control."""
    build, draw, loss_of = SUBJECTS[subject](large)

    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss_of(model, batch)

    def optimizers(model: nn.Module) -> dict[str, torch.optim.Optimizer]:
        return {ONLY: torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")}

    job = Job(subject, "benchmarks/harness.py", build, draw, losses, optimizers)
    start = job.start(0, 2)

    def warm_by_hand() -> Step:
        model = job.build(start, device)
        placed = cycle([pytree.tree_map(lambda tensor: tensor.to(device), batch) for batch in start.batches])
        step = by_hand(model, optimizers(model)[ONLY], placed, loss_of, name, device.type)
        with fp32_products("ieee"):
            for _ in range(WARMUP):
                step()
        return step

    def peak_by_hand() -> int | None:
        step = warm_by_hand()
        with fp32_products("ieee"):
            return peak_bytes(step, device)

    def peak_of_ours() -> int | None:
        with steady_run(job, start, PRECISIONS[name], device, WARMUP) as run, run.in_force_again() as ours:
            return peak_bytes(ours, device)

    peaks: dict[str, int | None] = {}
    for loop, peak in ((HAND, peak_by_hand), (OURS, peak_of_ours)):
        release_memory()
        peaks[loop] = peak()
    release_memory()
    blocks: dict[str, list[float]] = {OURS: [], HAND: [], HAND_AGAIN: []}
    with steady_run(job, start, PRECISIONS[name], device, WARMUP) as run:
        step = warm_by_hand()
        for turn in (turn for turns in turns_of(list(blocks), rounds) for turn in turns):
            with run.in_force_again() as ours:  # FP32 in IEEE arithmetic for both
                body = ours if turn == OURS else step
                body()  # the other loop's blocks lie in the caches
                times, _ = time_block(body, BLOCK_STEPS[name], device)
            blocks[turn].append(statistics.median(times))
    del run, step
    release_memory()
    row = {"subject": subject, "precision": name, **summarized(blocks), "peak_bytes": peaks}
    return row if None not in peaks.values() else row | {"peak_bytes": None, "memory_not_measured": NO_CPU_MEMORY}


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """The allocator's peak over warm steps; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(MEMORY_STEPS):
        step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def summarized(blocks: dict[str, list[float]]) -> dict[str, Any]:
    """The ratio of the loops and the control's, by rounds."""
    row: dict[str, Any] = {"rounds": len(blocks[HAND]), "blocks_ms": blocks}
    for key, mine in (("ratio", OURS), ("control", HAND_AGAIN)):
        ratios = [a / b for a, b in zip(blocks[mine], blocks[HAND], strict=True)]
        row[key] = statistics.geometric_mean(ratios)
        row[f"{key}_interval"] = ratio_interval(ratios)
    row["step_ms"] = {turn: statistics.median(times) for turn, times in blocks.items()}
    return row


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.json")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="by default %(default)s")
    parser.add_argument("--only", choices=list(SUBJECTS), help="this model alone")
    parser.add_argument("--small", action="store_true", help="a rehearsal: small models, as on a CPU")
    asked = parser.parse_args(words)
    if asked.rounds < MIN_BLOCKS:
        parser.error(f"--rounds {asked.rounds}: an interval takes {MIN_BLOCKS} at least")
    return asked


def main(words: list[str]) -> None:
    asked, device = arguments(words), select_device("auto")
    record: dict[str, Any] = {
        **origin(shlex.join(["python", "benchmarks/harness.py", *words]), device),
        "reach": REACH,
        "rows": [],
    }
    for subject in SUBJECTS if asked.only is None else [asked.only]:
        for name in PRECISIONS:
            row = compare(subject, name, asked.rounds, device, device.type == "cuda" and not asked.small)
            record["rows"].append(row)
            low, high = row["ratio_interval"]
            said = f"{subject} {name}: x{row['ratio']:.4f} ({low:.4f} to {high:.4f}), control x{row['control']:.4f}"
            peaks = row["peak_bytes"]
            print(f"{said}, memory x{peaks[OURS] / peaks[HAND]:.4f}" if peaks else said, flush=True)
            if asked.out:  # after each, so that a run cut short leaves what it measured
                asked.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
