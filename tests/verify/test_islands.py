"""What a module computes as an FP32 island, and what it leaves as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import mpdiag
from island_samples import CPU, Pair, bf16, filled, job
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP16_AUTOCAST
from mpdiag.training.session import open_session

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
