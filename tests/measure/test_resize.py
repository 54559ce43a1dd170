"""A batch with more or fewer samples: what is cut or repeated, what is left alone, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from mpdiag.measure.resize import halved, largest_batch_of, resized
from mpdiag.target import Start

X, Y = torch.arange(6.0).reshape(3, 2), torch.tensor([10, 11, 12])


def test_fewer_samples_are_the_first_ones() -> None:
    x, y = resized((X, Y), 2).batch
    assert torch.equal(x, X[:2])
    assert y.tolist() == [10, 11]


def test_more_samples_are_the_same_ones_again_in_order() -> None:
    x, y = resized((X, Y), 7).batch
    assert torch.equal(x, torch.cat([X, X, X[:1]]))
    assert y.tolist() == [10, 11, 12, 10, 11, 12, 10]


@given(own=st.integers(1, 9), wanted=st.integers(1, 40))
def test_every_sample_keeps_its_target(own: int, wanted: int) -> None:
    x, y = resized([torch.arange(own), torch.arange(own) * 100], wanted).batch
    assert len(x) == len(y) == wanted
    assert torch.equal(x * 100, y)


def test_the_structure_stays_and_so_does_what_has_another_first_dimension() -> None:
    batch = {"x": X, "mask": torch.ones(5, 5), "scale": torch.tensor(2.0), "name": "n", "more": [Y, None]}
    made = resized(batch, 4).batch
    assert made["x"].shape == (4, 2)
    assert torch.equal(made["mask"], batch["mask"])
    assert made["scale"] == 2
    assert made["name"] == "n"
    assert made["more"][0].tolist() == [10, 11, 12, 10]
    assert made["more"][1] is None


def test_time_first_batches_are_cut_along_their_second_dimension() -> None:
    x, y = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([10, 11, 12])
    mask, array = torch.ones(4, 4), np.arange(12).reshape(4, 3)
    made = resized((x, y, mask, array), 5, dim=1).batch
    assert torch.equal(made[0], torch.cat([x, x[:, :2]], dim=1))
    assert made[1].tolist() == [10, 11, 12, 10, 11]  # labels have one dimension, which is their first
    assert torch.equal(made[2], mask)
    assert made[3].tolist() == array[:, [0, 1, 2, 0, 1]].tolist()


def test_a_start_of_time_first_batches_is_halved_along_them() -> None:
    x, y = torch.arange(48.0).reshape(6, 4, 2), torch.arange(4)
    made = halved(Start(0, {}, [(x, y)], batch_dim=1))
    assert made is not None
    assert torch.equal(made.batches[0][0], x[:, :2])
    assert made.batches[0][1].tolist() == [0, 1]
    assert made.batch_dim == 1


def test_the_users_batch_is_not_changed() -> None:
    before = X.clone()
    resized((X, Y), 2).batch[0].fill_(-1)
    assert torch.equal(X, before)


def test_arrays_are_resized_too() -> None:
    made = resized((X, np.arange(3), np.zeros((7, 3))), 5).batch
    assert made[1].tolist() == [0, 1, 2, 0, 1]
    assert made[2].shape == (7, 3)


@dataclass
class Pair:
    image: torch.Tensor
    label: torch.Tensor


class Encoding(dict[str, Any]):
    """Like a transformers BatchEncoding: its tensors are in `data`, and it can be moved."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def to(self, device: Any) -> Encoding:
        return self


class Graphs:
    def __init__(self) -> None:
        self.nodes = torch.ones(3, 2)

    def to(self, device: Any) -> Graphs:
        return self


def test_dataclasses_and_encodings_are_resized_inside() -> None:
    pair = resized(Pair(X, Y), 2).batch
    assert (type(pair), pair.image.shape, pair.label.tolist()) == (Pair, (2, 2), [10, 11])
    encoding = resized(Encoding({"ids": X, "extra": torch.ones(9)}), 2).batch
    assert (type(encoding), encoding.data["ids"].shape, encoding.data["extra"].shape) == (Encoding, (2, 2), (9,))
    assert resized(Encoding({"ids": X, "extra": X.to_sparse()}), 2).batch is None


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        (pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]), "PackedSequence"),
        ((X, pack_sequence([torch.ones(3, 2), torch.ones(2, 2)])), "PackedSequence"),
        ((X, Graphs()), "Graphs"),
        ((X, X.to_sparse()), "sparse or nested"),
        (Pair(X, X.to_sparse()), "sparse or nested"),
        (torch.tensor(1.0), "no tensor tells"),
        ({"a": "text"}, "no tensor tells"),
    ],
)
def test_what_cannot_be_resized_says_why(batch: Any, said: str) -> None:
    made = resized(batch, 2)
    assert made.batch is None
    assert said in (made.reason or "")
    assert halved(Start(0, {}, [batch])) is None


def test_half_of_every_batch_of_a_start() -> None:
    start = Start(3, {"w": X}, [(X, Y), (X[:2], Y[:2])])
    made = halved(start)
    assert made is not None
    assert (made.seed, made.weights) == (3, start.weights)
    assert [len(x) for x, _ in made.batches] == [1, 1]
    assert [len(x) for x, _ in start.batches] == [3, 2]


def test_a_start_with_a_batch_of_one_cannot_be_halved() -> None:
    assert halved(Start(0, {}, [(X, Y), (X[:1], Y[:1])])) is None


def test_the_largest_batch_is_the_one_with_most_bytes() -> None:
    short, long = torch.ones(8, 10), torch.ones(4, 90)
    assert largest_batch_of(Start(0, {}, [short, long, short])) is long


def test_a_packed_sequence_is_the_type_that_is_refused() -> None:
    assert isinstance(pack_sequence([torch.ones(1)]), PackedSequence)  # the parameter list above stands on it
