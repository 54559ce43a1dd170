"""From what the user typed to a Job."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from mpdiag.errors import MpdiagError, UsageError, safe_text
from mpdiag.target import contract
from mpdiag.target.batches import Replay, batch_dim_of
from mpdiag.target.checkpoint import read_checkpoint
from mpdiag.target.forms import losses_of, optimizers_of
from mpdiag.target.job import Job
from mpdiag.target.metrics import directions_of, margins_of, metric_of
from mpdiag.target.own_model import INSTANCE, copied
from mpdiag.target.user_code import guarded

_Said = TypeVar("_Said")

EXAMPLE = "`def build_model()` and `def train_batches()`; see README, 'A target file'"


def load_job(target: str, start_from: str | Path | None = None) -> Job:
    """Load `file.py`, `file.py:attr` or `package.module:attr`; start_from: a checkpoint that every run starts from.

    Raises UsageError (`target-not-found`, `target-syntax`, `target-is-a-script`, `target-no-model`,
    `target-no-batches`, and those of read_checkpoint) or UserCodeError when importing it raises.
    """
    checkpoint = None if start_from is None else read_checkpoint(start_from)
    module, attribute, source = _import(target)
    namespace = vars(module)
    model = namespace.get(attribute) if attribute else contract.find(namespace, contract.MODEL)
    if model is None:
        missing = f"no `{attribute}`" if attribute else f"none of {', '.join(contract.MODEL)}"
        raise UsageError("target-no-model", f"{source} defines {missing}", f"define {EXAMPLE}")
    batches = contract.find(namespace, contract.BATCHES)
    if batches is None:
        raise UsageError(
            "target-no-batches",
            f"{source} defines a model but none of {', '.join(contract.BATCHES)}",
            "add `def train_batches():` that returns a DataLoader or yields batches",
        )
    build_optimizers, notes = optimizers_of(namespace)
    if isinstance(model, torch.nn.Module):
        notes = (*notes, INSTANCE)
    if "DATA_SOURCE" in namespace:
        notes = (*notes, f"data: {_said(namespace, 'DATA_SOURCE', str, source)}")
    evaluate, directions = metric_of(namespace, source), directions_of(namespace, source)
    if checkpoint is not None:
        notes = (*notes, checkpoint.note)
    return Job(
        name=_name(source) if not attribute else f"{_name(source)}:{attribute}",
        source=source,
        build_model=_factory(model, source),
        train_batches=_source(batches),
        losses=losses_of(namespace, source),
        build_optimizers=build_optimizers,
        evaluate=evaluate,
        higher_is_better=directions if isinstance(directions, bool) else any(directions.values()) or not directions,
        directions=None if isinstance(directions, bool) else directions,
        synthetic_data=_said(namespace, "SYNTHETIC_DATA", bool, source) if "SYNTHETIC_DATA" in namespace else False,
        notes=notes,
        margins=margins_of(namespace, source),
        checkpoint=checkpoint,
        batch_dim=batch_dim_of(namespace, source),
        target=target,
    )


def _said(namespace: dict[str, Any], name: str, kind: Callable[[Any], _Said], source: str) -> _Said:
    """A setting of the file as text or as a bool; its own methods may raise."""
    try:
        return kind(namespace[name])
    except Exception as error:
        what = "text" if kind is str else "True or False"
        raise UsageError(
            "target-setting", f"{source}: {name} is not {what}: {type(error).__name__}: {safe_text(error)}",
            f"give {name} as {what}",
        ) from None  # fmt: skip


def _name(source: str) -> str:
    """model for model.py; package.module for a module."""
    return Path(source).stem if source.endswith(".py") else Path(source).name


def _factory(model: Any, source: str) -> Any:
    if isinstance(model, torch.nn.Module):
        return lambda: copied(model, source)
    if callable(model):
        return model
    raise UsageError(
        "target-no-model",
        f"{source}: the model is {type(model).__name__}, neither a torch.nn.Module nor a function",
        f"define {EXAMPLE}",
    )


def _source(batches: Any) -> Callable[[], Iterable[Any]]:
    """A function that gives the batches anew each time, also from an iterator that can be read only once."""
    if callable(batches):
        return batches  # type: ignore[no-any-return] # the user's function; what it returns is checked when drawn
    if not isinstance(batches, Iterator):
        return lambda: batches
    replay = Replay(batches)
    return lambda: replay


def _import(target: str) -> tuple[ModuleType, str | None, str]:
    """The module, the attribute asked for, and what to call the source in messages."""
    name, _, attribute = target.rpartition(":")
    if not name or "/" in attribute or attribute.endswith(".py"):
        name, attribute = target, ""
    if name.endswith(".py") or "/" in name or (Path(name).exists() if not attribute else Path(name).is_file()):
        return _import_file(Path(name), bool(attribute)), attribute or None, name
    if not attribute:
        raise UsageError(
            "target-not-found",
            f"{target}: no such file",
            "give a Python file, file.py:attr or package.module:attr",
        )
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        with guarded(f"importing {name}"):
            return importlib.import_module(name), attribute, name
    except MpdiagError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name in (
            name,
            name.split(".")[0],
        ):
            raise UsageError(
                "target-not-found",
                f"{target}: no module named {error.__cause__.name}",
                "run from the folder that holds the package, or give the path of the file",
            ) from None
        raise


def _import_file(path: Path, attribute_given: bool) -> ModuleType:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UsageError("target-not-found", f"{path}: {what}", "give the path of a Python file, such as model.py")
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f"{path}:{line}" if line else str(path)
        raise UsageError(
            "target-syntax",
            f"{place}: {getattr(error, 'msg', None) or error}",
            "mend the file: Python cannot read it",
        ) from None
    if not attribute_given and contract.looks_like_a_script(tree):
        raise UsageError(
            "target-is-a-script",
            f"{path} trains when it is run and defines no model function, so it is not imported",
            f"move its parts into functions: {EXAMPLE}",
        )
    # its neighbours import as they would in `python model.py`; a private name cannot clash with a package
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = f"_mpdiag_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError("target-not-found", f"{path} is not a Python file", "give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickling and dataclasses look modules up by name
    with guarded(f"importing {path}"):
        spec.loader.exec_module(module)
    return module
