"""FLOPs of a step: exact on tiny models, against formulas by hand and torch's own counter where that is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mpdiag.costs.kernels import Flops
from mpdiag.errors import MpdiagError
from mpdiag.measure.flops import flops_of
from mpdiag.target.job import Job

CPU = torch.device("cpu")


def job(build: Callable[[], nn.Module], make: Callable[[], Any], loss: Any = None) -> Job:
    def losses(model, batch):
        out = model(batch)
        yield "loss", (out[0] if isinstance(out, tuple) else out).square().mean()

    return Job(
        "tiny",
        "tiny.py",
        build,
        lambda: [make()],
        loss or losses,
        lambda model: {"loss": torch.optim.SGD(model.parameters())},
    )


def count(build: Callable[[], nn.Module], *shape: int, **more: Any) -> Flops:
    each = job(build, lambda: torch.randn(*shape), **more)
    return flops_of(each, each.start(0, 1), CPU)


def test_a_linear_layer_is_2_m_n_k_forward_and_once_more_for_each_gradient():
    found = count(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), 5, 8)
    first, second = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
    assert found.forward == first + second
    assert found.backward == first + 2 * second  # nothing needs the gradient of the batch
    assert found.by_module == {"0": (first, first), "2": (second, 2 * second)}
    assert found.by_op == {"aten.mm": first + 2 * second, "aten.addmm": first + second}
    assert (found.recomputed, found.corrections, found.notes, found.uncounted) == (0, (), (), ())


def convolution(**arguments: Any) -> nn.Module:
    first = nn.Conv2d(4, 8, 1, bias=False)  # so that the second needs the gradient of its input
    return nn.Sequential(first, nn.Conv2d(8, 16, 3, bias=False, **arguments))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_grouped_convolution_costs_twice_its_forward_in_the_backward(groups):
    found = count(lambda: convolution(groups=groups), 2, 4, 10, 10)
    forward = 2 * 2 * 8 * 8 * 16 * (8 // groups) * 9
    assert found.by_module["1"] == (forward, 2 * forward)
    one = 2 * 2 * 10 * 10 * 8 * 4
    assert found.by_module["0"] == (one, one)
    assert len(found.corrections) == (groups > 1)


def test_the_correction_of_a_depthwise_convolution_shows_what_torch_says():
    found = count(lambda: convolution(groups=8), 2, 4, 10, 10)
    ours = 2 * (2 * 2 * 8 * 8 * 16 * 9)
    torchs = ours // 2 * 9  # the input's gradient right, the weight's eight times too many
    assert found.corrections == (f"backward of grouped convolutions: {ours:,} (torch's counter says {torchs:,})",)


@given(
    st.sampled_from([(nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d)]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_without_groups_convolutions_are_counted_as_torch_counts_them(kinds, transposed, kernel, stride, padding):
    kind = kinds[transposed]
    dimensions = 1 if kind in (nn.Conv1d, nn.ConvTranspose1d) else 2
    build = lambda: kind(3, 5, kernel, stride, padding)
    x = torch.randn(2, 3, *[6] * dimensions)
    with FlopCounterMode(display=False) as counter:
        build()(x).square().mean().backward()
    found = count(build, *x.shape)
    assert found.model == counter.get_total_flops() > 0


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_a_recurrent_layer_multiplies_every_weight_with_every_token(kind, gates, bidirectional):
    def build():
        return nn.Sequential(nn.Linear(7, 7), kind(7, 5, 2, bidirectional=bidirectional))

    found = count(build, 11, 3, 7)
    ways = 1 + bidirectional
    weights = ways * gates * 5 * ((7 + 5) + (5 * ways + 5))
    forward, backward = found.by_module["1"]
    assert forward == 2 * 33 * weights
    # torch's unfused cells skip the gradient of a first state that is zero
    assert 2 * forward - 2 * 3 * gates * 5 * 5 * 2 * ways <= backward <= 2 * forward
    assert len(found.corrections) == (kind is nn.LSTM)  # on a CPU, torch's counter sees the others


class Attention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.causal = causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_two_products_and_five_in_the_backward_a_causal_mask_noted(causal):
    found = count(lambda: Attention(causal), 2, 6, 8)
    one = 2 * 2 * 2 * 6 * 6 * 4  # batch 2, 2 heads, 6 x 6 scores of 4 features
    linear = 2 * 12 * 8 * 8
    assert found.by_module == {
        "query": (linear, linear),
        "key": (linear, linear),
        "value": (linear, linear),
        "": (2 * one, 5 * one),
    }
    assert bool(found.notes) is causal


def test_layers_that_share_an_input_do_not_count_each_other():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 8), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stem(x) @ torch.eye(4)
            return torch.cat((self.left(x), self.right(x)), 1)

    found = count(Fork, 3, 4)
    assert found.by_module == {"stem": (96, 96), "left": (192, 384), "right": (48, 96), "": (96, 96)}


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_checkpointing_computes_again_is_no_part_of_the_model(reentrant):
    found = count(lambda: Checkpointed(reentrant), 2, 8)
    one = 2 * 2 * 8 * 8
    assert (found.forward, found.backward, found.recomputed) == (3 * one, 5 * one, 2 * one)
    assert (found.model, found.executed) == (8 * one, 10 * one)
    assert "second time" in found.notes[0]
    assert found.by_module == {"first": (one, one), "block.0": (one, 2 * one), "block.2": (one, 2 * one)}


def test_a_gradient_penalty_is_the_models_own_work_and_nothing_is_recomputed():
    def losses(model, batch):
        batch = batch.clone().requires_grad_()
        out = model(batch).sum()
        (slope,) = torch.autograd.grad(out, batch, create_graph=True)
        yield "loss", out + slope.square().sum()

    found = count(lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), 5, 4, loss=losses)
    assert found.recomputed == 0
    assert found.forward > 2 * 5 * (4 * 3 + 3 * 2)


def test_matrix_vector_products_count():
    class Scores(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(6))

        def forward(self, x):
            return x @ self.w

    found = count(Scores, 5, 6)
    assert (found.forward, found.backward) == (60, 60)
    assert found.corrections == ("matrix-vector products: 120 (torch's counter says 0)",)


def test_an_operator_without_a_formula_is_named():
    @torch.library.custom_op("mpdiag_test_flops::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    mystery.register_autograd(lambda ctx, grad: grad * 2)

    class Custom(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return mystery(self.fc(x))

    found = count(Custom, 2, 4)
    assert found.uncounted == ("mpdiag_test_flops.mystery",)
    assert found.by_module == {"fc": (64, 64)}


def test_every_loss_and_optimizer_of_a_gan_is_counted_in_turn():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.g, self.d = nn.Linear(4, 4), nn.Linear(4, 1)

    def losses(model, batch):
        made = model.g(batch)
        yield "d", model.d(made.detach()).mean()
        yield "g", model.d(made).mean()

    each = Job("gan", "gan.py", Pair, lambda: [torch.randn(2, 4)], losses,
               lambda m: {"g": torch.optim.SGD(m.g.parameters()), "d": torch.optim.SGD(m.d.parameters())})  # fmt: skip
    found = flops_of(each, each.start(0, 1), CPU)
    assert found.by_module["d"] == (2 * 16, 16 + 2 * 16)
    assert found.by_module["g"] == (64, 64)


def test_what_the_users_code_raises_is_told_as_theirs():
    def losses(model, batch):
        yield "loss", model(batch).nonsense()

    with pytest.raises(MpdiagError, match="counting FLOPs"):
        count(lambda: nn.Linear(2, 2), 2, 2, loss=losses)


def test_nothing_stays_hooked_afterwards():
    room = torch.nn.modules.module
    before = len(room._global_forward_pre_hooks), len(room._global_forward_hooks)
    count(lambda: nn.Linear(2, 2), 2, 2)
    assert (len(room._global_forward_pre_hooks), len(room._global_forward_hooks)) == before


def test_counting_leaves_the_gradients_as_they_were():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(3, 4)
    model(x).square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    seen: list[torch.Tensor] = []

    def losses(counted, batch):
        counted.load_state_dict(model.state_dict())
        yield "loss", counted(x).square().mean()
        seen.extend(p.grad.clone() for p in counted.parameters())

    count(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)), 3, 4, loss=losses)
    assert all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


# batches that differ


def rows_job(*rows: int, forward: Callable[[nn.Module, Any], Any] | None = None) -> Job:
    """A Linear of 8 to 16 without a bias, on batches of so many rows."""

    def losses(model, batch):
        yield "loss", (forward(model, batch) if forward else model(batch)).square().mean()

    made = job(lambda: nn.Linear(8, 16, bias=False), lambda: None, losses)
    return dataclasses.replace(made, train_batches=lambda: [torch.randn(count, 8) for count in rows])


def counted(each: Job, batches: int) -> Flops:
    return flops_of(each, each.start(0, batches), CPU)


def test_batches_of_several_lengths_count_as_their_mean():
    found = counted(rows_job(2, 30, 4), 3)
    one = 2 * 8 * 16
    assert found.by_batch == (2 * 2 * one, 2 * 30 * one, 2 * 4 * one)  # forward and the weight's gradient
    assert found.varied
    assert found.forward == found.backward == 12 * one
    assert found.by_module == {"": (12 * one, 12 * one)}
    assert found.by_op == {"aten.mm": 24 * one}


def test_only_batches_that_a_timed_run_rotates_are_counted():
    found = counted(rows_job(*[1] * 8, 1000), 9)
    assert (found.by_batch, found.varied) == ((512, 512), False)
    assert len(counted(rows_job(2, *[1] * 20), 21).by_batch) == 8


def test_batches_of_one_shape_are_counted_twice_and_all_where_the_two_differ():
    assert counted(rows_job(3, 3, 3, 3), 4).by_batch == (2 * 3 * 256,) * 2
    assert counted(rows_job(3), 1).by_batch == (2 * 3 * 256,)
    lengths = iter([3, 1, 2, 3])  # as if each batch told how much of it is padding
    found = counted(rows_job(3, 3, 3, 3, forward=lambda model, batch: model(batch[: next(lengths)])), 4)
    assert found.by_batch == tuple(2 * rows * 256 for rows in (3, 1, 2, 3))


def test_batches_of_other_shapes_and_equal_flops_do_not_differ():
    found = counted(rows_job(4, 4, forward=lambda model, batch: model(batch)), 2)
    assert not found.varied
    assert (found.forward, found.corrections) == (4 * 256, ())


def test_a_correction_with_its_numbers_is_of_the_first_batch_where_they_differ():
    each = job(lambda: convolution(groups=8), lambda: None)
    each = dataclasses.replace(each, train_batches=lambda: [torch.randn(n, 4, 10, 10) for n in (2, 3)])
    (told,) = counted(each, 2).corrections
    assert told.startswith(f"backward of grouped convolutions: {2 * (2 * 2 * 8 * 8 * 16 * 9):,} (")
    assert told.endswith(", in the first batch")
