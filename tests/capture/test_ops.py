"""Which operators the second pass records, where they belong, and what it does when a job fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.module import _global_forward_hooks
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.checkpoint import checkpoint

from mpdiag.capture.op_scan import Operations, observe_operations
from mpdiag.operations import OUTSIDE, OpRole, OpTable
from mpdiag.training.rounding import emulated_operator
from op_samples import CPU, ROWS, Body, attention, bins, job, line_of, of, one, operations, rms, seen, select

TARGETS = Path(__file__).parents[1] / "targets"


# what is recorded, and where it belongs


def test_views_and_copies_are_not_recorded():
    def rename(h: torch.Tensor) -> torch.Tensor:
        parts = torch.cat([h.view(-1), h.t().reshape(-1).clone()]).split(2)
        return torch.stack(parts).unsqueeze(0).contiguous()[..., :1].expand(1, 2, 3)

    assert {t.op for t in select(of(rename, torch.ones(1, 2)), module="Body")} == set()


def test_in_place_operators_are_recorded_with_their_results():
    def in_place(h: torch.Tensor) -> torch.Tensor:
        h = h * 1
        h += 3
        return F.relu(h, inplace=True)

    tables = of(in_place, torch.tensor([[1.0, -7.0]]))
    assert (one(tables, op="add").abs_max, bins(one(tables, op="add"))) == (4, {2: 2})
    assert (bins(one(tables, op="relu")), one(tables, op="relu").histogram.zeros) == ({2: 1}, 1)


def test_calls_on_one_line_are_one_row_and_on_two_lines_two():
    def twice(h: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            h = h + 1
        return h + 4

    found = select(of(twice, torch.ones(1, 2)), op="add")
    assert [(t.calls, t.elements, t.abs_max, t.source) for t in found] == [
        (3, 6, 4.0, line_of(twice, 2)), (1, 2, 8.0, line_of(twice, 3))
    ]  # fmt: skip


def test_calls_that_differ_in_type_are_rows_of_their_own():
    def mixed(h: torch.Tensor) -> torch.Tensor:
        for part in (h, h.float() * 2):
            h = part + 1
        return h

    def build() -> nn.Module:
        return Body(mixed, 2)

    found = select(seen(job(build, torch.ones(1, 2))), op="add")
    assert [(t.amp_dtype, t.abs_max) for t in found] == [("float16", 2.0), ("float32", 3.0)]


def test_operators_that_a_gpu_runs_in_16_bits_are_fp16_though_emulated_in_fp32():
    def build() -> nn.Module:
        return nn.Sequential(nn.Conv1d(2, 2, 1), nn.GELU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.LSTM(4, 4))

    tables = seen(job(build, torch.randn(1, 2, 4), lambda m, x: m(x)[0].sum()))
    types = {t.op: t.amp_dtype for t in select(tables) if t.op in ("convolution", "gelu", "addmm", "native_layer_norm")}
    assert types == {
        "convolution": "float16", "gelu": "float16", "addmm": "float16", "native_layer_norm": "float32"
    }  # fmt: skip
    assert {t.amp_dtype for t in select(tables, module="4")} == {"float16"}


def test_backward_operators_are_backward_at_the_module_and_line_of_their_forward():
    tables = of(attention, ROWS)
    back = select(tables, op="softmax_backward_data", direction="backward")
    assert [(t.module, t.source, t.amp_dtype) for t in back] == [("Body", line_of(attention, 3), "float32")]
    assert {t.op for t in select(tables, module="same")} == {"mm"}
    back = select(tables, module="same", direction="backward")
    assert [(t.op, t.source, t.amp_dtype) for t in back] == [("mm", line_of(Body.forward, 1), "float16")]


def test_the_gradient_of_a_product_has_its_values():
    # the loss is the sum of h * 3, so each element of h has gradient 3
    back = one(of(lambda h: h * 3, torch.ones(1, 2)), op="mul", direction="backward")
    assert (bins(back), back.amp_dtype, back.module) == ({1: 2}, "float16", "Body")


def test_the_optimizer_is_not_looked_at():
    names = {t.op for t in of(attention, ROWS)}
    assert names & {"addcdiv", "lerp", "sqrt", "foreach_add", "fused_adam"} == set()


def test_what_the_loss_function_computes_is_outside_the_model():
    tables = seen(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), lambda m, x: (m(x) - 1).pow(2).mean()))
    assert {t.op for t in select(tables, module=OUTSIDE)} == {"sub", "mean"}
    assert one(tables, module=OUTSIDE, role=OpRole.SQUARE).op == "pow"


class Block(nn.Module):
    def __init__(self, saving: str | None = None) -> None:
        super().__init__()
        self.inner = Body(lambda h: torch.sigmoid(h) * 2, 2)
        self.saving = saving

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.saving is None:
            return torch.exp(self.inner(x))
        return torch.exp(checkpoint(self.inner, x, use_reentrant=self.saving == "reentrant"))


class Nested(nn.Module):
    def __init__(self, saving: str | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.blocks = nn.ModuleList([Block(saving), Block(saving)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return torch.cos(x)


def test_an_operator_belongs_to_the_innermost_module():
    tables = seen(job(Nested, torch.ones(1, 2)))
    assert [t.module for t in select(tables, op="sigmoid")] == ["blocks.0.inner", "blocks.1.inner"]
    assert [t.module for t in select(tables, op="exp")] == ["blocks.0", "blocks.1"]
    assert [t.module for t in select(tables, op="cos")] == ["Nested"]
    assert one(tables, op="addmm").module == "first"


def test_what_a_module_returns_is_marked():
    tables = seen(job(Nested, torch.ones(1, 2)))
    marked = {(t.module, t.op) for t in select(tables) if t.module_output}
    assert ("first", "addmm") in marked
    assert ("blocks.0.inner", "mul") in marked
    assert ("blocks.0.inner", "sigmoid") not in marked


@pytest.mark.parametrize("saving", ["reentrant", "not reentrant"])
def test_checkpointing_changes_neither_rows_nor_counts(saving):
    def forward(tables: tuple[OpTable, ...]) -> list[tuple[Any, ...]]:
        return [(t.module, t.op, t.calls, t.histogram, t.amp_dtype) for t in select(tables) if t.module != "Nested"]

    plain, saved = seen(job(Nested, torch.ones(1, 2))), seen(job(lambda: Nested(saving), torch.ones(1, 2)))
    assert forward(saved) == forward(plain)
    back = select(saved, op="sigmoid_backward", direction="backward")
    assert sorted((t.module, t.calls, t.amp_dtype) for t in back) == [
        ("blocks.0.inner", 1, "float16"), ("blocks.1.inner", 1, "float16")
    ]  # fmt: skip
    assert all(t.source is not None for t in saved)


def test_a_gradient_penalty_is_backward_and_has_its_types():
    def penalty(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(torch.sigmoid(model(x)).sum(), x, create_graph=True)
        return slope.pow(2).sum()

    tables = seen(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), penalty))
    assert len(select(tables, op="sigmoid_backward", direction="backward")) >= 1
    assert all(t.amp_dtype is not None for t in tables)


def test_several_losses_are_all_seen():
    found = operations_of_target("gan")
    assert found.reason is None
    assert {t.module for t in found.tables or ()} >= {OUTSIDE}


def operations_of_target(name: str) -> Operations:
    from mpdiag.target import load_job

    the_job = load_job(str(TARGETS / f"{name}.py"))
    return observe_operations(the_job, the_job.start(0, 1), CPU)


def test_include_and_exclude_are_patterns_on_modules():
    the_job = job(Nested, torch.ones(1, 2))
    assert {t.module for t in seen(the_job, include=("blocks.0*",))} == {
        "blocks.0", "blocks.0.inner", "blocks.0.inner.same"
    }  # fmt: skip
    assert "first" not in {t.module for t in seen(the_job, exclude=("first",))}


# failures


def test_an_operator_that_autocast_refuses_ends_the_types_and_not_the_pass():
    def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        probable = torch.sigmoid(model(x))
        return F.binary_cross_entropy(probable, torch.ones_like(probable)) + probable.mean()

    found = operations(job(lambda: nn.Linear(2, 2), torch.ones(1, 2), loss))
    assert found.reason is not None
    assert found.reason.startswith("types after sigmoid (")
    assert "binary_cross_entropy" in found.reason
    assert found.tables is not None
    assert one(found.tables, op="sigmoid").amp_dtype == "float16"
    assert one(found.tables, op="binary_cross_entropy").amp_dtype is None


def test_a_job_that_fails_in_fp32_gives_a_reason_and_no_tables():
    class Counting(nn.Linear):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            if Counting.calls > 1:
                raise ValueError("no more")
            return super().forward(x)

    found = operations(job(lambda: Counting(2, 2), torch.ones(1, 2)))
    assert found.tables is None
    assert found.reason == "the operations could not be observed: ValueError while computing the loss: no more"


def test_nothing_is_left_behind_whatever_happened():
    hooks = len(_global_forward_hooks)
    operations(job(lambda: Body(rms, 2), torch.ones(1, 2)))
    operations(job(lambda: Body(lambda h: h @ torch.ones(7, 7), 2), torch.ones(1, 2)))
    assert _get_current_dispatch_mode() is None
    assert len(_global_forward_hooks) == hooks
    assert emulated_operator() is None
    assert torch.is_grad_enabled()
