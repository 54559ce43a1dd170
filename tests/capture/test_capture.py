"""The observed run: exact tables on models whose gradients are known on paper, and not a bit changed by looking."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import _global_forward_hooks
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

from mpdiag.capture.autocast_types import observe
from mpdiag.capture.ledger import Ledger
from mpdiag.capture.modules import ModuleWatch
from mpdiag.capture.probe import Probe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.capture.selftest import run_selftest
from mpdiag.diagnosis import Capture, SelfTest, TensorKind, TensorTable
from mpdiag.drift import observed_parts
from mpdiag.errors import MpdiagError
from mpdiag.histogram import ExponentHistogram
from mpdiag.target.batches import tensors_in
from mpdiag.target.job import ONLY, Job

CPU = torch.device("cpu")
A, AG = TensorKind.ACTIVATION, TensorKind.ACTIVATION_GRADIENT
W, WG, WU = TensorKind.WEIGHT, TensorKind.WEIGHT_GRADIENT, TensorKind.WEIGHT_UPDATE


def constant(module: nn.Module, value: float = 0.5) -> nn.Module:
    """The module with every parameter set to one value."""
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def mean_of_all(model: nn.Module, batch: Any) -> torch.Tensor:
    """The sum of every floating tensor of the output."""
    return sum(t.sum() for t in tensors_in(model(batch)) if t.is_floating_point())


def job(
    build_model: Callable[[], nn.Module],
    batch: Any,
    loss: Callable[[nn.Module, Any], torch.Tensor] = mean_of_all,
    lr: float = 0.25,
) -> Job:
    def losses(model: nn.Module, batch: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, batch)

    return Job(
        name="tiny",
        source="tiny.py",
        build_model=build_model,
        train_batches=lambda: [batch() if callable(batch) else batch],
        losses=losses,
        build_optimizers=lambda m: {ONLY: torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=lr)},
    )


def capture(the_job: Job, steps: int = 1, **patterns: tuple[str, ...]) -> Capture:
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    observe_training(the_job, the_job.start(0, 1), observation, observed_parts(steps), **patterns)
    return observation.record()


def tables(the_job: Job, steps: int = 1, **patterns: tuple[str, ...]) -> dict[tuple[TensorKind, str], TensorTable]:
    found = capture(the_job, steps, **patterns).tables
    by_key = {(table.kind, table.name): table for table in found}
    assert len(by_key) == len(found)
    return by_key


def bins(table: TensorTable) -> dict[int, int]:
    return table.histogram.bins


# one Linear(2, 1) of weights 0.5, no bias, inputs (1, 4) and (2, 8): outputs 2.5 and 5, gradients 1 and 1, weight
# gradients 3 and 12, updates -0.75 and -3


def linear_job() -> Job:
    return job(lambda: constant(nn.Sequential(nn.Linear(2, 1, bias=False))), torch.tensor([[1.0, 4.0], [2.0, 8.0]]))


def test_a_linear_gives_exactly_five_tables_in_the_order_seen():
    found = [(table.kind, table.name) for table in capture(linear_job()).tables]
    assert found == [(A, "0"), (AG, "0"), (WG, "0.weight"), (W, "0.weight"), (WU, "0.weight")]


@pytest.mark.parametrize(
    ("key", "expected", "largest", "smallest"),
    [
        ((A, "0"), {1: 1, 2: 1}, 5.0, 2.5),
        ((AG, "0"), {0: 2}, 1.0, 1.0),
        ((W, "0.weight"), {-1: 2}, 0.5, 0.5),
        ((WG, "0.weight"), {1: 1, 3: 1}, 12.0, 3.0),
        ((WU, "0.weight"), {-1: 1, 1: 1}, 3.0, 0.75),
    ],
    ids=["activation", "activation_gradient", "weight", "weight_gradient", "weight_update"],
)
def test_each_table_of_a_linear_is_the_one_worked_out_on_paper(key, expected, largest, smallest):
    table = tables(linear_job())[key]
    assert table.histogram == ExponentHistogram.from_bins(expected)
    assert (table.abs_max, table.abs_min, table.abs_max_by_step) == (largest, smallest, (largest,))
    assert (table.module_type, table.dtype, table.elements, table.steps) == ("Linear", "float32", 2, 1)


def test_only_the_update_says_how_much_of_it_is_stagnant():
    found = tables(linear_job())
    assert {key[0] for key, table in found.items() if table.stagnant is not None} == {WU}
    assert found[WU, "0.weight"].stagnant == {"FP16": 0.0, "BF16": 0.0}


def test_an_update_of_2_to_minus_11_next_to_a_half_stagnates_in_bf16_only():
    # ulp of 0.5 from below: 2^-12 in FP16, 2^-9 in BF16
    table = tables(job(lambda: constant(nn.Linear(1, 1, bias=False)), torch.ones(1, 1), lr=2.0**-11))
    assert table[WU, "weight"].stagnant == {"FP16": 0.0, "BF16": 1.0}


def test_a_second_step_is_added_to_the_first():
    # gradients are the same again; weights go from 0.5 to -0.25 and -2.5
    found = tables(linear_job(), steps=2)
    assert bins(found[WG, "0.weight"]) == {1: 2, 3: 2}
    assert bins(found[W, "0.weight"]) == {-2: 1, -1: 2, 1: 1}
    # outputs of the second step: -0.25 - 10 and -0.5 - 20
    assert found[A, "0"].abs_max_by_step == (5.0, 20.5)
    assert (found[A, "0"].elements, found[A, "0"].steps, found[A, "0"].histogram.total) == (2, 2, 4)


def test_the_losses_are_those_of_the_run():
    assert capture(linear_job(), steps=2).losses == (7.5, -30.75)


def test_the_capture_says_what_it_ran():
    record = capture(linear_job(), steps=2)
    assert (record.precision, record.device, record.steps, record.seed) == ("FP32 (IEEE)", "cpu", 2, 0)
    assert record.input_abs_max == 8.0


def test_zeros_are_counted_apart():
    found = tables(job(lambda: nn.Sequential(nn.ReLU(), constant(nn.Linear(1, 1))), torch.tensor([[-1.0], [4.0]])))
    assert found[A, "0"].histogram == ExponentHistogram.from_bins({2: 1}, zeros=1)


def test_the_source_is_the_users_line():
    table = tables(linear_job())[A, "0"]
    file, _, line = table.source.rpartition(":")
    assert file.endswith("test_capture.py")
    assert int(line) == mean_of_all.__code__.co_firstlineno + 2


# models with traps


def test_a_module_called_twice_is_counted_once_a_call_under_one_name():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = constant(nn.Linear(1, 1, bias=False))

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(value))

    # x = 4: outputs 2 and 1; their gradients 0.5 and 1; weight gradient 4 * 0.5 + 2 = 4
    found = tables(job(Twice, torch.tensor([[4.0]])))
    assert bins(found[A, "layer"]) == {0: 1, 1: 1}
    assert bins(found[AG, "layer"]) == {-1: 1, 0: 1}
    assert bins(found[WG, "layer.weight"]) == {2: 1}
    assert found[A, "layer"].elements == 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.b.weight = self.a.weight
        constant(self)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(value))


def test_a_shared_weight_is_counted_once_under_its_first_name():
    found = tables(job(Tied, torch.tensor([[4.0]])))
    assert {name for kind, name in found if kind in (W, WG, WU)} == {"a.weight"}
    assert bins(found[WG, "a.weight"]) == {2: 1}
    assert {name for kind, name in found if kind is A} == {"a", "b"}


def test_an_in_place_relu_is_a_new_value_beside_its_convolutions():
    def model() -> nn.Module:
        return nn.Sequential(constant(nn.Conv2d(1, 1, 1, bias=False), 2.0), nn.ReLU(inplace=True))

    # inputs 1 and -1: convolution 2 and -2, ReLU 2 and 0
    found = tables(job(model, torch.tensor([1.0, -1.0]).reshape(1, 1, 1, 2)))
    assert found[A, "0"].histogram == ExponentHistogram.from_bins({1: 2})
    assert found[A, "1"].histogram == ExponentHistogram.from_bins({1: 1}, zeros=1)
    assert found[AG, "0"].histogram == ExponentHistogram.from_bins({0: 1}, zeros=1)
    assert found[AG, "1"].histogram == ExponentHistogram.from_bins({0: 2})


def test_a_container_that_returns_its_last_childs_output_is_not_counted_again():
    model = lambda: nn.Sequential(nn.Sequential(nn.Identity(), constant(nn.Linear(1, 1))), nn.Identity())
    found = tables(job(model, torch.ones(1, 1)))
    assert [name for kind, name in found if kind is A] == ["0.0", "0.1"]


def test_a_container_that_returns_a_new_tensor_is_counted():
    class Doubling(nn.Sequential):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return super().forward(value) * 2

    found = tables(job(lambda: Doubling(constant(nn.Linear(1, 1, bias=False))), torch.ones(1, 1)))
    assert bins(found[A, "0"]) == {-1: 1}
    assert bins(found[A, "Doubling"]) == {0: 1}
    assert bins(found[AG, "0"]) == {1: 1}


@dataclasses.dataclass
class Output:
    y: torch.Tensor
    more: Any = None


class Branching(nn.Module):
    def __init__(self, form: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.form = form

    def forward(self, value: torch.Tensor) -> Any:
        return self.form(value * self.weight, value / self.weight)


FORMS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "dataclass": lambda a, b: Output(a, b),
    "nested": lambda a, b: {"x": (a, Output(b)), "n": torch.arange(3)},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_of_a_nested_output_is_counted(form):
    # x = 8: 16 and 4; both gradients are 1; dL/dw = 8 - 8 / 4 = 6
    found = tables(job(lambda: Branching(FORMS[form]), torch.tensor([8.0])))
    assert bins(found[A, "Branching"]) == {2: 1, 4: 1}
    assert bins(found[AG, "Branching"]) == {0: 2}
    assert bins(found[WG, "weight"]) == {2: 1}


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4)

    def forward(self, value: Any) -> Any:
        output, (h, c) = self.lstm(value)
        return output, h, c


def packed_batch() -> PackedSequence:
    return pack_sequence([torch.ones(5, 3), torch.ones(2, 3)])


def test_an_lstm_over_a_packed_sequence_is_counted_with_its_states():
    found = tables(job(Packed, packed_batch))
    assert found[A, "lstm"].elements == (5 + 2) * 4 + 2 * 4 + 2 * 4
    assert found[AG, "lstm"].elements == 44
    assert {name for kind, name in found if kind is WG} == {
        f"lstm.{part}_{gate}_l0" for part in ("weight", "bias") for gate in ("ih", "hh")
    }


def half_frozen() -> nn.Module:
    model = constant(nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)))
    model[0].requires_grad_(False)
    return model


def test_a_frozen_parameter_has_no_gradient_nor_update_and_its_output_none_either():
    found = tables(job(half_frozen, torch.tensor([[4.0]])))
    assert {name for kind, name in found if kind is A} == {"0", "1"}
    assert {name for kind, name in found if kind is AG} == {"1"}
    assert {name for kind, name in found if kind in (W, WG, WU)} == {"1.weight"}
    assert bins(found[WG, "1.weight"]) == {1: 1}


def test_a_sparse_gradient_is_counted_by_its_stored_values():
    model = lambda: constant(nn.Embedding(10, 2, sparse=True))
    found = tables(job(model, torch.tensor([3, 3, 7])))
    assert bins(found[WG, "weight"]) == {0: 2, 1: 2}


def test_a_complex_output_is_counted_in_both_parts():
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrum = Spectrum()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.spectrum(value * self.weight).abs()

    class Spectrum(nn.Module):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return torch.complex(value, value * 4)

    found = tables(job(Fourier, torch.tensor([1.0])))
    assert bins(found[A, "spectrum"]) == {1: 1, 3: 1}
    assert found[AG, "spectrum"].elements == 2


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.body = constant(nn.Linear(1, 1, bias=False)), constant(nn.Linear(1, 1, bias=False))
        self.reentrant = reentrant

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.body, self.first(value), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_not_a_second_forward_and_its_gradient_is_seen_once(reentrant):
    found = tables(job(lambda: Checkpointed(reentrant), torch.tensor([[4.0]])))
    assert bins(found[A, "body"]) == {0: 1}
    assert bins(found[AG, "body"]) == {0: 1}
    assert bins(found[WG, "body.weight"]) == {1: 1}


def test_a_module_never_called_is_named():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = constant(nn.Linear(1, 1)), nn.Linear(1, 1)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.used(value)

    record = capture(job(Unused, torch.ones(1, 1)))
    assert record.not_seen == ("spare",)


# include and exclude


def two_layers() -> Job:
    return job(lambda: constant(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))), torch.ones(1, 1))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ({"include": ("1*",)}, {"1", "1.weight", "1.bias"}),
        ({"exclude": ("*.bias", "0*")}, {"1", "1.weight"}),
        ({"include": ("0*", "1"), "exclude": ("0.*",)}, {"0", "1"}),
        ({"include": ("nothing",)}, set()),
        ({}, {"0", "1", "0.weight", "0.bias", "1.weight", "1.bias"}),
    ],
    ids=["include", "exclude", "both", "none match", "no pattern"],
)
def test_patterns_choose_the_names_counted(patterns, names):
    assert {name for _, name in tables(two_layers(), **patterns)} == names


# not a bit changed


def accumulate(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return sum(model(part).pow(2).sum() for part in batch)


class PlusEquals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        y = self.layer(value)
        y += value
        return y


def image_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


JOBS: dict[str, Callable[[], Job]] = {
    "linear": linear_job,
    "convolution, batch norm, in-place relu, dropout": lambda: job(image_net, lambda: torch.randn(3, 2, 6, 6)),
    "transformer encoder": lambda: job(encoder, lambda: torch.randn(2, 5, 8)),
    "tied weights": lambda: job(Tied, torch.tensor([[4.0]])),
    "plus equals": lambda: job(PlusEquals, lambda: torch.randn(4, 3)),
    "packed lstm": lambda: job(Packed, packed_batch),
    "half frozen": lambda: job(half_frozen, torch.ones(2, 1)),
    "sparse embedding": lambda: job(lambda: nn.Embedding(10, 2, sparse=True), torch.tensor([3, 3, 7])),
    "checkpoint, reentrant": lambda: job(lambda: Checkpointed(True), torch.ones(2, 1)),
    "checkpoint": lambda: job(lambda: Checkpointed(False), torch.ones(2, 1)),
    "several calls": lambda: job(lambda: nn.Linear(3, 3), lambda: torch.randn(4, 2, 3), accumulate),
    **{
        f"{form} output": (lambda form=form: job(lambda: Branching(FORMS[form]), torch.tensor([8.0]))) for form in FORMS
    },
}


@pytest.mark.parametrize("name", JOBS)
def test_the_probe_changes_no_bit_of(name):
    the_job = JOBS[name]()
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=3)
    assert result == SelfTest(True, 3, 0.0, 0.0)


def test_a_job_that_differs_from_itself_gives_none_and_says_by_how_much():
    def noisy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).sum() * (1 + int.from_bytes(os.urandom(4), "big") / 2**32)

    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(1, 1), noisy)
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=2)
    assert result.unchanged is None
    assert result.control > 0
    assert "not deterministic" in result.reason


def test_a_probe_that_meddles_is_caught(monkeypatch):
    # the self-test can fail: a probe whose counting adds to each weight
    def meddle(self: Ledger, site: Any, tensor: torch.Tensor, later: bool = False) -> None:
        if isinstance(tensor, nn.Parameter):
            tensor.data += 2.0**-10

    monkeypatch.setattr(Ledger, "count", meddle)
    the_job = linear_job()
    result = run_selftest(the_job, the_job.start(0, 1), CPU, steps=2)
    assert result.unchanged is False
    assert result.difference > 0
    assert result.control == 0.0


def test_a_probe_that_draws_random_numbers_is_caught(monkeypatch):
    monkeypatch.setattr(Probe, "step_done", lambda self: torch.rand(1))
    the_job = linear_job()
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=1).unchanged is False


def test_the_selftest_runs_a_job_whose_loss_is_nan_without_calling_it_changed():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.tensor([[float("nan")]]))
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=2).unchanged is True


# noise


def norm_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))


def test_the_bias_before_a_batch_norm_is_marked_as_noise_and_no_other():
    the_job = job(norm_net, lambda: torch.randn(16, 2, 6, 6), lambda m, b: m(b).pow(2).mean())
    found = tables(the_job, steps=2)
    assert {name for (kind, name), table in found.items() if table.noise_level} == {"0.bias"}
    assert not found[WG, "1.bias"].noise_level
    assert not found[WG, "3.bias"].noise_level


def test_an_ordinary_bias_in_front_of_a_linear_is_not_noise():
    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    found = tables(job(model, lambda: torch.randn(64, 4), lambda m, b: m(b).pow(2).mean()))
    assert not any(table.noise_level for table in found.values())


# nothing left behind


def hooks_on(model: nn.Module) -> int:
    modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return modules + sum(
        len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()
    )


def test_removing_the_probe_takes_every_hook_off():
    model = image_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, [optimizer], CPU)
    # two on each of 6 parameters; modules are watched by one hook of torch's own
    assert hooks_on(model) == 2 * 6
    assert len(_global_forward_hooks) == 1
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (1, 1)
    probe.remove()
    assert hooks_on(model) == 0
    assert not _global_forward_hooks
    assert (len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)) == (0, 0)


class Prompt(nn.Module):
    """Returns its own parameter, as learnt prompts, queries and position tables do."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.tensor([2.0]))

    def forward(self) -> torch.Tensor:
        return self.tokens


class Prompted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = Prompt()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.prompt()


def test_a_module_that_returns_its_own_parameter_has_its_gradient_counted_once_a_step():
    found = tables(job(Prompted, torch.tensor([4.0])), steps=3)
    assert bins(found[AG, "prompt"]) == {2: 3}
    assert bins(found[WG, "prompt.tokens"]) == {2: 3}


def test_a_module_that_returns_its_own_parameter_has_no_hook_left_on_it():
    model = Prompted()
    probe = Probe(model, [], CPU)
    model(torch.tensor([4.0])).sum().backward()
    probe.remove()
    assert hooks_on(model) == 0


def test_a_capture_that_fails_leaves_no_hook_on_the_model_and_keeps_what_was_counted():
    built = []

    def model() -> nn.Module:
        built.append(constant(nn.Linear(1, 1)))
        return built[-1]

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if model.weight.item() != 0.5:
            raise ValueError("second step")
        return model(batch).sum()

    the_job = job(model, torch.ones(1, 1), loss)
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    with pytest.raises(MpdiagError):
        observe_training(the_job, the_job.start(0, 1), observation, observed_parts(5))
    assert [hooks_on(each) for each in built] == [0] * len(built)
    assert len(observation.losses) == 1
    assert {table.steps for table in observation.tables} == {1}


def test_an_infinite_fp32_loss_stops_the_capture_at_its_step():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.tensor([[3e38]]), lambda m, b: m(b).sum() * 8)
    observation = Observation(CPU, seed=0, selftest=SelfTest(None, 0))
    with pytest.raises(MpdiagError) as caught:
        observe_training(the_job, the_job.start(0, 1), observation, observed_parts(5))
    assert caught.value.slug == "loss-not-finite"
    assert observation.losses == [float("inf")]
    assert observation.tables


def test_no_activation_is_kept_alive_by_the_watch():
    model = nn.Linear(2, 2)
    import weakref

    seen = []
    watch = ModuleWatch(model, lambda name, module, tensor: seen.append(weakref.ref(tensor)))
    model(torch.ones(1, 2))
    assert [ref() for ref in seen] == [None]
    watch.remove()


# the types under FP16


def test_the_types_are_those_of_fp16_autocast():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc, self.norm = nn.Embedding(5, 4), nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.norm(self.fc(self.embed(value)))

    the_job = job(Net, torch.tensor([1, 2]), lambda m, b: m(b).pow(2).mean())
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert types.outputs == {"embed": "float32", "fc": "float16", "norm": "float32"}
    assert types.cast == {"fc.weight", "fc.bias"}
    assert (types.loss, types.error, types.nonfinite) == ("float32", None, ())
    record = tables(the_job)
    assert types.of(record[AG, "fc"]).amp_dtype == "float16"
    assert types.of(record[WG, "fc.weight"]).amp_dtype == "float16"
    assert types.of(record[WU, "fc.weight"]).amp_dtype == "float32"
    assert types.of(record[WG, "norm.weight"]).amp_dtype == "float32"


def test_a_module_that_overflows_fp16_is_named():
    the_job = job(lambda: constant(nn.Sequential(nn.Identity(), nn.Linear(1, 1))), torch.tensor([[3e5]]))
    assert observe(the_job, the_job.start(0, 1), CPU).nonfinite == ("1",)


def test_an_operator_that_autocast_refuses_is_the_error():
    loss = lambda m, b: nn.functional.binary_cross_entropy(m(b).float().sigmoid(), torch.ones(1, 1))
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(1, 1), loss)
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert "unsafe to autocast" in types.error
    assert types.outputs == {"Linear": "float16"}


def test_a_packed_lstms_weights_are_cast():
    the_job = job(Packed, packed_batch)
    types = observe(the_job, the_job.start(0, 1), CPU)
    assert types.cast == {f"lstm.{part}_{gate}_l0" for part in ("weight", "bias") for gate in ("ih", "hh")}


class OverGraph(nn.Module):
    """Messages along a sparse adjacency, kept as a buffer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("adjacency", torch.eye(3).to_sparse(), persistent=False)

    def forward(self, nodes):
        return torch.sparse.mm(self.adjacency, self.layer(nodes).float())


def test_a_model_with_a_sparse_buffer_passes_the_selftest():
    the_job = job(OverGraph, torch.ones(3, 4))
    assert run_selftest(the_job, the_job.start(0, 1), CPU, steps=2).unchanged is True


def test_an_output_without_elements_has_not_vanished():
    the_job = job(lambda: constant(nn.Linear(1, 1)), torch.ones(0, 1))
    assert observe(the_job, the_job.start(0, 1), CPU).vanished == ()
