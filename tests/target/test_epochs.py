"""A source that ends before the steps do: gone through again as an epoch loop does it, or repeated as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from mpdiag.errors import UsageError
from mpdiag.target import Start, load_job
from mpdiag.target.batches import draw
from target_samples import HEAD, LOSS, MODEL

EIGHT = TensorDataset(torch.arange(8.0))


def drawn(source: object, count: int) -> list[list[float]]:
    torch.manual_seed(0)
    batches, _ = draw(source, count, 2**20)
    return [(batch[0] if isinstance(batch, list | tuple) else batch).tolist() for batch in batches]


def test_a_loader_that_shuffles_gives_every_sample_once_an_epoch_in_another_order():
    found = drawn(DataLoader(EIGHT, batch_size=2, shuffle=True), 12)
    epochs = [[value for batch in found[i : i + 4] for value in batch] for i in (0, 4, 8)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(range(8))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_more_batches_begin_with_the_same_ones():
    loader = DataLoader(EIGHT, batch_size=2, shuffle=True)
    assert drawn(loader, 11)[:5] == drawn(loader, 5)


@pytest.mark.parametrize(
    "source",
    [
        DataLoader(EIGHT, batch_size=2),
        [torch.zeros(2), torch.ones(2), torch.ones(2), torch.ones(2)],
        (torch.full((2,), float(i)) for i in range(4)),
    ],
    ids=["in order", "a list", "a generator"],
)
def test_what_would_come_in_the_same_order_or_not_at_all_is_drawn_once(source):
    assert len(drawn(source, 12)) == 4


class Augmented:
    """Another epoch has other numbers; the third is empty."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        self.epoch += 1
        return iter([torch.full((1,), 10.0 * self.epoch + i) for i in range(3 if self.epoch < 3 else 0)])


def test_an_epoch_of_other_numbers_is_taken_and_an_empty_one_is_the_end():
    assert drawn(Augmented(), 12) == [[10.0], [11.0], [12.0], [20.0], [21.0], [22.0]]


def test_batches_without_a_tensor_that_can_be_compared_are_drawn_once():
    sparse = torch.eye(3).to_sparse()
    assert len(draw([sparse, sparse], 5, 2**20)[0]) == 2
    assert len(draw([{"text": "one"}, {"text": "two"}], 5, 2**20)[0]) == 2


# one iterator for all calls


SHARED = "GEN = iter([torch.full((4, 2), float(i)) for i in range(6)])\ndef train_batches():\n    return GEN\n"


def firsts(start: Start) -> list[float]:
    return [batch[0, 0].item() for batch in start.batches]


@pytest.mark.parametrize(
    "batches",
    [
        SHARED,
        "GEN = (torch.full((4, 2), float(i)) for i in range(6))\ndef train_batches():\n    return GEN\n",
        "BUFFER = torch.zeros(4, 2)\nGEN = (BUFFER.fill_(i) for i in range(6))\ndef train_batches():\n    return GEN\n",
    ],
    ids=["an iterator", "a generator", "a buffer that is reused"],
)
def test_a_function_that_gives_one_iterator_at_every_call_does_not_run_dry(write, batches):
    job = load_job(str(write(HEAD + MODEL + batches + LOSS)))
    for seed, count, drawn in ((0, 2, 2), (0, 4, 4), (1, 3, 3), (2, 9, 6), (3, 9, 6)):
        assert firsts(job.start(seed, count)) == [float(i) for i in range(drawn)]
    assert job.notes[1:] == ("train_batches gives one iterator at every call: every seed sees the same batches",)


def test_batches_of_an_iterator_that_another_wraps_anew_are_kept_for_when_it_is_empty(write):
    wrapped = "import itertools\n" + SHARED.replace("return GEN", "return itertools.islice(GEN, 9)")
    job = load_job(str(write(HEAD + MODEL + wrapped + LOSS)))
    assert firsts(job.start(0, 9)) == firsts(job.start(1, 9)) == [float(i) for i in range(6)]
    assert job.notes[1:] == (
        "train_batches gave nothing when it was called again: the batches that it gave before were taken",
    )


def test_an_iterator_that_is_empty_from_the_first_is_no_source(write):
    with pytest.raises(UsageError) as caught:
        load_job(str(write(HEAD + MODEL + "def train_batches():\n    return iter(())\n" + LOSS))).start(0, 1)
    assert caught.value.slug == "target-empty-batches"


def test_a_generator_is_let_go_when_its_batches_are_drawn(write):
    text = "ENDED = []\ndef train_batches():\n    try:\n        while True:\n            yield torch.ones(4, 2)\n"
    job = load_job(str(write(HEAD + MODEL + text + "    finally:\n        ENDED.append(True)\n" + LOSS)))
    job.start(0, 2)
    assert job.train_batches.__globals__["ENDED"] == [True]


def test_points_that_ask_for_a_gradient_still_do_once_drawn():
    points, plain = torch.rand(3, requires_grad=True), torch.rand(3)
    ((drawn_points, drawn_plain, derived),), _ = draw([(points, plain, points * 2)], 1, 2**20)
    assert [t.requires_grad for t in (drawn_points, drawn_plain, derived)] == [True, False, True]
    assert all(t.is_leaf for t in (drawn_points, derived))
