"""What a capture counts of models with traps: shared weights, nested outputs, checkpoints, frozen or sparse parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpdiag.histogram import ExponentHistogram
from tiny_job_samples import (
    AG,
    FORMS,
    WG,
    WU,
    A,
    Branching,
    Checkpointed,
    Packed,
    Tied,
    W,
    bins,
    capture,
    constant,
    half_frozen,
    job,
    packed_batch,
    tables,
)

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


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_of_a_nested_output_is_counted(form):
    # x = 8: 16 and 4; both gradients are 1; dL/dw = 8 - 8 / 4 = 6
    found = tables(job(lambda: Branching(FORMS[form]), torch.tensor([8.0])))
    assert bins(found[A, "Branching"]) == {2: 1, 4: 1}
    assert bins(found[AG, "Branching"]) == {0: 2}
    assert bins(found[WG, "weight"]) == {2: 1}


def test_an_lstm_over_a_packed_sequence_is_counted_with_its_states():
    found = tables(job(Packed, packed_batch))
    assert found[A, "lstm"].elements == (5 + 2) * 4 + 2 * 4 + 2 * 4
    assert found[AG, "lstm"].elements == 44
    assert {name for kind, name in found if kind is WG} == {
        f"lstm.{part}_{gate}_l0" for part in ("weight", "bias") for gate in ("ih", "hh")
    }


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
