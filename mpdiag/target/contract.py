"""The names a target file may use, and what each becomes."""

from __future__ import annotations

import ast
from typing import Any

MODEL = ("build_model", "get_model", "create_model", "make_model", "model")
BATCHES = ("train_batches", "get_batches", "train_dataloader", "get_dataloader")
LOSS = ("compute_loss", "training_step")
LOSSES = ("compute_losses",)
LOSS_FN = ("loss_fn",)
OPTIMIZER = ("build_optimizer", "get_optimizer", "configure_optimizers")
OPTIMIZERS = ("build_optimizers",)
METRIC = ("evaluate",)

_CONTRACT = {*MODEL, *BATCHES, *LOSS, *LOSSES}


def find(namespace: dict[str, Any], names: tuple[str, ...]) -> Any | None:
    """The first of `names` that the target defines, or None."""
    return next((namespace[name] for name in names if namespace.get(name) is not None), None)


def looks_like_a_script(tree: ast.Module) -> bool:
    """Whether a file trains when run: it calls `.backward()` outside any contract function and defines none.

    Such a file must not be imported, because importing it would start its training.
    """
    defined = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    for node in tree.body:
        if isinstance(node, ast.Assign):
            defined |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            defined.add(node.target.id)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name for alias in node.names}
    trains = any(
        isinstance(node, ast.Attribute) and node.attr in ("backward", "fit", "train") for node in ast.walk(tree)
    )
    return trains and not defined & (_CONTRACT - {"model"})
