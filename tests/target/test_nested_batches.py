"""Batches of any nesting: what is in them, how large they are, and how their tensors are moved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from mpdiag.target import load_job
from mpdiag.target.batches import bytes_of, draw, map_tensors, samples_in, tensors_in
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session
from target_samples import CPU, HEAD, MODEL, one_step


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    rest: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "name"


class Encoding:
    """As transformers' BatchEncoding: a mapping in .data and a .to of its own."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def to(self, device: Any) -> Encoding:
        raise AssertionError("not called")


def double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 2


def test_a_dict_of_lists_and_tuples_is_mapped_in_its_shape():
    batch = {"a": [torch.tensor(1.0), 5], "b": (torch.tensor(2.0), "text", None)}
    mapped = map_tensors(double, batch)
    assert (mapped["a"][0].item(), mapped["a"][1]) == (2.0, 5)
    assert (mapped["b"][0].item(), mapped["b"][1:]) == (4.0, ("text", None))
    assert isinstance(mapped["b"], tuple)


def test_a_dataclass_is_mapped_into_a_new_one():
    batch = Pair(torch.tensor(1.0), {"y": torch.tensor(3.0)})
    mapped = map_tensors(double, batch)
    assert isinstance(mapped, Pair)
    assert (mapped.x.item(), mapped.rest["y"].item()) == (2.0, 6.0)
    assert (batch.x.item(), batch.rest["y"].item()) == (1.0, 3.0)


def test_a_frozen_dataclass_in_a_list_is_mapped():
    (mapped,) = map_tensors(double, [Frozen(torch.tensor(1.0))])
    assert (mapped.x.item(), mapped.name) == (2.0, "name")


def test_a_packed_sequence_stays_one_and_keeps_its_lengths():
    packed = pack_sequence([torch.ones(2, 3), torch.ones(4, 3)], enforce_sorted=False)
    mapped = map_tensors(lambda t: t.half() if t.is_floating_point() else t, (packed, torch.ones(1)))[0]
    assert isinstance(mapped, PackedSequence)
    assert mapped.data.dtype == torch.float16
    assert torch.equal(mapped.batch_sizes, packed.batch_sizes)
    assert torch.equal(mapped.unsorted_indices, packed.unsorted_indices)


def test_an_object_that_keeps_a_mapping_is_copied_with_its_tensors_mapped():
    batch = Encoding({"ids": torch.tensor([1]), "nested": {"mask": torch.tensor([3])}})
    mapped = map_tensors(double, batch)
    assert isinstance(mapped, Encoding)
    assert (mapped.data["ids"].item(), mapped.data["nested"]["mask"].item()) == (2, 6)
    assert batch.data["ids"].item() == 1


def test_an_object_with_a_to_method_and_tensor_attributes_is_copied():
    class Graph:
        def __init__(self) -> None:
            self.x, self.edges, self.n = torch.tensor([1.0]), torch.tensor([2]), 3

        def to(self, device: Any) -> Graph:
            raise AssertionError("not called")

    batch = Graph()
    mapped = map_tensors(double, batch)
    assert (mapped.x.item(), mapped.edges.item(), mapped.n) == (2.0, 4, 3)
    assert batch.x.item() == 1.0


def test_a_namedtuple_keeps_its_type():
    import collections

    Point = collections.namedtuple("Point", "x y")
    mapped = map_tensors(double, Point(torch.tensor(1.0), 2))
    assert type(mapped) is Point
    assert (mapped.x.item(), mapped.y) == (2.0, 2)


def test_arrays_are_copied_and_other_leaves_are_passed_through():
    array, other = np.ones(3), object()
    mapped = map_tensors(double, [array, {"y": array}, "x", other])
    mapped[0][0] = 7  # the user's code may write into it
    assert (array.tolist(), mapped[1]["y"].tolist()) == ([1.0] * 3, [1.0] * 3)
    assert mapped[2:] == ["x", other]


def test_a_source_that_reuses_one_array_gives_batches_of_their_own():
    def source() -> Any:
        array = np.zeros(2)
        for i in range(3):
            array[:] = i
            yield {"x": array}

    assert [batch["x"].tolist() for batch in draw(source(), 3, 2**20)[0]] == [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]


def test_a_loss_that_writes_into_its_array_finds_the_batch_as_it_was_in_the_next_run(write):
    text = HEAD + "import numpy as np\n" + MODEL
    text += "def train_batches():\n    return [(torch.ones(4, 2), np.ones(1))]\n"
    text += (
        "def compute_loss(model, batch):\n    batch[1][0] *= 3\n    return model(batch[0]).mean() * 0 + batch[1][0]\n"
    )
    job = load_job(str(write(text)))
    start = job.start(0, 2)
    seen = []
    for _ in range(2):
        with open_session(job, start, FP32_IEEE, CPU) as run:
            seen += [run.step(run.place(start.batch(step)))[ONLY].item() for step in range(2)]
    assert seen == [3.0] * 4


def test_a_module_is_no_batch_of_tensors():
    assert list(tensors_in(nn.Linear(1, 1))) == []


def test_an_object_that_holds_itself_is_entered_once():
    class Node:
        def __init__(self) -> None:
            self.x, self.parts = torch.ones(1), [self]

    assert len(list(tensors_in(Node()))) == 1


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(2), 1),
        ([torch.ones(2), {"a": torch.ones(3)}, 4, "x", None], 2),
        (Pair(torch.ones(2), {"y": torch.ones(1), "z": [torch.ones(1)]}), 3),
        (pack_sequence([torch.ones(2, 3)]), 1),
        (Encoding({"ids": torch.ones(1), "mask": torch.ones(1)}), 2),
        ("nothing", 0),
    ],
    ids=["tensor", "list", "dataclass", "packed", "object", "text"],
)
def test_tensors_in_finds_every_tensor(batch, count):
    assert len(list(tensors_in(batch))) == count


def test_bytes_and_samples_are_those_of_the_tensors():
    batch = {"scalar": torch.tensor(1.0), "x": torch.ones(5, 2), "y": torch.ones(5, dtype=torch.int64)}
    assert bytes_of(batch) == 4 + 40 + 40
    assert samples_in(batch) == 5
    assert samples_in(["nothing"]) is None


@pytest.mark.parametrize(
    ("batch", "loss"),
    [
        ("{'x': torch.ones(4, 2)}", "model(batch['x']).mean()"),
        ("(torch.ones(4, 2), 'label')", "model(batch[0]).mean()"),
        ("Batch(torch.ones(4, 2))", "model(batch.x).mean()"),
        ("torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2)])", "model(batch.data).mean()"),
    ],
    ids=["dict", "tuple", "dataclass", "packed"],
)
def test_a_job_trains_on_batches_of_any_nesting(write, batch, loss):
    text = "import dataclasses\n" + HEAD + "@dataclasses.dataclass\nclass Batch:\n    x: torch.Tensor\n" + MODEL
    text += f"def train_batches():\n    return [{batch}]\ndef compute_loss(model, batch):\n    return {loss}\n"
    assert one_step(load_job(str(write(text))))[ONLY].isfinite()
