"""A checkpoint to start every run from: weights, and the optimizers' state where it was saved with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mpdiag.errors import UsageError, safe_text

WEIGHTS = ("model", "state_dict", "model_state_dict")
OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizers")
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
NAMED = 4  # names in a message; the first few tell which model the file is of

_SAVE = 'save it with torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, on the CPU, and the state_dict of each optimizer by its name ("" for one without a name)."""

    path: str
    weights: dict[str, torch.Tensor]
    optimizers: dict[str, Any] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """What the report says of it."""
        seeds = "seeds differ in their batches, not in their weights"
        if self.optimizers:
            return f"every run starts from {self.path}, with its optimizer state and learning rate; {seeds}"
        return (
            f"every run starts from the weights in {self.path}, which has no optimizer state: the optimizer starts "
            f"fresh, at the target file's own learning rate; {seeds}"
        )

    def load_into(self, model: torch.nn.Module, source: str) -> None:
        """Give a model these weights. Raises UsageError `checkpoint-does-not-fit` with the first names that differ."""
        own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
        weights = _unwrapped(self.weights, own)
        shapes = [
            f"{name} is {tuple(weights[name].shape)} there and {tuple(value.shape)} here"
            for name, value in own.items()
            if name in weights and weights[name].shape != value.shape
        ]
        wrong = {
            "missing there": [name for name in own if name not in weights],
            "unknown here": [name for name in weights if name not in own],
            "of another shape": shapes,
        }
        if any(wrong.values()):
            said = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in wrong.items() if names)
            raise UsageError(
                "checkpoint-does-not-fit",
                f"{self.path} does not fit the model of {source}: {said}",
                "give a checkpoint of this very model, with the sizes that the target file builds",
            )
        model.load_state_dict(weights, strict=False)

    def load_into_optimizers(self, optimizers: Mapping[str, torch.optim.Optimizer], source: str) -> None:
        """Give optimizers this state, cast to their parameters' type and device; what is kept here stays as it was.

        Raises UsageError `checkpoint-optimizer` where names, groups or parameters do not fit.
        """
        if not self.optimizers:
            return
        states = self.optimizers
        if len(states) == len(optimizers) == 1:
            states = dict(zip(optimizers, states.values(), strict=True))  # with one of each, names do not matter
        if states.keys() != optimizers.keys():
            held = sorted(name for name in states if name) or "one optimizer"
            raise _misfit(f"{self.path} has the state of {held}, {source} builds {sorted(optimizers)}")
        for name, optimizer in optimizers.items():
            try:
                optimizer.load_state_dict(states[name])
            except Exception as error:  # ValueError from torch, anything from an optimizer of the user's own
                raise _misfit(f"{self.path} does not fit the optimizer of {source}: {safe_text(error)}") from error
            _own_copies(optimizer, states[name])


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what torch.save wrote: a state_dict, or a dict that holds one under one of WEIGHTS and OPTIMIZERS.

    Only tensors, numbers and names are read (weights_only), so a file can run no code. Raises UsageError
    `no-such-file` or `not-a-checkpoint`.
    """
    if not Path(path).is_file():
        what = "is a folder" if Path(path).is_dir() else "no such file"
        raise UsageError("no-such-file", f"{path}: {what}", "give the path of a file that torch.save wrote")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle's own errors are of every kind
        said = safe_text(error).split(". ")[0]
        raise UsageError("not-a-checkpoint", f"{path}: torch.load, weights only: {said}", _SAVE) from None
    weights = content
    if isinstance(content, Mapping):
        weights = next((content[key] for key in WEIGHTS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(k): v for k, v in weights.items() if _is_tensor(v)} if isinstance(weights, Mapping) else {}
    if not tensors:
        raise UsageError("not-a-checkpoint", f"{path} holds no weights by name", _SAVE)
    states: Mapping[str, Any] = next((content[key] for key in OPTIMIZERS if isinstance(content.get(key), Mapping)), {})
    if not states or weights is content:  # in a plain state_dict every entry is the model's
        return Checkpoint(str(path), tensors)
    named = {"": states} if "param_groups" in states else {str(k): v for k, v in states.items()}
    if not all(isinstance(state, Mapping) and "param_groups" in state for state in named.values()):
        raise UsageError("not-a-checkpoint", f"{path}: its optimizer entry is no optimizer's state_dict", _SAVE)
    return Checkpoint(str(path), tensors, named)


def _unwrapped(weights: dict[str, torch.Tensor], own: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights without a wrapper's prefix that all of them have and the model has not."""
    for prefix in WRAPPERS * 2:  # in either order
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in own):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _own_copies(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """load_state_dict takes over tensors that need no cast; the next run must not find them changed by this one."""
    kept = {id(leaf) for leaf in pytree.tree_leaves(state) if _is_tensor(leaf)}
    for parameter, values in optimizer.state.items():
        optimizer.state[parameter] = pytree.tree_map(lambda v: v.clone() if id(v) in kept else v, values)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _misfit(message: str) -> UsageError:
    return UsageError(
        "checkpoint-optimizer", message, "save the same optimizers, or a checkpoint without an optimizer entry"
    )
