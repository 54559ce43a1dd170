"""A training job: what to build, what to feed it, what to minimise; the same start for every run."""

from __future__ import annotations

import inspect
import random
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mpdiag.errors import UsageError
from mpdiag.settings import BATCH_CACHE_BYTES
from mpdiag.target.batches import Replay, draw
from mpdiag.target.checkpoint import Checkpoint
from mpdiag.target.own_model import OwnModels
from mpdiag.target.user_code import guarded
from mpdiag.target.weights import put_weights, weights_of

Optimizers = dict[str, torch.optim.Optimizer]
Losses = Generator[tuple[str, torch.Tensor], None, None]

ONLY = "loss"
"""The name of the loss and optimizer of a job that has just one."""

_SCHEDULED = "the optimizer has a learning-rate scheduler, which is not stepped: every run keeps the first rate"
_ONE_ITERATOR = "train_batches gives one iterator at every call: every seed sees the same batches"
_USED_UP = "train_batches gave nothing when it was called again: the batches that it gave before were taken"


@dataclass(frozen=True)
class Start:
    """Where every run of one seed begins: the first weights and the batches in order, both on the CPU.

    weights: every parameter and buffer by name, those too that a state_dict leaves out (weights.weights_of).
    """

    seed: int
    weights: dict[str, Any]
    batches: list[Any]
    batch_dim: int = 0  # of a batch's tensors, the one that counts samples
    batch_ms: float | None = None  # what the target takes to give one, see batches.draw

    def batch(self, step: int) -> Any:
        """The batch of a step; after the last comes the first again."""
        return self.batches[step % len(self.batches)]


@dataclass
class Job:
    """What a target file said, in one shape whatever names and forms it used.

    build_model() -> Module; train_batches() -> iterable; losses(model, batch) yields (optimizer name, scalar
    loss) and is resumed after that optimizer's step; build_optimizers(model) -> {name: Optimizer};
    evaluate(model) -> {metric: value} or None.
    """

    name: str
    source: str
    build_model: Callable[[], torch.nn.Module]
    train_batches: Callable[[], Iterable[Any]]
    losses: Callable[[torch.nn.Module, Any], Losses]
    build_optimizers: Callable[[torch.nn.Module], Optimizers]
    evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None
    higher_is_better: bool = True
    directions: Mapping[str, bool] | None = None  # by metric, the others by their names; None: the bool is for all
    synthetic_data: bool = False
    notes: tuple[str, ...] = ()
    margins: dict[str, float] = field(default_factory=dict)  # the user's own, absolute, by quantity
    checkpoint: Checkpoint | None = None  # where every run starts, instead of at initialisation
    batch_dim: int | None = None  # the target's BATCH_DIM, None where it says nothing: then 0
    target: str = ""  # what the user typed, for processes that load the job again
    seconds: dict[str, float] = field(default_factory=dict, repr=False)  # what "build" and "evaluate" took so far
    _kept: tuple[int, Start] | None = field(default=None, repr=False)
    _models: OwnModels = field(default_factory=OwnModels, repr=False)
    _iterator: Callable[[], Any] | None = field(default=None, repr=False)  # gives what train_batches last returned
    _replay: Replay | None = field(default=None, repr=False)

    @property
    def better(self) -> Mapping[str, bool] | bool:
        """Which way each metric is better, for compare_arms."""
        return self.higher_is_better if self.directions is None else self.directions

    @property
    def lower_is_better(self) -> tuple[str, ...]:
        """The metrics that the target itself names as better when lower, one by one."""
        return tuple(name for name, higher in (self.directions or {}).items() if not higher)

    def start(self, seed: int, count: int) -> Start:
        """The start of a seed with at least `count` batches if the source has them, in as many epochs as that takes.

        They are drawn once, then kept.

        Raises UsageError `target-empty-batches` when the source yields nothing.
        """
        if self._kept is not None and self._kept[0] >= count and self._kept[1].seed == seed:
            return self._kept[1]
        with guarded("building the model"), self.timed("build"):
            seed_everything(seed)
            module = self._module()
            if self.checkpoint is not None:
                self.checkpoint.load_into(module, self.source)
            weights = weights_of(module)
        with guarded("drawing batches"):
            seed_everything(seed)
            batches, batch_ms = draw(self._iterable(), count, BATCH_CACHE_BYTES)
        if not batches and self._kept is not None:
            batches, batch_ms = self._kept[1].batches, self._kept[1].batch_ms
            self.note(_USED_UP)
        if not batches:
            raise UsageError(
                "target-empty-batches",
                f"{self.source}: the batches of {self.name} ended before the first one",
                "yield at least one batch; a generator that was already used up has to become a function",
            )
        start = Start(seed, weights, batches, self.batch_dim or 0, batch_ms)
        self._kept = (count, start)  # one seed at a time: batches can be large
        return start

    def build(self, start: Start, device: torch.device) -> torch.nn.Module:
        """A fresh model with the start's weights, on the device, in training mode, random state as at the start."""
        with guarded("building the model"), self.timed("build"):
            seed_everything(start.seed)
            model = self._module()
            put_weights(model, start.weights, self.source)
            model = model.to(device)
            model.train()
        seed_everything(start.seed)
        return model

    def optimizers(self, model: torch.nn.Module) -> Optimizers:
        """The optimizers of a model, with the checkpoint's state where it has one."""
        with guarded("building the optimizer"):
            optimizers = self.build_optimizers(model)
            for optimizer in optimizers.values():
                _require_plain_step(optimizer, self.source)
            if any("initial_lr" in group for o in optimizers.values() for group in o.param_groups):
                self.note(_SCHEDULED)  # every scheduler of torch's leaves this key
            if self.checkpoint is not None:
                changed = self.checkpoint.load_into_optimizers(optimizers, self.source)
                if changed:
                    self.note(f"from the checkpoint, not from the target file: {', '.join(changed)}")
        return optimizers

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add to `seconds` what a part of a run takes that does not grow with its steps."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def note(self, note: str) -> None:
        """Keep what shows only when the file's functions are called, once."""
        if note not in self.notes:
            self.notes = (*self.notes, note)

    def note_repeats(self, start: Start, steps: int) -> None:
        """Keep that so many steps go through a start's batches more than once."""
        count = len(start.batches)
        if count < steps:
            self.note(f"the target gives {count} batch{'es' if count > 1 else ''}, repeated in the same order")

    def _module(self) -> torch.nn.Module:
        model = self.build_model()
        if not isinstance(model, torch.nn.Module):
            raise UsageError(
                "target-no-model",
                f"{self.source}: the model function returned {type(model).__name__}, not a torch.nn.Module",
                "return the module itself",
            )
        tensors = (*model.named_parameters(), *model.named_buffers())
        lazy = next((name for name, tensor in tensors if torch.nn.parameter.is_lazy(tensor)), None)
        if lazy is not None:
            raise UsageError(
                "lazy-model",
                f"{self.source}: {lazy} has no shape yet (a lazy module, such as LazyLinear)",
                "run one batch through the model in build_model, before you return it",
            )
        own = self._models.own(model, self.source)
        if self._models.note is not None:
            self.note(self._models.note)
        return own

    def _iterable(self) -> Iterable[Any]:
        batches = self.train_batches()
        if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
            raise UsageError(
                "target-no-batches",
                f"{self.source}: the batches are {type(batches).__name__}, which is not an iterable of batches",
                "return a DataLoader, a list of batches, or yield them",
            )
        return self._from_the_first(batches) if isinstance(batches, Iterator) else batches

    def _from_the_first(self, batches: Iterator[Any]) -> Iterable[Any]:
        """The iterator, or where it is the one of the call before, what it has given already and then the rest."""
        if self._iterator is None or self._iterator() is not batches or self._kept is None:
            self._iterator, self._replay = _held(batches), None
            return batches
        if self._replay is None:
            self._replay = Replay(batches, self._kept[1].batches)
            self.note(_ONE_ITERATOR)
        return self._replay


def _require_plain_step(optimizer: Any, source: str) -> None:
    """Refuse an optimizer whose step cannot be called without a closure."""
    try:
        needed = [p.name for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    except (AttributeError, TypeError, ValueError):  # what it is shows when it is used
        return
    if "closure" in needed:
        name = type(optimizer).__name__
        raise UsageError(
            "optimizer-needs-closure",
            f"{source}: {name} needs a closure that computes the loss again, which GradScaler does not support",
            f"mixed precision needs an optimizer that steps once a gradient, such as AdamW or SGD, not {name}",
        )


def _held(iterator: Iterator[Any]) -> Callable[[], Any]:
    """A reference that lets an iterator with workers or open files go; those of builtins can only be held."""
    try:
        return weakref.ref(iterator)
    except TypeError:
        return lambda: iterator


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # NumPy's legacy seed takes 32 bits
    torch.manual_seed(seed)
