"""FP32 islands: what `apply` does to a model, the search for the fewest of them, and the plan from scan to training."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import mpdiag
import report_samples as samples
from mpdiag.advice import advise
from mpdiag.advice.islands import gradient_candidates, overflowing_layers
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.run import Observation, observe_training
from mpdiag.costs.record import Costs
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import Advice, Capture, Comparison, Finding, LossScaleAdvice, SelfTest, TensorKind, Trial
from mpdiag.errors import UsageError
from mpdiag.foretold import Prediction
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable
from mpdiag.plan import IslandPlan, SavedPlan, plan_of, plan_to_json, read_plan
from mpdiag.report.islands import island_sentences
from mpdiag.saved import from_json, to_json
from mpdiag.target import load_job
from mpdiag.target.job import ONLY, Job
from mpdiag.training.islands import fp32_islands, is_island, lift_islands
from mpdiag.training.precision import FP16_AUTOCAST, Precision
from mpdiag.training.session import open_session
from mpdiag.verify import island_gradients
from mpdiag.verify.arms import arms_for
from mpdiag.verify.block_ratio import ratio_interval
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.island_gradients import dead_gradients, with_live_gradients
from mpdiag.verify.island_search import IslandSearch, costed, islands_wanted, search_islands, with_islands
from mpdiag.verify.island_trial import IslandTrials, OutOfTimeError, plain_fp16
from mpdiag.verify.prediction import compare_with_fp16
from mpdiag.verify.verdict import decide, train_with

CPU = torch.device("cpu")
T5_LIKE = str(Path(__file__).parents[1] / "islands" / "t5_like.py")


def filled(size_in: int, size_out: int, value: float) -> nn.Linear:
    layer = nn.Linear(size_in, size_out, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def bf16() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


# --- an island


def test_an_island_computes_in_fp32_where_its_neighbours_do_not():
    model = mpdiag.apply(Pair(), ["head"])
    x = torch.randn(3, 4)
    with bf16():
        inner, outer = model.body(x), model(x)
    assert (inner.dtype, outer.dtype) == (torch.bfloat16, torch.float32)
    exact = nn.functional.linear(inner.float(), model.head.weight, model.head.bias)
    assert torch.equal(outer, exact)


def test_an_island_of_a_container_covers_all_inside():
    model = mpdiag.apply(Pair(), ["body"])
    with bf16():
        assert model.body(torch.randn(3, 4)).dtype == torch.float32
        assert model.body[0](torch.randn(3, 4)).dtype == torch.bfloat16  # called from outside, it is no island


def test_90000_is_infinite_in_fp16_and_exact_in_an_island():
    def losses(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch).float().sum()

    the_job = job(lambda: nn.Sequential(filled(1, 1, 300.0)), lambda: [torch.full((1, 1), 300.0)], losses)
    seen = {}
    for names in ((), ("0",)):
        precision = replace(FP16_AUTOCAST, keep_fp32=names)
        with open_session(the_job, the_job.start(0, 1), precision, CPU) as run:
            seen[names] = float(run.step(run.place(the_job.start(0, 1).batch(0)))[ONLY])
    assert seen == {(): float("inf"), ("0",): 90000.0}


def test_without_autocast_nothing_changes_to_the_bit():
    model, x = Pair(), torch.randn(3, 4)
    before = model(x)
    mpdiag.apply(model, ["head", "body"])
    assert torch.equal(model(x), before)
    half = torch.randn(3, 4, dtype=torch.float64)
    assert mpdiag.apply(nn.Sequential(nn.Identity()), ["0"])(half).dtype == torch.float64


@pytest.mark.parametrize("call", ["__call__", "forward"])
def test_calling_forward_directly_is_an_island_too(call):
    model = mpdiag.apply(Pair(), ["head"])
    with bf16():
        assert getattr(model.head, call)(torch.randn(3, 4)).dtype == torch.float32


def test_a_forward_put_into_the_instance_is_an_island_too():
    # as accelerate does
    model = Pair()
    plain = model.head.forward
    model.head.forward = lambda x: plain(x)
    mpdiag.apply(model, ["head"])
    with bf16():
        assert model.head(torch.randn(3, 4)).dtype == torch.float32


class Nested(nn.Module):
    def forward(self, pair: Any, *, named: Any, note: str, count: int) -> Any:
        self.given = [pair["a"].dtype, pair["b"][0].dtype, pair["b"][1].dtype, named.dtype, note, count]
        return {"sum": pair["a"] + named, "rest": (pair["b"], note)}


def test_inputs_in_any_nesting_are_cast_and_outputs_stay_as_they_are():
    model = mpdiag.apply(nn.Sequential(Nested()), ["0"])
    half = torch.ones(2, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.float16):
        made = model[0]({"a": half, "b": [half, torch.ones(2, dtype=torch.int64)]}, named=half, note="n", count=3)
    assert model[0].given == [torch.float32, torch.float32, torch.int64, torch.float32, "n", 3]
    assert (made["sum"].dtype, made["rest"][1]) == (torch.float32, "n")


def test_what_holds_no_16_bit_tensor_is_passed_on_itself():
    class Grows(nn.Module):
        def forward(self, seen: list[Any], x: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return x

    seen = [torch.ones(1)]
    with bf16():
        mpdiag.apply(nn.Sequential(Grows()), ["0"])[0](seen, torch.ones(1))
    assert len(seen) == 2


def test_double_stays_double():
    model = mpdiag.apply(nn.Sequential(nn.Identity()), ["0"])
    with bf16():
        assert model(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("packed", [False, True])
def test_a_recurrent_layer_can_be_an_island(packed):
    model = mpdiag.apply(nn.ModuleDict({"lstm": nn.LSTM(3, 5, batch_first=True)}), ["lstm"])
    x = torch.randn(2, 4, 3).bfloat16()
    given = pack_padded_sequence(x, [4, 2], batch_first=True) if packed else x
    with bf16():
        out, (h, c) = model["lstm"](given)
    assert {(out.data if packed else out).dtype, h.dtype, c.dtype} == {torch.float32}
    (out.data if packed else out).sum().backward()
    assert model["lstm"].weight_ih_l0.grad.dtype == torch.float32


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_by_checkpointing_is_in_fp32_too(reentrant):
    seen = []

    class Noting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(x)

    model = mpdiag.apply(nn.Sequential(nn.Linear(4, 4), Noting(4, 4)), ["1"])
    x = torch.randn(2, 4, requires_grad=True)
    with bf16():
        y = checkpoint(model, x, use_reentrant=reentrant)
    y.sum().backward()
    assert seen == [(torch.float32, False)] * 2
    assert x.grad is not None


def test_autocast_is_back_on_after_an_island_raised():
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("mine")

    model = mpdiag.apply(nn.Sequential(Fails()), ["0"])
    with bf16():
        with pytest.raises(ValueError, match="mine"):
            model(torch.ones(1))
        assert torch.is_autocast_enabled("cpu")


def test_gradients_flow_through_the_casts():
    model = mpdiag.apply(Pair(), ["body", "head"])
    other = copy.deepcopy(model)
    x = torch.randn(3, 4)
    with bf16():
        loss = model(x).sum()
    loss.backward()
    other(x).sum().backward()
    assert torch.equal(model.head.weight.grad, other.head.weight.grad)  # all of it was in FP32


def test_torch_compile_takes_an_island_in_one_graph():
    model = mpdiag.apply(Pair(), ["head"])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 4)
    with bf16():
        assert torch.equal(compiled(x), model(x))
        assert compiled(x).dtype == torch.float32


def test_a_fused_encoder_layer_keeps_its_path_and_bits():
    # hooks would take it off the fused path
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(mpdiag.apply(layer, ["layers.0.linear1"])(x), before)


# --- apply


def test_apply_returns_the_model_and_is_idempotent():
    model = Pair()
    assert mpdiag.apply(model, ["head"]) is model
    kind = type(model.head)
    assert fp32_islands(model, ["head"]) == ()
    assert type(model.head) is kind


def test_an_island_is_still_what_it_was():
    model = Pair()
    keys, text = list(model.state_dict()), repr(model)
    mpdiag.apply(model, ["head", "body"])
    assert (list(model.state_dict()), repr(model)) == (keys, text)
    assert isinstance(model.head, nn.Linear)
    assert type(model.head).__name__ == "Linear"
    Pair().load_state_dict(model.state_dict())


def test_two_islands_of_a_kind_are_of_one_class():
    model = mpdiag.apply(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), ["0", "1"])
    assert type(model[0]) is type(model[1])


def test_a_module_with_two_names_is_one_island():
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared})
    assert fp32_islands(model, ["b", "a"]) == (shared,)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_are_islands_of_their_own(copied):
    model = mpdiag.apply(Pair(), ["head"])
    other = copied(model)
    assert is_island(other.head)
    assert type(other.head) is type(model.head)
    assert other.head.weight is not model.head.weight
    with bf16():
        assert other(torch.randn(2, 4)).dtype == torch.float32


def test_lifting_makes_plain_modules_again():
    model = mpdiag.apply(Pair(), ["head"])
    lift_islands(model.modules())
    assert type(model.head) is nn.Linear
    with bf16():
        assert model(torch.randn(2, 4)).dtype == torch.bfloat16


def test_an_unknown_name_is_an_error_that_names_the_closest_and_changes_nothing():
    model = Pair()
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(model, ["head", "bodi"])
    assert caught.value.slug == "unknown-module"
    assert caught.value.message == "the model has no module 'bodi'; the closest name is 'body'"
    assert not is_island(model.head)


def test_names_are_found_behind_wrappers():
    model = torch.compile(Pair(), backend="eager")
    mpdiag.apply(model, ["head"])
    assert is_island(model._orig_mod.head)
    wrapped = nn.DataParallel(Pair())
    mpdiag.apply(wrapped, ["body.0"])
    assert is_island(wrapped.module.body[0])


@pytest.mark.parametrize("name", ["", "Pair"])
def test_the_model_itself_goes_by_its_class_or_no_name(name):
    model = mpdiag.apply(Pair(), [name])
    with bf16():
        assert model(torch.randn(2, 4)).dtype == torch.float32


def test_a_module_in_half_precision_is_refused():
    with pytest.raises(UsageError, match="'head' holds float16 parameters") as caught:
        mpdiag.apply(Pair().half(), ["head"])
    assert caught.value.slug == "island-not-fp32"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(nn.Sequential(torch.jit.script(nn.Linear(1, 1))), ["0"])
    assert caught.value.slug == "island-scripted"


def test_a_session_lifts_its_islands_for_a_job_that_builds_one_object_again():
    one = nn.Sequential(nn.Linear(1, 1))
    the_job = job(lambda: one)
    start = the_job.start(0, 1)
    with open_session(the_job, start, replace(FP16_AUTOCAST, keep_fp32=("0",)), CPU) as run:
        assert is_island(run.model[0])
        assert not is_island(one[0])  # the run has a copy
    assert not is_island(run.model[0])


def test_apply_is_found_without_torch():
    code = "import sys, mpdiag; mpdiag.apply; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- the file

SAVED = SavedPlan("FP16", ("head",), 14, "dynamic", 2000, "0.1", "model.py", modules=("Linear 4->4",))


def test_a_plan_comes_back_from_its_file(tmp_path):
    path = tmp_path / "model.plan.json"
    path.write_text(plan_to_json(SAVED))
    assert read_plan(path) == read_plan(str(path)) == read_plan(json.loads(path.read_text())) == SAVED
    assert list(json.loads(path.read_text())) == [
        "schema_version", "format", "keep_fp32", "log2_scale", "mode", "growth_interval", "made_by", "source",
        "alternative_to", "modules",
    ]  # fmt: skip
    assert is_island(mpdiag.apply(Pair(), path).head)


@pytest.mark.parametrize("plan", [{"schema_version": 1, "keep_fp32": ["head"], "new": 1}, SAVED, ("head",)])
def test_a_plan_may_be_a_dict_a_record_or_names(plan):
    assert is_island(mpdiag.apply(Pair(), plan).head)


@pytest.mark.parametrize(
    ("text", "slug", "said"),
    [
        (None, "no-such-file", "No such file"),
        ("{", "not-a-plan", "not JSON"),
        ("[]", "not-a-plan", "no schema_version"),
        ('{"schema_version": 2}', "not-a-plan", "schema_version 2, this mpdiag reads 1"),
        ('{"schema_version": 1}', "not-a-plan", "keep_fp32 is not a list"),
        ('{"schema_version": 1, "keep_fp32": [1]}', "not-a-plan", "keep_fp32 is not a list"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path, text, slug, said):
    path = tmp_path / "x.plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError) as caught:
        mpdiag.apply(Pair(), path)
    assert caught.value.slug == slug
    assert said in caught.value.message


# --- the search


def job(
    build: Callable[[], nn.Module],
    batches: Callable[[], Any] = lambda: [torch.ones(1, 1)],
    losses: Any = None,
    rate: float = 0.0,
) -> Job:
    def mean(model: nn.Module, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch).float().mean()

    return Job(
        "tiny", "tiny.py", build, batches, losses or mean,
        lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=rate)},
    )  # fmt: skip


def captured(the_job: Job, steps: int = 3) -> tuple[Capture, Advice]:
    start = the_job.start(0, steps)
    seen = Observation(CPU, 0, SelfTest(None, 0, reason="not tested"))
    seen.types = observe(the_job, start, CPU)
    observe_training(the_job, start, seen, [range(steps)])
    capture = seen.record()
    return capture, advise(capture)


def searched(the_job: Job, budget: float = 1e6) -> IslandPlan:
    capture, advice = captured(the_job)
    return search_islands(the_job, the_job.start(0, 3), CPU, capture, advice, budget)


class Ten(nn.Module):
    """Ten layers in a row that keep ones as they are; two of them go through 90000 and come back."""

    def __init__(self, hot: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([filled(2, 2, 45000.0 if i in hot else 0.5) for i in range(10)])
        self.hot = hot

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in self.hot:
                x = x / 90000.0
        return x


def test_of_ten_layers_the_two_that_overflow_are_the_plan():
    found = searched(job(lambda: Ten((3, 7)), lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("layers.3", "layers.7")
    assert (found.enough, found.minimal, found.reason, found.emulated) == (True, True, None, True)
    assert found.iterations == 1  # the tables prove both


def test_a_job_that_fits_needs_no_search():
    the_job = job(lambda: Ten(()), lambda: [torch.ones(1, 2)])
    capture, advice = captured(the_job)
    assert islands_wanted(capture, advice) is False
    assert with_islands(the_job, the_job.start(0, 3), CPU, capture, advice, 1e6, lambda line: None) is advice


class Between(nn.Module):
    """A square of 300 between two layers of one child: 90000 inside its own forward, seen by no module's hook."""

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = filled(2, 2, 150.0), filled(2, 2, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.before(x)
            return self.after(y * y) / 90000.0

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = filled(2, 2, 0.5), Between.Norm(), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


def test_an_overflow_between_modules_takes_the_parent_that_computes_it():
    found = searched(job(Between, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("norm",)
    assert (found.enough, found.minimal) == (True, True)


class InsideOut(nn.Module):
    """The overflow is in the model's own forward, between its children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = filled(2, 2, 150.0), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.b(y * y)


def test_where_only_the_whole_model_would_do_there_is_no_plan_and_the_tables_names_stay():
    the_job = job(InsideOut, lambda: [torch.ones(1, 2)])
    capture, advice = captured(the_job)
    found = with_islands(the_job, the_job.start(0, 3), CPU, capture, advice, 1e6, lambda line: None)
    assert found.plan.enough is False
    assert found.plan.reason == "nothing is left to keep in FP32 but the whole model"
    assert found.keep_fp32 == advice.keep_fp32
    assert found.plan.snippet is None


class Stream(nn.Module):
    """The layer that overflows feeds another: its FP32 output does not survive the next one's cast to FP16."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.last = filled(2, 2, 45000.0), filled(2, 2, 1e-5), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.down(self.up(x)))


def test_the_reader_of_an_overflowing_output_joins_the_plan():
    found = searched(job(Stream, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("up", "down")
    assert (found.enough, found.minimal) == (True, True)


def test_what_a_parent_covers_is_not_named_beside_it():
    class Both(Between.Norm):
        def __init__(self) -> None:
            super().__init__()
            self.hot = filled(2, 2, 45000.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hot(x) / 90000.0 + super().forward(x)

    found = searched(job(lambda: nn.Sequential(filled(2, 2, 0.5), Both()), lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("1",)  # "1.hot" was taken first, as the tables prove that it overflows
    assert (found.enough, found.minimal, found.iterations) == (True, True, 2)


class Copies(nn.Module):
    """Three dropout-like modules without weights, each 90000 from what is just below FP16's end."""

    def __init__(self) -> None:
        super().__init__()
        self.up = filled(2, 2, 15000.0)
        self.thrice = Thrice()
        self.down = nn.LayerNorm(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.thrice(self.up(x)) * torch.tensor([1.0, 2.0]))


class Thrice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3.0


def test_a_module_without_weights_is_taken_alone():
    found = searched(job(Copies, lambda: [torch.ones(1, 2)]))
    assert found.keep_fp32 == ("thrice",)
    assert (found.enough, found.minimal) == (True, True)


def test_a_weight_beyond_fp16_is_proven_by_the_tables():
    the_job = job(lambda: nn.Sequential(filled(1, 1, 70000.0), nn.LayerNorm(1)), lambda: [torch.full((1, 1), 1e-3)])
    capture, _ = captured(the_job)
    assert overflowing_layers(capture) == ("0",)
    assert searched(the_job).keep_fp32 == ("0",)


def test_modules_near_the_limit_are_named_but_not_kept():
    model = lambda: nn.ModuleDict({"hot": filled(1, 1, 90000.0 / 300), "warm": filled(1, 1, 40000.0)})

    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        y = model["hot"](batch) / 90000.0
        yield ONLY, (model["warm"](y) / 40000.0).float().mean()

    found = searched(job(model, lambda: [torch.full((1, 1), 300.0)], losses))
    assert (found.keep_fp32, found.near_limit) == (("hot",), ("warm",))


def test_where_fp16_itself_fails_nothing_is_searched():
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, nn.functional.binary_cross_entropy(model(batch).sigmoid(), torch.ones(1, 1))

    found = searched(job(lambda: nn.Sequential(filled(1, 1, 1.0)), losses=losses))
    assert (found.iterations, found.enough) == (0, False)
    assert found.reason.startswith("an FP16 iteration fails: ")


class Scripted(IslandSearch):
    """FP16 works as soon as b and d are islands; a to e are proposed in turn."""

    def _works(self, trial: Any) -> bool:
        return {"b", "d"} <= set(trial.names)

    def _next(self, trial: Any) -> str:
        return "abcde"[len(trial.names)]


class NoTrials(IslandTrials):
    """Trials that run nothing and stop after a number of them."""

    limit = 100

    def _iterate(self, names: tuple[str, ...]) -> Any:
        if self.iterations == self.limit:
            raise OutOfTimeError
        self.iterations += 1
        return replace(self.plain, names=names)


def scripted(limit: int) -> Scripted:
    the_job = job(lambda: Ten(()), lambda: [torch.ones(1, 2)])
    plain = plain_fp16(*captured(the_job))
    trials = NoTrials(the_job, the_job.start(0, 3), CPU, plain, 5.0, False, lambda line: None)
    trials.limit = limit
    search = Scripted(trials, "Ten")
    search.run()
    return search


def test_what_was_added_and_is_not_needed_is_left_out_again():
    search = scripted(100)
    assert (search.found.names, search.enough, search.minimal, search.reason) == (("b", "d"), True, True, None)
    assert search.trials.iterations == 4 + 4  # a, ab, abc, abcd work; then each is left out once


@pytest.mark.parametrize(
    ("limit", "names", "said"),
    [
        (3, (), "no set was found: the time budget of 5 s ended after 3 iteration(s)"),
        (4, ("a", "b", "c", "d"), "it is not shown that none can be left out: the time budget of 5 s ended after 4"),
        (6, ("a", "b", "d"), "it is not shown that none can be left out: the time budget of 5 s ended after 6"),
    ],
)
def test_a_search_that_is_cut_keeps_the_best_it_has_shown(limit, names, said):
    search = scripted(limit)
    assert (search.found.names, search.enough, search.minimal) == (names, bool(names), False)
    assert search.reason.startswith(said)


def test_a_layer_that_cannot_be_an_island_ends_the_search_and_says_why():
    model = lambda: nn.Sequential(filled(1, 1, 70000.0).bfloat16(), nn.LayerNorm(1, dtype=torch.bfloat16))
    found = searched(job(model, lambda: [torch.ones(1, 1, dtype=torch.bfloat16)]))
    assert (found.keep_fp32, found.enough) == (("0",), False)
    assert "'0' holds bfloat16 parameters, so it cannot compute in FP32" in found.reason


# gradients


class TwoEnds(nn.Module):
    """Two branches with a loss each, one as large as 2^14, the other as small as 2^-34: no scale serves both."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = filled(4, 1, 0.25), filled(4, 1, 0.25)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.large(x).float().sum() * 2.0**12 + self.small(x).float().sum() * 2.0**-36


def two_ends() -> Job:
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch)

    return job(TwoEnds, lambda: [torch.ones(1, 4)], losses)


def test_a_range_conflict_is_cured_by_one_end():
    capture, advice = captured(two_ends())
    assert "MP204" in [f.code for f in advice.findings]
    assert gradient_candidates(capture, advice.loss_scale)[0] in ("large", "small")
    found = searched(two_ends())
    assert found.keep_fp32 in (("large",), ("small",))
    assert (found.enough, found.minimal) == (True, True)
    assert found.log2_scale is not None


# what loses too much


class Faint(nn.Module):
    """`down` gives 2^-26 and less, which FP16 has not; `up` would read it well if it were given it."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.down, self.up, self.last = filled(2, 100, 2.0**-20), filled(100, 100, 2.0**10), filled(100, 2, 1.0)
        with torch.no_grad():
            self.down.weight[int(100 * share) :] = 2.0**-14

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.up(self.down(x)))


FAINT = lambda: [torch.full((4, 2), 2.0**-7)]


def test_activations_that_become_zero_in_fp16_start_a_search_and_their_reader_joins():
    the_job = job(Faint, FAINT)
    capture, advice = captured(the_job)
    assert "MP105" in [f.code for f in advice.findings]
    plain = plain_fp16(replace(capture, amp_vanished=()), replace(advice, findings=tuple(_only(advice, "MP105"))))
    assert plain.losing == ["down"]
    assert islands_wanted(plain.capture, plain.advice)
    found = searched(the_job)
    assert found.enough
    assert {"down", "up"} <= set(found.keep_fp32)  # alone, `down` would be flushed in the cast of what it gives


def _only(advice: Advice, code: str) -> Iterator[Finding]:
    return (f for f in advice.findings if f.code == code)


def test_a_loss_that_carries_nothing_of_the_norm_starts_no_search():
    capture, advice = captured(job(lambda: Faint(0.5), FAINT))
    lost = next(_only(advice, "MP105"))
    assert lost.evidence["energy_lost"] < 0.01
    assert plain_fp16(capture, advice).losing == []


def test_an_operation_that_overflows_is_lifted_by_the_island_that_holds_it():
    model = lambda: nn.Sequential(filled(2, 2, 0.5), nn.Sequential(filled(2, 2, 0.5)), filled(2, 2, 0.5))
    the_job = job(model, lambda: [torch.ones(1, 2)])
    capture, _ = captured(the_job)
    counts = ExponentHistogram(16, (2,))
    square = OpTable("mul", "1", "forward", OpRole.OUTPUT, "float32", 2, 1, counts, 9e4, 9e4, amp_dtype="float16")
    seen = replace(capture, operations=(square,))
    advice = advise(seen)
    assert [f.code for f in advice.findings if f.severity == "error"] == ["MP110"]
    assert islands_wanted(seen, advice)
    found = search_islands(the_job, the_job.start(0, 3), CPU, seen, advice, 1e6)
    assert (found.keep_fp32, found.enough) == (("1",), True)


# parents


class Twins(nn.Module):
    """Two layers of one module that both overflow, beside one that does not."""

    class Pair(nn.Module):
        def __init__(self, beside: int) -> None:
            super().__init__()
            self.a, self.b = filled(2, 2, 45000.0), filled(2, 2, 45000.0)
            self.beside = filled(2, beside, 0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x) / 90000.0
            return self.b(y) / 90000.0 + self.beside(x).mean()

    def __init__(self, beside: int) -> None:
        super().__init__()
        self.first, self.pair, self.last = filled(2, 2, 0.5), Twins.Pair(beside), filled(2, 2, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pair(self.first(x)))


@pytest.mark.parametrize(("beside", "names"), [(2, ("pair",)), (40, ("pair.a", "pair.b"))])
def test_the_parent_takes_the_place_of_children_that_hold_most_of_its_weights(beside, names):
    found = searched(job(lambda: Twins(beside), lambda: [torch.ones(1, 2)]))
    assert (found.keep_fp32, found.enough, found.minimal) == (names, True, True)


def test_the_words_claim_no_more_than_was_tried():
    two = replace(samples.full(), advice=replace(ADVICE, plan=PLAN), verification=None)
    told = island_sentences(two)[0]
    assert told == (
        "2 modules in FP32 cure it; none of them can be left out (tried on the first batch: 3 FP16 iterations, "
        "emulated, 0.1 s)"
    )
    cut = replace(two, advice=replace(ADVICE, plan=replace(PLAN, minimal=False)))
    assert "fewer may do" in island_sentences(cut)[0]


# once more, after FP16 was counted


class Deaf(nn.Module):
    """Between `a` and `b` gradients pass 2^-14 of themselves, so that at the scale that `large` bears none comes."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.a, self.b = filled(4, 1, 2.0**-4), filled(4, 4, 2.0**-4), filled(4, 1, 2.0**-4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b((self.a(x) * 2.0**14) * 2.0**-14)
        return (self.large(x).float() * 2.0**10 + y.float() * 2.0**-6).sum()


def deaf() -> tuple[Job, Capture, Advice, Prediction]:
    def losses(model: Any, batch: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, model(batch)

    the_job = job(Deaf, lambda: [torch.ones(8, 4)], losses)
    capture, advice = captured(the_job)
    k = advice.loss_scale.log2_scale
    types = {(t.kind, t.name): t.amp_dtype for t in capture.tables}
    return the_job, capture, advice, compare_with_fp16(the_job, the_job.start(0, 3), CPU, types, (k,), 1)


def test_a_gradient_that_is_zero_in_fp16_starts_a_search_once_more():
    the_job, capture, advice, prediction = deaf()
    k = advice.loss_scale.log2_scale
    assert not islands_wanted(capture, advice)  # the counts of FP32 do not show it
    assert set(dead_gradients(prediction, k)) == {("activation_gradient", "a"), ("weight_gradient", "a.weight")}
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 1e6, print)
    assert found.keep_fp32 == found.plan.keep_fp32 == ("a",)  # its output stays in FP32, and so does what lies between
    assert (found.plan.enough, found.plan.minimal) == (True, True)
    types = {(t.kind, t.name): t.amp_dtype for t in capture.tables}
    assert types[TensorKind.ACTIVATION_GRADIENT, "a"] == "float16"


def test_where_every_gradient_lives_the_advice_stays_as_it_is():
    the_job, capture, advice, prediction = deaf()
    alive = replace(prediction, tensors=tuple(replace(t, observed_underflow=0.9) for t in prediction.tensors))
    late = replace(prediction, tensors=tuple(replace(t, trained_steps=3) for t in prediction.tensors))
    for each in (alive, late, None):
        assert with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, each, 1e6, print) is advice


def test_a_search_for_live_gradients_that_runs_out_of_time_says_so(monkeypatch):
    the_job, capture, advice, prediction = deaf()

    def never(self: IslandTrials, names: tuple[str, ...]) -> Any:
        raise OutOfTimeError

    monkeypatch.setattr(IslandTrials, "run", never)
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 2.0, print)
    assert (found.plan.enough, found.plan.keep_fp32, found.keep_fp32) == (False, (), advice.keep_fp32)
    assert found.plan.reason == "a gradient stays zero: the time budget of 2 s ended"
    planned = replace(advice, plan=PLAN)
    assert with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, planned, prediction, 2.0, print) is planned


def test_a_set_that_keeps_gradients_alive_is_no_dead_gradient_when_the_time_ends_after_it(monkeypatch):
    the_job, capture, advice, prediction = deaf()
    real, wanted = IslandTrials.run, iter(("b", "a"))

    def twice(self: IslandTrials, names: tuple[str, ...]) -> Any:
        if names == ("b",) and self.iterations > 1:  # to leave `a` out again
            raise OutOfTimeError
        return real(self, names)

    monkeypatch.setattr(IslandTrials, "run", twice)
    monkeypatch.setattr(island_gradients._Search, "_next", lambda *_: next(wanted))
    found = with_live_gradients(the_job, the_job.start(0, 1), CPU, capture, advice, prediction, 60.0, print)
    assert (found.plan.enough, found.plan.minimal, found.plan.keep_fp32) == (True, False, ("a", "b"))
    assert found.plan.reason == "it is not shown that none can be left out: the time budget of 60 s ended"


# time


def test_a_search_out_of_time_keeps_what_it_has_and_says_so():
    found = searched(job(Stream, lambda: [torch.ones(1, 2)]), budget=1e-9)
    assert found.iterations == 1  # one is always tried
    assert (found.enough, found.minimal, found.keep_fp32) == (False, False, ())
    assert found.reason == "no set was found: the time budget of 1e-09 s ended after 1 iteration(s)"


# --- the arm, the verdict, the cost

SCALE = LossScaleAdvice(14, "dynamic", 2, 14, {}, 0.0, 0.0, 0.0, 0.0, None, "", 2000)
PLAN = IslandPlan(("a", "b"), True, True, 12, "dynamic", 8000, 3, 0.1, True, snippet="train()")
OVERFLOW = Finding("MP101", "activation-overflow", "error", "a", "", {}, "")
ADVICE = Advice("FP16", SCALE, (OVERFLOW,), ("a", "b"), plan=PLAN)


def test_the_plans_arm_stands_beside_plain_fp16():
    arms, _ = arms_for(SCALE, CPU, PLAN)
    assert [a.name for a in arms][:3] == ["fp32", "fp16-plan", "fp16"]
    name = "FP16 autocast, 2 module(s) in FP32"
    assert arms[1].precision == Precision(name, torch.float16, False, 12, 8000, keep_fp32=("a", "b"))
    assert arms[2].precision.keep_fp32 == ()


def test_a_plan_that_is_not_enough_is_not_trained_and_the_report_says_why():
    arms, left_out = arms_for(SCALE, CPU, replace(PLAN, enough=False, reason="because"))
    assert "fp16-plan" not in [a.name for a in arms]
    assert "arm fp16-plan: left out, because no plan was found: because" in left_out


def verdict_with(**losses: float) -> tuple[str, str, str | None]:
    trials = [
        Trial(arm.replace("_", "-"), arm, True, seed, 4, (loss + seed,) * 4)
        for arm, loss in {"fp32": 1.0, **losses}.items()
        for seed in (0, 1, 2)
    ]
    comparisons: tuple[Comparison, ...] = compare_arms(trials, True)
    return *decide(ADVICE, trials, comparisons), train_with(comparisons)


NAN = float("nan")


def test_where_plain_fp16_fails_and_the_plan_trains_the_verdict_names_the_islands():
    verdict, reason, chosen = verdict_with(fp16=NAN, fp16_plan=1.0, bf16=1.0)
    assert (verdict, chosen) == ("go-with-changes", "fp16-plan")
    assert reason.startswith("keep a, b in FP32: then FP16 (emulated CUDA policy) equals FP32 over 4 steps and 3 seeds")


def test_where_both_train_the_finding_still_asks_for_the_islands():
    verdict, reason, chosen = verdict_with(fp16=1.0, fp16_plan=1.0)
    assert (verdict, chosen) == ("go-with-changes", "fp16")
    assert reason.endswith("MP101 has to be mended first: keep a, b in FP32, which equals FP32 too")


def test_where_the_plan_fails_too_bf16_is_the_way_out():
    assert verdict_with(fp16=NAN, fp16_plan=NAN, bf16=1.0)[0::2] == ("go-with-changes", "bf16")


def timed(**blocks_ms: tuple[float, ...] | str) -> Costs:
    """What was timed in turns beside FP32; a text is why an arm was not."""
    arms = [
        ArmTime(arm, arm, None, None, None, reason=blocks)
        if isinstance(blocks, str)
        else ArmTime(arm, arm, blocks[0], None, None, blocks, len(blocks))
        for arm, blocks in (("fp32", (20.0, 20.0, 20.0)), *((a.replace("_", "-"), b) for a, b in blocks_ms.items()))
    ]
    again = ArmTime("again", "fp32", 20.0, None, None, (20.0, 20.1, 19.9), 3)
    return Costs(timing=Timing(tuple(arms), again, 8, 3, True, 1.0))


def test_the_speed_lost_is_the_arms_step_time_over_plain_fp16s_block_by_block():
    found = costed(PLAN, timed(fp16=(10.0, 11.0, 12.0), fp16_plan=(10.5, 11.6, 12.6), bf16=(9.0, 9.0, 9.0)))
    assert found.step_time_ratio == pytest.approx((1.05 * 11.6 / 11 * 1.05) ** (1 / 3))
    assert found.step_time_interval == pytest.approx(ratio_interval([1.05, 11.6 / 11, 1.05]))
    assert (found.step_time_reference, found.step_time_reason) == ("fp16", None)


def test_a_speed_lost_that_is_undecided_says_why_beside_the_ratio():
    found = costed(PLAN, timed(fp16=(10.0, 10.0, 10.0), fp16_plan=(10.1, 10.6, 10.9)))
    assert found.step_time_reason == "the interval is neither within 3% of 1 nor clear of it"
    diagnosis = SimpleNamespace(advice=SimpleNamespace(plan=found), verification=None)
    told = island_sentences(diagnosis)[-1]
    assert told.startswith("speed lost by it: a step takes 5.3 % longer than in FP16 without it (fp16), x1.053 (95 % ")
    assert told.endswith(f"); undecided: {found.step_time_reason}")


def test_where_fp16_skipped_every_step_the_speed_lost_has_no_measure():
    lost = "the GradScaler skipped steps in all 3 blocks"
    found = costed(PLAN, timed(fp16=lost, fp16_plan=(10.5, 10.5, 10.5)))
    assert (found.step_time_ratio, found.step_time_reference, found.step_time_reason) == (None, None, f"fp16: {lost}")


def test_a_plan_that_was_not_trained_keeps_saying_so():
    found = costed(PLAN, timed(fp16=(10.0, 10.0, 10.0)))
    assert found == PLAN
    assert found.step_time_reason == "not measured: the plan was not trained"


def test_on_a_cpu_the_speed_lost_is_none_with_its_reason():
    found = costed(PLAN, Costs.absent("no GPU"))
    assert (found.step_time_ratio, found.step_time_reason) == (None, "no GPU")


# --- from scan to production


@pytest.fixture(scope="module")
def t5() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield mpdiag.scan(T5_LIKE, verify_steps=20, time_budget_seconds=120.0)
    finally:
        torch.set_num_threads(threads)


def test_on_t5s_overflow_the_plan_trains_where_plain_fp16_is_nan(t5):
    assert t5.advice.keep_fp32 == t5.advice.plan.keep_fp32 == ("encoder.1.1.wo",)
    final = {t.arm: t.losses[-1] for t in t5.verification.trials if t.seed == 0}
    assert final["fp16"] != final["fp16"]
    assert abs(final["fp16-plan"] - final["fp32"]) < 0.05 * final["fp32"]
    assert (t5.verification.verdict, t5.verification.train_with) == ("go-with-changes", "fp16-plan")
    assert "encoder.1.1.wo" in t5.verification.reason
    assert t5.snippet.startswith('import mpdiag\n\nmodel = mpdiag.apply(model, ["encoder.1.1.wo"])')
    assert "1 module in FP32 cures it (tried on the first batch: " in island_sentences(t5)[0]
    assert island_sentences(t5)[-1] == "speed lost by it: needs a CUDA GPU; this run was on the CPU"


def test_the_plan_survives_the_json(t5):
    again = from_json(to_json(t5))
    assert again.advice.plan == t5.advice.plan
    assert plan_of(again) == plan_of(t5)


def test_the_scans_plan_applied_in_production_gives_finite_fp16_training(t5, tmp_path):
    path = tmp_path / "t5_like.plan.json"
    path.write_text(plan_to_json(plan_of(t5)))
    the_job = load_job(T5_LIKE)
    start = the_job.start(0, 5)

    def losses(build: Callable[[], nn.Module]) -> list[float]:
        production = replace(the_job, build_model=build)
        with open_session(production, start, replace(FP16_AUTOCAST, log2_scale=read_plan(path).log2_scale), CPU) as run:
            return [float(run.step(run.place(start.batch(i)))[ONLY]) for i in range(5)]

    assert all(torch.isfinite(torch.tensor(losses(lambda: mpdiag.apply(the_job.build_model(), path)))))
    assert not any(torch.isfinite(torch.tensor(losses(the_job.build_model))))


def test_the_command_writes_the_plan_beside_the_json(tmp_path):
    command = [sys.executable, "-m", "mpdiag", "scan", T5_LIKE, "--no-verify", "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "out/t5_like.plan.json" in ran.stdout
    assert read_plan(tmp_path / "out" / "t5_like.plan.json").keep_fp32 == ("encoder.1.1.wo",)


class Final(nn.Linear):
    def __init_subclass__(cls, **kwargs):
        raise TypeError("no more of these")


def test_a_class_that_refuses_to_be_derived_from_is_one_error_and_no_module_is_changed():
    model = nn.Sequential(nn.Linear(2, 2), Final(2, 2))
    with pytest.raises(UsageError, match="1 cannot stay in FP32: Final cannot be derived from: no more of these"):
        fp32_islands(model, ["0", "1"])
    assert [type(module) for module in model] == [nn.Linear, Final]


def test_an_island_that_was_parametrized_afterwards_is_still_one():
    model = nn.Sequential(nn.Linear(2, 2))
    fp32_islands(model, ["0"])
    nn.utils.parametrizations.weight_norm(model[0])
    assert is_island(model[0])
    assert fp32_islands(model, ["0"]) == ()
