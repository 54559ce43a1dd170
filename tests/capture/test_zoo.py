"""A zoo of training jobs: not a bit changes when they are looked at, and what is counted is what a witness recorded.

The witness is a third run without the probe. It stands between each module and its caller, calls autograd.grad where
the loop calls backward, and counts with NumPy: no code that counts is shared with what it judges.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import importlib.util
import pickle
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from mpdiag.capture.probe import Probe
from mpdiag.capture.selftest import run_selftest
from mpdiag.diagnosis import SelfTest, TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram
from mpdiag.target import load_job
from mpdiag.target.batches import map_tensors

HERE = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
STEPS = 3
A, AG = TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT
W, WG, WU = TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE
Key = tuple[TensorKind, str]


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a job's tables must hold, worked out by hand: elements of one iteration.

    activations: by module. gradients: those of activations where they differ. backwards: how many times an
    iteration brings every trained parameter its gradient; weight_gradients: where a parameter differs.
    """

    activations: dict[str, int]
    gradients: dict[str, int] = dataclasses.field(default_factory=dict)
    backwards: int = 1
    weight_gradients: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    not_seen: tuple[str, ...] = ()


def mlp(batch: int, hidden: int, out: int, calls: int = 1) -> dict[str, int]:
    return {"0": calls * batch * hidden, "1": calls * batch * hidden, "2": calls * batch * out}


INSIDE_THE_TEACHER = tuple(
    f"teacher.layers.{i}.{name}"
    for i in range(2)
    for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
)
OUTPUTS = {f"heads.{form}_head": 2 * 5 * 2 for form in ("tuple", "named", "dict", "dataclass")}

TARGETS = {
    # dropout and the last ReLU write into their input: the same tensor, but a new value
    "in_place": Paper({"first": 40, "second": 40, "drop": 40, "relu": 40}),
    # three calls, all under the first name
    "reused": Paper({"block.0": 3 * 12, "block.1": 3 * 12}),
    # 4 rows of 6 codes
    "tied": Paper({"embed": 24 * 8, "mix": 24 * 8, "head": 24 * 16}),
    # the look-alike and the lists hold a scalar beside the two halves
    "outputs": Paper({"body": 20, **OUTPUTS, "heads.model_head": 21, "heads.lists_head": 21}),
    # 10 of 15 steps are real, two directions of 4; h and c are 2 x 3 x 4 each, and nothing depends on h
    "packed_lstm": Paper({"lstm": 10 * 8 + 24 + 24, "head": 30}, {"lstm": 10 * 8 + 24}),
    # the second one's weights: 2 batches of 5 x 3
    "attention": Paper({"own": 80, "norm": 80, "across": 80 + 30}, not_seen=("own.out_proj", "across.out_proj")),
    # the fast path runs a whole layer in one call: nothing inside it is called
    "teacher": Paper(
        {"teacher.layers.0": 336, "teacher.layers.1": 336, "student.0": 672, "student.1": 672, "student.2": 336},
        {"teacher.layers.0": 0, "teacher.layers.1": 0},
        not_seen=INSIDE_THE_TEACHER,
    ),
    # 16 of 21 positions are real; the padding returns, as zeros, when the encoder is left
    "nested_teacher": Paper(
        {
            "teacher.layers.0": 16 * 16, "teacher.layers.1": 16 * 16, "teacher": 21 * 16,
            "student.0": 672, "student.1": 672, "student.2": 336,
        },
        {"teacher.layers.0": 0, "teacher.layers.1": 0, "teacher": 0},
        not_seen=INSIDE_THE_TEACHER,
    ),
    # a real transform of 8 has 5 complex numbers, of two parts each
    "fourier": Paper({"lift": 24, "spectrum": 30, "filter": 30, "Network": 24}, weight_gradients={"filter.weight": 10}),
    # gradients are stored for the 3 different codes only
    "sparse": Paper(
        {"embed": 24, "bag": 8, "head": 2}, weight_gradients={"embed.weight": 12, "bag.weight": 12}
    ),
    "custom_function": Paper({"0": 30, "1": 30, "2": 30, "3": 10}),
    # recomputation is no second forward pass
    "checkpointed": Paper(
        {
            "stem": 48, "old.0": 48, "old.1": 48, "old.2": 48, "new.0": 48, "new.1": 48, "new.2": 48, "head": 12,
        }
    ),
    # the slope's own backward comes first, then the loss's
    "penalty": Paper(mlp(6, 8, 1), mlp(6, 8, 1, calls=2)),
    "frozen": Paper(
        {"backbone.0": 256, "backbone.1": 256, "backbone.2": 256, "norm": 16, "head": 12, "Network": 12},
        {"backbone.0": 0, "backbone.1": 0, "backbone.2": 0},
        weight_gradients={"spare.weight": 0, "spare.bias": 0},
        not_seen=("spare",),
    ),
    "empty": Paper(mlp(5, 4, 2)),
    "channels_last": Paper({"conv": 288, "norm": 288, "pool": 72, "head": 36}),
    # a weight computed by a module is that module's output; weight norm keeps its two parts as parameters
    "parametrized": Paper(
        {
            "0": 20, "0.parametrizations.weight.0": 12, "1": 20, "1.parametrizations.weight.0": 16,
            "2": 20, "2.parametrizations.weight.0": 16,
        }
    ),
    "mixed_dtypes": Paper({"stem": 40, "body": 40, "head": 10}),
    "own_autocast": Paper({"body": 40, "norm": 40, "head": 10}),
    "fused_adamw": Paper(mlp(5, 8, 2)),
    "fused_sgd": Paper(mlp(5, 8, 2)),
    "foreach_adam": Paper(mlp(5, 8, 2)),
}  # fmt: skip

LOOPS = {
    "accumulation": Paper(mlp(3, 8, 1, calls=4), backwards=4),
    "clipping": Paper(mlp(5, 8, 2)),
    "own_gradients": Paper(mlp(5, 8, 1)),
    # the inner step's backward, then the outer one through both passes
    "meta_learning": Paper(mlp(5, 6, 1, calls=2), mlp(5, 6, 1, calls=3), backwards=2),
    "scaler": Paper(mlp(5, 8, 2), skipped=1),
    "scaler_fused": Paper(mlp(5, 8, 2), skipped=1),
    "scaler_clipped": Paper(mlp(5, 8, 2, calls=2), backwards=2),
    # the student is called twice; its copies are no part of it
    "ema": Paper({"0": 2 * 40, "1": 2 * 40, "2": 2 * 10}),
    "saving": Paper(mlp(5, 4, 1)),
    # both losses reach the body, each its own head
    "two_optimizers": Paper(
        {"body": 40, "left": 5, "right": 5},
        {"body": 80, "left": 5, "right": 5},
        weight_gradients={"body.weight": 2 * 32, "body.bias": 2 * 8},
    ),
    "closure": Paper(mlp(8, 4, 1, calls=4), backwards=4),
    # a full backward hook makes the container's output another tensor than its last child's
    "user_hooks": Paper({**mlp(5, 8, 1), "Sequential": 5}),
    # a compiled graph takes no hooks: parameters and optimizers are still watched
    "compiled_first": Paper({}, not_seen=("0", "2")),
    "compiled_later": Paper({}, not_seen=("0", "2")),
    "compiled_and_called": Paper({}, not_seen=("0", "2")),
}
ZOO = {**TARGETS, **LOOPS}
EITHER_WAY = {"user_hooks": "1"}
"""The module whose output a hook of the user's replaces: the probe may see what was computed or what came of it."""


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


# the witness


def magnitudes(tensor: torch.Tensor, divisor: float = 1.0) -> np.ndarray:
    """|x| of each real number in a tensor, as FP32 keeps it, over a power of two."""
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if tensor.is_nested:
        tensor = torch.cat([part.reshape(-1) for part in tensor.unbind()])
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return np.abs(tensor.float().cpu().numpy().astype(np.float64).reshape(-1)) / divisor


def histogram_of(values: np.ndarray) -> ExponentHistogram:
    """Counted by NumPy's frexp."""
    finite = values[np.isfinite(values) & (values > 0)]
    exponents, counts = np.unique(np.frexp(finite)[1] - 1, return_counts=True)
    bins = dict(zip(exponents.tolist(), counts.tolist(), strict=True))
    return ExponentHistogram.from_bins(
        bins, int((values == 0).sum()), int(np.isinf(values).sum()), int(np.isnan(values).sum())
    )


class Tap(torch.autograd.Function):
    """A copy of a tensor that tells what gradient reaches it."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, note: Callable[[torch.Tensor], None]) -> torch.Tensor:
        ctx.note = note
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.note(gradient)
        return gradient, None


class Witness:
    """Every tensor that the probe has to see, written down by other means."""

    def __init__(self, loop: SimpleNamespace, modules: Iterable[str]) -> None:
        self.loop = loop
        named = dict(loop.model.named_modules())
        self.modules = {id(named.get(name, loop.model)): name for name in modules}
        self.parameters = {id(p): (name, p) for name, p in loop.model.named_parameters() if p.requires_grad}
        self.dtypes: dict[Key, str] = {}
        self.steps: list[dict[Key, list[np.ndarray]]] = [{}]

    def note(self, kind: TensorKind, name: str, tensor: torch.Tensor) -> None:
        scaled = kind in (AG, WG) and hasattr(self.loop, "scaler")
        divisor = self.loop.scaler.get_scale() if scaled else 1.0
        self.steps[-1].setdefault((kind, name), []).append(magnitudes(tensor, divisor))
        self.dtypes.setdefault((kind, name), str(tensor.dtype).removeprefix("torch."))

    def step_done(self) -> None:
        self.steps.append({})

    def tapped(self, name: str, value: Any) -> Any:
        """The value with every floating or complex tensor in it noted, and replaced by its tap."""
        if isinstance(value, torch.Tensor):
            if not (value.is_floating_point() or value.is_complex()):
                return value
            self.note(A, name, value)
            return Tap.apply(value, functools.partial(self.note, AG, name)) if value.requires_grad else value
        each = functools.partial(self.tapped, name)
        if isinstance(value, PackedSequence):
            return PackedSequence(each(value.data), *value[1:])
        if dataclasses.is_dataclass(value):
            changed = copy.copy(value)
            for item in dataclasses.fields(value):
                part = each(getattr(value, item.name))
                object.__setattr__(changed, item.name, part)
                if isinstance(value, dict) and item.name in value:
                    dict.__setitem__(changed, item.name, part)
            return changed
        if isinstance(value, dict):
            return type(value)((key, each(part)) for key, part in value.items())
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(each, value))
        return type(value)(map(each, value)) if isinstance(value, list | tuple) else value

    @contextmanager
    def open(self) -> Iterator[None]:
        """Stand in the way of modules, backward, autograd.grad and the optimizers."""
        with pytest.MonkeyPatch.context() as patch:
            call, gradients_of = nn.Module.__call__, torch.autograd.grad

            def calling(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                output = call(module, *args, **kwargs)
                name = self.modules.get(id(module))
                return output if name is None else self.tapped(name, output)

            def grad(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                gradients = gradients_of(outputs, inputs, *args, **kwargs)
                for leaf, gradient in zip([inputs] if isinstance(inputs, torch.Tensor) else inputs, gradients,
                                          strict=True):  # fmt: skip
                    if id(leaf) in self.parameters and gradient is not None:
                        self.note(WG, self.parameters[id(leaf)][0], gradient)
                return gradients

            def backward(loss: torch.Tensor, gradient: Any = None, retain_graph: Any = None) -> None:
                leaves = [parameter for _, parameter in self.parameters.values()]
                found = grad(loss, leaves, gradient, retain_graph=retain_graph, allow_unused=True)
                for leaf, new in zip(leaves, found, strict=True):
                    if new is not None:
                        leaf.grad = new.clone() if leaf.grad is None else leaf.grad.add_(new)

            patch.setattr(nn.Module, "__call__", calling)
            patch.setattr(torch.autograd, "grad", grad)
            patch.setattr(torch.Tensor, "backward", backward)
            for optimizer in self.loop.optimizers:
                patch.setattr(optimizer, "step", self._stepping(optimizer), raising=True)
            yield

    def _stepping(self, optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
        original = optimizer.step
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}

        def step(*args: Any, **kwargs: Any) -> Any:
            before = {key: p.detach().clone() for key, (_, p) in self.parameters.items() if key in held}
            result = original(*args, **kwargs)
            found_inf = getattr(optimizer, "found_inf", None)
            if found_inf is not None and found_inf.item():
                return result  # a fused optimizer is called, and does nothing
            for key, old in before.items():
                name, parameter = self.parameters[key]
                if parameter.grad is not None:
                    self.note(W, name, old)
                    self.note(WU, name, (_wide(parameter) - _wide(old)).to(_narrow(old)))
                    self.dtypes[WU, name] = self.dtypes[W, name]
            return result

        return step

    def table(self, key: Key, every: int = 1) -> dict[str, Any]:
        """The fields of a table that can be known."""
        by_step = [np.concatenate(step[key]) for step in self.steps[:STEPS:every] if key in step]
        by_step = [values for values in by_step if values.size]
        histogram = sum(map(histogram_of, by_step), ExponentHistogram())
        finite = [values[np.isfinite(values)] for values in by_step]
        maxima = tuple(float(np.float32(values.max(initial=0.0))) for values in finite)
        nonzero = [values[values > 0] for values in finite]
        smallest = min((float(values.min()) for values in nonzero if values.size), default=None)
        return {
            "histogram": histogram,
            "steps": len(by_step),
            "elements": histogram.total // len(by_step),
            "dtype": self.dtypes[key],
            "abs_max_by_step": maxima,
            "abs_max": max(maxima) if histogram.finite_nonzero else None,
            "abs_min": smallest,
        }

    def tables(self, every: int = 1) -> dict[Key, dict[str, Any]]:
        """All of them that hold anything."""
        keys = {key for step in self.steps[:STEPS:every] for key, values in step.items() if sum(v.size for v in values)}
        return {key: self.table(key, every) for key in keys}


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _narrow(tensor: torch.Tensor) -> torch.dtype:
    return torch.complex64 if tensor.is_complex() else torch.float32


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


once = functools.lru_cache(maxsize=None)
plain_once, probed_once, recorded_once = once(plain), once(probed), once(recorded)


@pytest.fixture(scope="module", params=ZOO)
def name(request: pytest.FixtureRequest) -> str:
    """Each job of the zoo; of this scope, so that the tests of one job follow each other and share its runs."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype, full backward hooks warn of inputs, ...
        yield


# the zoo itself


def test_the_zoo_holds_every_loop_and_more_than_twenty_kinds():
    assert set(LOOPS) == {path.stem for path in (HERE / "loops").glob("*.py")}
    assert len(ZOO) >= 20


def test_the_witness_trains_as_the_job_does(name):
    # or its word would be worth nothing
    run, _ = recorded_once(name)
    assert run.losses == plain_once(name).losses
    assert differing(run, plain_once(name)) == []


def differing(one: Seen, other: Seen) -> list[str]:
    """iteration and name of everything that is not equal bit for bit."""
    return [
        f"{index} {name}"
        for index, (a, b) in enumerate(zip(one.snapshots, other.snapshots, strict=True))
        for name in (a | b)
        if "compiled" not in name and a.get(name) != b.get(name)
    ]


# not a bit


def test_losses_gradients_parameters_buffers_states_and_random_numbers_are_bit_equal_with_the_probe(name):
    run = probed_once(name)
    assert run.losses == plain_once(name).losses
    assert differing(run, plain_once(name)) == []


def test_no_hook_is_left_and_no_output_kept_alive(name):
    run = probed_once(name)
    assert (run.hooks_left, run.kept_alive) == (0, 0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_selftest_of_a_scan_finds_nothing_changed(target):
    job = load_job(str(_path(target)))
    assert run_selftest(job, job.start(0, 2), CPU, 2) == SelfTest(True, 2, 0.0, 0.0)


def test_a_probe_that_changed_a_bit_would_be_caught(monkeypatch):
    original = Probe.step_done

    def meddle(self: Probe) -> None:
        original(self)
        torch.rand(())

    monkeypatch.setattr(Probe, "step_done", meddle)
    assert "0 random state" in differing(probed("in_place"), plain_once("in_place"))


# the tables


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


def test_every_tensor_is_counted_as_often_as_on_paper_and_no_other(name):
    found = probed_once(name).tables
    assert {key: table.histogram.total for key, table in found.items()} == on_paper(name)
    assert set(probed_once(name).not_seen) == set(ZOO[name].not_seen)


def test_the_tables_are_those_of_the_witness(name):
    _, witness = recorded_once(name)
    assert wrong_fields(name, probed_once(name), witness) == {}


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


def test_skipped_steps_are_those_in_which_no_optimizer_moved_anything(name):
    assert probed_once(name).skipped == ZOO[name].skipped


@pytest.mark.parametrize("job", ["accumulation", "scaler_clipped", "checkpointed", "two_optimizers"])
def test_of_every_second_iteration_the_tables_hold_the_even_ones(job):
    _, witness = recorded_once(job)
    run = probed(job, every=2)
    assert differing(run, plain_once(job)) == []
    expected = {key: table["histogram"] for key, table in witness.tables(every=2).items()}
    assert {key: table.histogram for key, table in run.tables.items()} == expected


# what only one of them can show


def test_a_scale_of_two_to_the_twelve_moves_the_gradients_twelve_binades_back():
    loop, step = _built("scaler", CPU, _module(_path("scaler")))
    probe = Probe(loop.model, loop.optimizers, CPU)
    step(loop, 0)
    probe.step_done()
    scaled = {(table.kind, table.name): table.histogram for table in probe.tables()}
    probe.remove()
    loop, step = _built("scaler", CPU, _module(_path("scaler")))
    probe = Probe(loop.model, loop.optimizers, CPU, scaler=loop.scaler)
    step(loop, 0)
    probe.step_done()
    for table in probe.tables():
        key = (table.kind, table.name)
        assert table.histogram == scaled[key].scaled(-12 if table.kind in (AG, WG) else 0)
    probe.remove()


def test_infinite_gradients_of_a_skipped_step_are_counted_as_such():
    table = probed_once("scaler").tables[WG, "2.bias"]
    assert (table.steps, table.histogram.infs + table.histogram.nans) == (3, 2)
    assert probed_once("scaler").tables[WU, "2.bias"].steps == 2


def test_a_clipped_gradient_is_counted_as_backward_delivered_it():
    found = probed_once("clipping").tables
    assert found[WG, "2.bias"].abs_max > 2.0**-3
    # SGD at 0.1 cannot move a weight by more than a tenth of the norm it was clipped to
    assert found[WU, "2.bias"].abs_max < 2.0**-9


def test_an_update_of_a_float64_weight_that_fp32_cannot_tell_apart_is_counted():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(model.weight, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-30)
    probe = Probe(model, [optimizer], CPU)
    model(torch.ones(1, 1, dtype=torch.float64)).sum().backward()
    optimizer.step()
    probe.step_done()
    (update,) = (table for table in probe.tables() if table.kind is WU)
    probe.remove()
    assert update.histogram == ExponentHistogram.from_bins({-30: 1})


def test_of_a_compiled_model_that_is_probed_itself_the_output_and_the_parameters_are_seen():
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    compiled = torch.compile(model, backend="eager")
    probe = Probe(compiled, [], CPU)
    compiled(torch.ones(4, 2)).sum().backward()
    probe.step_done()
    totals = {(t.kind, t.name.removeprefix("_orig_mod.")): t.histogram.total for t in probe.tables()}
    probe.remove()
    whole = type(compiled).__name__
    assert totals == {(A, whole): 12, (AG, whole): 12, (WG, "0.weight"): 6, (WG, "0.bias"): 3}


def test_a_model_that_is_pickled_or_copied_under_the_probe_takes_no_hook_along():
    others = [each for each in gc.get_objects() if type(each) is Probe]  # of other tests; held, so that no id is reused
    model = nn.Sequential(nn.Linear(2, 2))
    probe = Probe(model, [], CPU)
    model(torch.ones(1, 2)).sum().backward()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(torch.ones(1, 2)).sum().backward()
    found = [each for each in gc.get_objects() if type(each) is Probe]
    assert [each for each in found if all(each is not other for other in others)] == [probe]
    probe.step_done()
    assert {(table.kind, table.name): table.histogram.total for table in probe.tables()} == {
        (A, "0"): 2, (AG, "0"): 2, (WG, "0.weight"): 4, (WG, "0.bias"): 2,
    }  # fmt: skip
    probe.remove()


def test_the_model_output_of_transformers_is_counted_part_by_part():
    outputs = pytest.importorskip("transformers.modeling_outputs")

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([2.0, 4.0]))

        def forward(self, x: torch.Tensor) -> Any:
            y = x * self.weight
            return outputs.CausalLMOutput(loss=y.sum(), logits=y, hidden_states=(y * 4, y * 8))

    model = Model()
    probe = Probe(model, [], CPU)
    out = model(torch.tensor([1.0, 1.0]))
    (out.loss + out["logits"].sum() + out.hidden_states[1].sum()).backward()
    probe.step_done()
    found = {(table.kind, table.name): table.histogram for table in probe.tables()}
    probe.remove()
    # loss 6; logits 2, 4; hidden 8, 16 and 16, 32. The gradient of y is 1 + 1 + 8 each
    assert found[A, "Model"] == ExponentHistogram.from_bins({1: 1, 2: 2, 3: 1, 4: 2, 5: 1})
    # the first hidden state is not used
    assert found[AG, "Model"] == ExponentHistogram.from_bins({0: 3, 3: 2})
    assert found[WG, "weight"] == ExponentHistogram.from_bins({3: 2})
