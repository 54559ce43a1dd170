"""What observing costs a training step: mpdiag and its peers against no hooks, interleaved in one process.

    python benchmarks/capture.py [OUT.json] [--models gpt2,resnet50] [--arms mpdiag,hf_debug] [--rounds N] [--seconds S]

FP32 (IEEE), AdamW (fused on CUDA); models of full size on a CUDA device, small ones on a CPU.

- A round runs one block of every arm, in random order; the slow arms take part in every second round, with fewer
  steps. A block attaches its observer (not timed), does one step to warm up (dropped) and then its steps.
- A block's time is its mean step by the wall clock, between two synchronizations, one before the first and one after
  the last step: asynchronous work is neither hidden nor charged twice. What an observer does at its ends, in attaching
  and in making tables, is not in it. An arm that observes every tenth step has blocks of ten: one is observed.
- The ratio is the geometric mean over rounds of (arm's block / no-hooks block of the same round), with the smallest,
  the largest and the 95 % interval over rounds that reports use. `none_again` is no hooks once more: what noise alone
  gives.
- Memory is torch's peak (max_memory_allocated) from before attaching to the end of the block, median over rounds, less
  that of no hooks. Allocations are the allocator's calls a step, of any size.
- A model's rounds end early (after two at least) when its share of --seconds is used up; `rounds` says how many an arm
  has. Tensors and elements are those of a step that is observed.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from capture_models import FULL, MODELS, SMALL
from capture_rows import HEAD, Block, judged, show, summarized
from made_on import origin
from mpdiag.capture.probe import Probe
from mpdiag.device.precision_settings import fp32_products
from mpdiag.device.stopwatch import release_memory
from peers import HfDebug, HistcLog2, Observer, WandbStyle


class Mpdiag(Observer):
    """Our probe; `options` are its keywords."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self._options = options
        self.probe: Probe | None = None

    def attach(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.probe = Probe(model, [optimizer], device, **self._options)
        self.counted_by = self.probe.counted_by

    def step_done(self) -> None:
        super().step_done()
        assert self.probe is not None
        self.probe.step_done()

    def remove(self) -> None:
        if self.probe is not None:
            self.probe.remove()

    @property
    def seen(self) -> tuple[int, int] | None:
        assert self.probe is not None
        tables = self.probe.tables()
        observed = max((table.steps for table in tables), default=1)
        return len(tables), sum(table.histogram.total for table in tables) // observed


@dataclass(frozen=True)
class Arm:
    """`steps`: timed steps a block, on a GPU and on a CPU."""

    what: str
    make: Callable[[], Observer]
    steps: tuple[int, int] = (3, 10)
    slow: bool = False
    on_request: bool = False


SLOW_STEPS = (1, 4)
ARMS = {
    "none": Arm("no hooks", Observer),
    "none_again": Arm("no hooks again (A/A control)", Observer),
    "mpdiag_no_updates": Arm("mpdiag, all but weight updates", lambda: Mpdiag(updates=False)),
    "mpdiag": Arm("mpdiag, everything", Mpdiag),
    "mpdiag_every_10": Arm("mpdiag, everything, every tenth step", lambda: Mpdiag(every=10), (10, 10)),
    "hf_debug": Arm("transformers DebugUnderflowOverflow (weights, inputs, outputs)", HfDebug, SLOW_STEPS, slow=True),
    "histc_log2": Arm("histc of log2 a tensor (outputs, all gradients)", HistcLog2, SLOW_STEPS, slow=True),
    "wandb_watch": Arm('as wandb.watch(log="all", log_freq=1): weights, their gradients', WandbStyle, SLOW_STEPS, True),
    "wandb_all": Arm(
        "the same, and outputs and their gradients", lambda: WandbStyle(activations=True), SLOW_STEPS, True, True
    ),
}


class Bench:
    """One model with its optimizer, and blocks of its training steps."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.cuda = device, device.type == "cuda"
        self.model, self._loss = MODELS[name](device)
        self.model.train()
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=self.cuda)

    def _synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _allocations(self) -> int:
        return torch.cuda.memory_stats(self.device)["allocation.all.allocated"] if self.cuda else 0

    def _step(self, observer: Observer) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self._loss().backward()
        self._optimizer.step()
        observer.step_done()

    def block(self, arm: Arm) -> Block:
        gc.collect()  # what the last observer left must not count as this one's
        observer, steps = arm.make(), arm.steps[0 if self.cuda else 1]
        self._synchronize()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            observer.attach(self.model, self._optimizer, self.device)
            self._step(observer)
            allocated = self._allocations()
            self._synchronize()
            began = time.perf_counter()
            for _ in range(steps):
                self._step(observer)
            self._synchronize()
            ms = (time.perf_counter() - began) * 1000 / steps
            peak = torch.cuda.max_memory_allocated(self.device) if self.cuda else None
            allocations = (self._allocations() - allocated) / steps if self.cuda else None
            return Block(ms, peak, allocations, observer.seen, observer.counted_by)
        finally:
            observer.remove()


def run_rounds(
    bench: Bench, names: list[str], rounds: int, deadline: float, order: random.Random
) -> tuple[list[dict[str, Block]], dict[str, str]]:
    """Blocks by round and arm, and {arm: why it was not measured}."""
    failed: dict[str, str] = {}
    done: list[dict[str, Block]] = []
    bench.block(ARMS["none"])  # the optimizer's state and the libraries' plans come into being here
    took: list[float] = []
    for index in range(rounds):
        began = time.monotonic()
        if index >= 2 and began + max(took[-2:]) > deadline:  # every second round is longer
            break
        turn = [n for n in names if n not in failed and not (ARMS[n].slow and index % 2)]
        blocks = {}
        for name in order.sample(turn, len(turn)):
            try:
                blocks[name] = bench.block(ARMS[name])
            except Exception as error:  # an arm that breaks is a row of its own, not the end of the run
                if name == "none":
                    raise
                failed[name] = _reason(error)
        done.append(blocks)
        took.append(time.monotonic() - began)
    return done, failed


def measure(model: str, device: torch.device, arms: list[str], rounds: int, deadline: float) -> list[dict[str, object]]:
    who: dict[str, object] = {"model": model, "subject": (MODELS[model].__doc__ or "").rstrip(".")}
    try:
        with fp32_products("ieee"):
            done, failed = run_rounds(Bench(model, device), arms, rounds, deadline, random.Random(model))
    except (ImportError, RuntimeError) as error:  # torchvision raises either beside a torch it was not built for
        return [{**who, "arm": None, "not_measured": _reason(error)}]
    rows = []
    for name in arms:
        figures = {"not_measured": failed[name]} if name in failed else summarized(name, done)
        rows.append({**who, "arm": name, "what": ARMS[name].what, **figures})
    return rows


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def record_of(rows: list[dict[str, object]], device: torch.device) -> dict[str, object]:
    record = {**origin("python benchmarks/capture.py", device), "rows": rows}
    if "H100" in str(record["environment"]["gpu"]):
        return record | {"targets": judged(rows)}
    return record | {"targets": [], "targets_not_judged": "they are set for an H100"}


def main() -> None:
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sized = FULL if device.type == "cuda" else SMALL
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--models", default=",".join(make.__name__ for make in sized))
    parser.add_argument("--arms", default=",".join(name for name, arm in ARMS.items() if not arm.on_request))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=135, help="for all models; rounds end early to keep to it")
    arguments = parser.parse_args()
    models = arguments.models.split(",")
    arms = ["none", *(name for name in arguments.arms.split(",") if name != "none")]
    if unknown := [name for name in models if name not in MODELS] + [name for name in arms if name not in ARMS]:
        parser.error(f"unknown: {', '.join(unknown)}; models: {', '.join(MODELS)}; arms: {', '.join(ARMS)}")
    began, rows = time.monotonic(), []
    print(HEAD)
    for index, model in enumerate(models, 1):
        deadline = began + arguments.seconds * index / len(models)
        measured = measure(model, device, arms, arguments.rounds, deadline)
        release_memory()
        for row in measured:
            show(row)
        rows += measured
        record = record_of(rows, device)
        if arguments.out:  # after each model, so that a run cut short leaves what it measured
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for line in record["targets"]:
        figures = f"{line['measured']:.3f}, limit {line['limit']:.3f}"
        print(f"{line['model']} {line['arm']}, {line['quantity']}: {figures}: {line['verdict']}")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
