"""Runs of the zoo's jobs: as they are, with the probe, with the witness; and where two of them differ."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.capture.probe import Probe
from mpdiag.diagnosis import TensorTable
from mpdiag.target.batches import map_tensors
from zoo_paper_samples import AG, EITHER_WAY, STEPS, TARGETS, WG, WU, ZOO, A, Key, W
from zoo_witness_samples import Witness

HERE = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")


# a job, run


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"zoo_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _loop_of_target(target: ModuleType, device: torch.device) -> tuple[SimpleNamespace, Callable[..., torch.Tensor]]:
    """The plainest loop around a target's functions."""
    model = target.build_model().to(device).train()
    loop = SimpleNamespace(model=model, optimizers=[target.build_optimizer(model)])
    batches = iter(target.train_batches())

    def step(loop: SimpleNamespace, index: int) -> torch.Tensor:
        (optimizer,) = loop.optimizers
        batch = map_tensors(lambda t: t.to(device, copy=True), next(batches))
        optimizer.zero_grad()
        loss = target.compute_loss(loop.model, batch)
        loss.backward()
        optimizer.step()
        return loss

    return loop, step


def _built(name: str, device: torch.device, source: ModuleType) -> tuple[SimpleNamespace, Callable[..., torch.Tensor]]:
    if name.startswith("compiled"):
        torch._dynamo.reset()
    torch.manual_seed(0)
    if name in TARGETS:
        return _loop_of_target(source, device)
    return source.build(device), source.step


def _path(name: str) -> Path:
    return HERE / ("targets" if name in TARGETS else "loops") / f"{name}.py"


def _bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Type, shape and every bit of a tensor."""
    dense = tensor.detach().cpu().to_dense().resolve_conj().contiguous()
    return str(dense.dtype), tuple(dense.shape), dense.reshape(-1).view(torch.uint8).numpy().tobytes()


def _snapshot(loop: SimpleNamespace) -> dict[str, Any]:
    """All that training may leave behind: gradients, parameters, buffers, optimizer and scaler state, random state."""
    state: dict[str, Any] = {"random state": _bits(torch.get_rng_state())}
    if torch.cuda.is_available():
        state["random state of the GPU"] = _bits(torch.cuda.get_rng_state())
    for key, model in vars(loop).items():
        if not isinstance(model, nn.Module):
            continue
        for name, parameter in model.named_parameters():
            state[f"{key} parameter {name}"] = _bits(parameter)
            if parameter.grad is not None:
                state[f"{key} gradient {name}"] = _bits(parameter.grad)
        for name, buffer in model.named_buffers():
            state[f"{key} buffer {name}"] = _bits(buffer)
    for i, optimizer in enumerate(loop.optimizers):
        leaves, _ = torch.utils._pytree.tree_flatten(optimizer.state_dict())
        state[f"optimizer {i}"] = [_bits(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    if hasattr(loop, "scaler"):
        state["scaler"] = loop.scaler.state_dict()
    return state


@dataclasses.dataclass(repr=False)
class Seen:
    """What a run left: a snapshot after each iteration, and what its probe said."""

    losses: list[tuple[Any, ...]]
    snapshots: list[dict[str, Any]]
    tables: dict[Key, TensorTable] = dataclasses.field(default_factory=dict)
    not_seen: tuple[str, ...] = ()
    skipped: int = 0
    hooks_left: int = 0
    kept_alive: int = 0


def _trained(loop: SimpleNamespace, step: Callable[..., torch.Tensor], done: Callable[[], None]) -> Seen:
    seen = Seen([], [])
    for index in range(STEPS):
        loss = step(loop, index)
        done()
        seen.losses.append(_bits(loss))
        del loss
        seen.snapshots.append(_snapshot(loop))
    return seen


def _options(loop: SimpleNamespace, **more: Any) -> dict[str, Any]:
    return {"scaler": loop.scaler, **more} if hasattr(loop, "scaler") else more


def plain(name: str, device: torch.device = CPU) -> Seen:
    """The job as it is."""
    return _trained(*_built(name, device, _module(_path(name))), lambda: None)


def probed(name: str, device: torch.device = CPU, **options: Any) -> Seen:
    """The job with the probe attached."""
    with pytest.MonkeyPatch.context() as patch:
        loop, step = _built(name, device, _module(_path(name)))
        outputs = _watched_outputs(patch)
        hooks = _hooks_on(loop)
        probe = Probe(loop.model, loop.optimizers, device, **_options(loop, **options))
        alive = 0

        def done() -> None:
            probe.step_done()

        try:
            seen = _trained(loop, step, done)
            if any(ref() is not None for ref in outputs):
                gc.collect()
            alive = sum(ref() is not None for ref in outputs)
            found = probe.tables()
            seen.not_seen = probe.not_seen()
            seen.skipped = getattr(probe, "skipped_steps", 0)
        finally:
            probe.remove()
    seen.tables = {(table.kind, table.name): table for table in found}
    assert len(seen.tables) == len(found)
    seen.hooks_left = _hooks_on(loop) - hooks
    seen.kept_alive = alive
    return seen


def _watched_outputs(patch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """Fills with a weak reference to each tensor with a history that a module returns from here on."""
    found: list[weakref.ref[torch.Tensor]] = []
    original = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = original(module, *args, **kwargs)
        if isinstance(output, torch.Tensor) and output.grad_fn is not None:
            found.append(weakref.ref(output))
        return output

    patch.setattr(nn.Module, "__call__", call)
    return found


def _hooks_on(loop: SimpleNamespace) -> int:
    """Hooks on the model, its parameters and the optimizers."""
    model = loop.model
    on_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    on_parameters = sum(
        len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()
    )
    steps = sum(len(o._optimizer_step_pre_hooks) + len(o._optimizer_step_post_hooks) for o in loop.optimizers)
    return on_modules + on_parameters + steps


def recorded(name: str, device: torch.device = CPU) -> tuple[Seen, Witness]:
    """The job with the witness in place of the probe: nothing compiled, nothing computed twice."""
    source = _module(_path(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda model, **_: model)
        if hasattr(source, "checkpoint"):
            patch.setattr(source, "checkpoint", lambda body, *args, **_: body(*args))
        loop, step = _built(name, device, source)
        witness = Witness(loop, ZOO[name].activations)
        with witness.open():
            return _trained(loop, step, witness.step_done), witness


def differing(one: Seen, other: Seen) -> list[str]:
    """iteration and name of everything that is not equal bit for bit."""
    return [
        f"{index} {name}"
        for index, (a, b) in enumerate(zip(one.snapshots, other.snapshots, strict=True))
        for name in (a | b)
        if "compiled" not in name and a.get(name) != b.get(name)
    ]


def on_paper(name: str) -> dict[Key, int]:
    """Elements of all iterations by kind and name, from the sizes written down above."""
    paper = ZOO[name]
    loop, _ = _built(name, CPU, _module(_path(name)))
    trained = {n: p for n, p in loop.model.named_parameters() if p.requires_grad}
    # a complex parameter has two numbers in each element
    sizes = {n: p.numel() * (2 if p.is_complex() else 1) for n, p in trained.items()}
    counts: dict[Key, int] = {}
    for module, elements in paper.activations.items():
        counts[A, module] = elements * STEPS
        counts[AG, module] = paper.gradients.get(module, elements) * STEPS
    for parameter, size in sizes.items():
        counts[WG, parameter] = paper.weight_gradients.get(parameter, paper.backwards * size) * STEPS
        if counts[WG, parameter]:
            counts[W, parameter] = counts[WU, parameter] = size * (STEPS - paper.skipped)
    if name == "empty":  # the second batch brings gradients of zeros, but no activation
        counts = {key: count * 2 // 3 if key[0] in (A, AG) else count for key, count in counts.items()}
    return {key: count for key, count in counts.items() if count}


def wrong_fields(name: str, run: Seen, witness: Witness) -> dict[tuple[str, ...], tuple[Any, Any]]:
    """What a table says and what the witness says, wherever they differ."""
    expected = witness.tables()
    wrong: dict[tuple[str, ...], tuple[Any, Any]] = {
        (kind.value, module): ((kind, module) in run.tables, (kind, module) in expected)
        for kind, module in set(run.tables) ^ set(expected)
    }
    for key in set(run.tables) & set(expected):
        if key[1] == EITHER_WAY.get(name):
            continue
        for field, value in expected[key].items():
            shown = getattr(run.tables[key], field)
            if shown != value:
                wrong[key[0].value, key[1], field] = (shown, value)
    return wrong
