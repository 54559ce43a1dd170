"""A checkpoint to start every run from: weights, and the optimizers' state where it was saved with them."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mpdiag.errors import UsageError, safe_text
from mpdiag.target.optimizer_kind import changed_by, why_another_kind
from mpdiag.target.optimizer_state import is_state_dict, why_unsound

WEIGHTS = ("model", "state_dict", "model_state_dict")
OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizers", "optimizer_states")  # the last is Lightning's
WRAPPERS = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
LIKE_THE_PARAMETER = (
    "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
    "sum", "prev", "step_size", "ax",
)  # of torch's own optimizers, the state that has an entry for each entry of the parameter  # fmt: skip
SNIFFED_BYTES = 256  # enough to tell text from an archive
NAMED = 4  # names in a message; the first few tell which model the file is of

_SAVE = 'save it with torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)'


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, on the CPU, and the state_dict of each optimizer by its name ("" for one without a name).

    ordered: the optimizers came as a list: their names are numbers, and they are a job's in its own order.
    """

    path: str
    weights: dict[str, torch.Tensor]
    optimizers: dict[str, Any] = field(default_factory=dict)
    ordered: bool = False

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
        """Give a model these weights.

        Raises UsageError `checkpoint-does-not-fit` with the first names that differ, and `checkpoint-not-finite`.
        """
        # torch's own: a class may have written its state_dict anew, with other keys or without torch's arguments
        held = torch.nn.Module.state_dict(model)
        own = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
        weights = _unwrapped(self.weights, own)
        shapes = [
            f"{name} is {tuple(weights[name].shape)} there and {tuple(value.shape)} here"
            for name, value in own.items()
            if name in weights and weights[name].shape != value.shape
        ]
        types = [
            f"{name} is {there} there and {here} here".replace("torch.", "")
            for name, value in own.items()
            if name in weights and (differ := _differ(value, weights[name]))
            for here, there in [differ]
        ]
        wrong = {
            "missing there": [name for name in own if name not in weights],
            "unknown here": [name for name in weights if name not in own],
            "of another shape": shapes,
            "of another type": types,
        }
        if any(wrong.values()):
            said = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in wrong.items() if names)
            raise UsageError(
                "checkpoint-does-not-fit",
                f"{self.path} does not fit the model of {source}: {said}",
                "give a checkpoint of this very model, with the sizes that the target file builds",
            )
        trained = {name for name, _ in model.named_parameters()}
        ruined = [name for name in own if not _usable(weights[name], name in trained)]
        if ruined:
            raise _ruined(f"{self.path}: {len(ruined)} of {len(own)} tensors are not finite: {_first(ruined)}")
        torch.nn.Module.load_state_dict(model, weights, strict=False)

    def load_into_optimizers(self, optimizers: Mapping[str, torch.optim.Optimizer], source: str) -> tuple[str, ...]:
        """Give optimizers this state, cast to their parameters' type and device; what is kept here stays as it was.

        Returns the hyper-parameters that this changed, in words. Raises UsageError `checkpoint-optimizer` where names,
        groups, parameters, shapes or the kind of optimizer do not fit, and `checkpoint-not-finite`.
        """
        if not self.optimizers:
            return ()
        states = self.optimizers
        if len(states) == len(optimizers) and (self.ordered or len(states) == 1):
            states = dict(zip(optimizers, states.values(), strict=True))  # with one of each, names do not matter
        if states.keys() != optimizers.keys():
            held = sorted(name for name in states if name) or "one optimizer"
            held = f"{len(states)} optimizers" if self.ordered else held
            raise _misfit(f"{self.path} has the state of {held}, {source} builds {sorted(optimizers)}")
        changed: dict[str, str] = {}
        for name, optimizer in optimizers.items():
            if why := why_another_kind(optimizer, states[name]):
                raise _misfit(f"{self.path} has the state of another optimizer than {source}: {why}")
            if why := why_unsound(optimizer, states[name]):
                raise _misfit(f"{self.path} does not fit the optimizer of {source}: {why}")
            changed = changed_by(optimizer, states[name]) | changed
            try:
                optimizer.load_state_dict(states[name])
            except Exception as error:  # ValueError from torch, anything from an optimizer of the user's own
                raise _misfit(f"{self.path} does not fit the optimizer of {source}: {safe_text(error)}") from error
            self._require_sound(optimizer, source)
            _own_copies(optimizer, states[name])
        return tuple(changed.values())

    def _require_sound(self, optimizer: torch.optim.Optimizer, source: str) -> None:
        """Raise where a loaded state cannot go on: a tensor of another shape than its parameter, or not finite."""
        elementwise = type(optimizer).__module__.startswith("torch.optim")  # other makers factor or quantize theirs
        ruined = []
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            for name, value in optimizer.state.get(parameter, {}).items():
                if not _is_tensor(value):
                    continue
                if elementwise and name in LIKE_THE_PARAMETER and value.shape != parameter.shape:
                    there, here = tuple(value.shape), tuple(parameter.shape)
                    said = f"{name} of parameter {index} is {there} there, and the parameter is {here}"
                    raise _misfit(f"{self.path} does not fit the optimizer of {source}: {said}")
                if not _usable(value, trained=value.dim() > 0):
                    ruined.append(f"{name} of parameter {index}")
        if ruined:
            what = "1 tensor of the optimizer is" if len(ruined) == 1 else f"{len(ruined)} tensors of the optimizer are"
            raise _ruined(f"{self.path}: {what} not finite: {_first(ruined)}")


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
        said = _unreadable(path) or f"torch.load, weights only: {safe_text(error).split('. ')[0]}"
        raise UsageError("not-a-checkpoint", f"{path}: {said}", _SAVE) from None
    weights = content
    if isinstance(content, Mapping):
        weights = next((content[key] for key in WEIGHTS if isinstance(content.get(key), Mapping)), content)
    tensors = {str(k): v for k, v in weights.items() if _is_tensor(v)} if isinstance(weights, Mapping) else {}
    if not tensors:
        raise UsageError("not-a-checkpoint", f"{path} holds no weights by name", _SAVE)
    empty = [name for name, value in tensors.items() if value.is_meta]
    if empty:
        said = f"{path}: {len(empty)} of {len(tensors)} tensors have no numbers (meta device): {_first(empty)}"
        raise UsageError("not-a-checkpoint", said, _SAVE)
    if not isinstance(content, Mapping) or weights is content:  # in a plain state_dict every entry is the model's
        return Checkpoint(str(path), tensors)
    states: Any = next((content[key] for key in OPTIMIZERS if isinstance(content.get(key), Mapping | list | tuple)), {})
    ordered = not isinstance(states, Mapping)
    if ordered:
        named = {str(number): state for number, state in enumerate(states)}
    else:
        named = {"": states} if "param_groups" in states else {str(k): v for k, v in states.items()}
    if not all(map(is_state_dict, named.values())):
        raise UsageError("not-a-checkpoint", f"{path}: its optimizer entry is no optimizer's state_dict", _SAVE)
    return Checkpoint(str(path), tensors, named, ordered)


def _unreadable(path: str | Path) -> str | None:
    """Why a file is nothing that torch.save writes, by its first bytes; None where it may be."""
    with Path(path).open("rb") as file:
        begin = file.read(SNIFFED_BYTES)
    if not begin:
        return "the file is empty"
    if begin[8:9] == b"{":  # a length of 8 bytes, then JSON
        return "a safetensors file, which torch.load does not read (safetensors.torch.load_file does)"
    if begin.startswith((b"PK", b"\x80")) or b"\0" in begin:  # an archive, a pickle, or something binary
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(begin)  # which allows a character cut short at the end
    except UnicodeDecodeError:
        return "no archive and no pickle, so not what torch.save writes"
    return "a text file, not one that torch.save wrote"


def _differ(own: torch.Tensor, there: torch.Tensor) -> tuple[object, object] | None:
    """What a tensor of the model and a saved one are, where the one cannot take the other's numbers."""
    if own.layout is not there.layout:
        return own.layout, there.layout
    return None if _holds(own, there) else (own.dtype, there.dtype)


def _holds(own: torch.Tensor, there: torch.Tensor) -> bool:
    """Whether a tensor of the model can take these numbers: a weight with a fraction no integers, a real no complex."""
    if own.is_complex():
        return there.is_complex() or there.is_floating_point()
    return not there.is_complex() and (there.is_floating_point() or not own.is_floating_point())


def _usable(value: torch.Tensor, trained: bool) -> bool:
    """Whether a tensor can start a run: a buffer may hold infinities (masks do), nothing may hold NaN."""
    if not (value.is_floating_point() or value.is_complex()):
        return True
    if value.layout is not torch.strided:
        value = value.coalesce().values() if value.layout is torch.sparse_coo else value.values()
    wide = value.float() if value.element_size() == 1 else value  # FP8 has no isfinite
    return bool(torch.isfinite(wide).all()) if trained else not bool(torch.isnan(wide).any())


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


def _ruined(message: str) -> UsageError:
    return UsageError("checkpoint-not-finite", message, "take a checkpoint from before the training diverged")


def _misfit(message: str) -> UsageError:
    return UsageError(
        "checkpoint-optimizer", message, "save the same optimizers, or a checkpoint without an optimizer entry"
    )
