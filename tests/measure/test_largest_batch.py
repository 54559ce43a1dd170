"""The search for the largest batch, on a fake card; and what becomes of children that die."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mpdiag
from fake_allocator import FakeAllocator
from mpdiag.costs.largest_batch import (
    ENOUGH,
    TOLERANCE,
    BatchTrial,
    LargestBatch,
    bracket,
    budget_of,
    line,
    next_batch,
)
from mpdiag.errors import MpdiagError
from mpdiag.measure import batch_trial
from mpdiag.measure import largest_batch as search
from mpdiag.measure.again import open_again, request_for
from mpdiag.measure.batch_trial import attempt, timed, tried
from mpdiag.measure.child import Reply
from mpdiag.target import load_job
from mpdiag.target.job import ONLY
from mpdiag.training.precision import Precision
from mpdiag.training.session import open_session
from mpdiag.verify.batch_stage import largest_batches, search_seconds
from mpdiag.verify.costs_asked import CostsAsked


def searched(fits: Callable[[int], bool], peak: Callable[[int], int], first: int, budget: int) -> list[BatchTrial]:
    trials: list[BatchTrial] = []
    while (batch := next_batch(trials, first, budget)) is not None:
        assert batch not in {t.batch for t in trials}, "a batch is tried once"
        good = fits(batch)
        trials.append(BatchTrial(batch, good, peak(batch) if good else None))
        assert len(trials) < 60, "the search ends"
    return trials


@settings(max_examples=500)
@given(
    largest=st.integers(1, 50_000),
    first=st.integers(1, 5000),
    fixed=st.integers(0, 10**6),
    slope=st.integers(1, 10**4),
    liar=st.floats(0.2, 5),
)
def test_whatever_the_card_the_answer_fits_and_is_near_the_largest(
    largest: int, first: int, fixed: int, slope: int, liar: float
) -> None:
    # the card's own limit is `largest`; the peaks it shows may foretell another one (liar)
    budget = int(fixed + slope * largest * liar)
    trials = searched(lambda batch: batch <= largest, lambda batch: fixed + slope * batch, first, budget)
    found, unfit = bracket(trials)
    assert found is not None
    assert found <= largest
    assert unfit is not None
    assert unfit > largest
    # to the tolerance, or the next multiple of eight; a first batch that is none may stand alone
    assert largest < found + max(8, TOLERANCE * found) + 8 * (found % 8 != 0 and found >= 16)


@given(st.sets(st.integers(1, 300), min_size=1), st.integers(1, 300))
def test_also_on_a_card_that_is_not_monotone_only_what_was_seen_to_fit_is_said_to(
    fitting: set[int], first: int
) -> None:
    trials = searched(lambda batch: batch in fitting, lambda batch: batch, first, 200)
    found, unfit = bracket(trials)
    assert found is None or found in fitting
    assert found is None or unfit is None or found < unfit


def test_a_straight_card_takes_few_trials() -> None:
    fixed, slope, budget = 3 * 2**30, 80 * 2**20, 75 * 2**30
    largest = (budget - fixed) // slope  # 921
    trials = searched(lambda batch: batch <= largest, lambda batch: fixed + slope * batch, 32, budget)
    assert [(t.batch, t.fits) for t in trials] == [
        (32, True), (64, True), (456, True), (872, True), (920, True), (944, False),
    ]  # fmt: skip


# as they were read on an H100 (batch, GB): near the end the allocator gives back what it kept
FLAT = {  # name: (the job's own batch, the largest that fitted, what was read)
    "char_gpt in FP32": (16, 17456, {16: 0.2, 32: 0.3, 512: 2.8, 8192: 39.7, 15896: 77.0, 16680: 76.4, 17456: 80.4}),
    "char_gpt in FP16": (16, 28784, {16: 0.1, 32: 0.2, 512: 1.8, 8192: 23.8, 26672: 77.2, 27912: 77.1, 28784: 80.3}),
    "LSTM in FP32": (128, 6552, {128: 1.8, 256: 3.6, 4096: 50.7, 6216: 76.6, 6552: 74.6}),
    "GPT in FP32": (8, 144, {8: 6.2, 16: 10.0, 80: 46.4, 112: 58.9, 128: 66.9, 144: 75.1}),
    "GPT in FP16": (8, 192, {8: 4.9, 16: 7.7, 112: 50.3, 160: 62.1, 192: 74.2}),
}
BUDGET_GB = 80.77


@pytest.mark.parametrize("name", FLAT)
def test_peaks_that_grow_too_flat_near_the_end_do_not_mislead_for_long(name: str) -> None:
    first, largest, seen = FLAT[name]

    def peak(batch: int) -> int:
        low, high = max(b for b in seen if b <= batch), min((b for b in seen if b >= batch), default=largest)
        share = (batch - low) / (high - low) if high > low else 0.0
        return int(1e9 * (seen[low] + share * (seen[high] - seen[low])))

    trials = searched(lambda batch: batch <= largest, peak, first, int(BUDGET_GB * 1e9))
    assert sum(not t.fits for t in trials) <= 3  # each takes a process
    found = bracket(trials)[0]
    assert found is not None
    assert found >= (1 - TOLERANCE) * largest - 8


def test_a_job_that_does_not_fit_at_all_goes_down_to_one() -> None:
    trials = searched(lambda batch: False, lambda batch: 1, 20, 100)
    assert [t.batch for t in trials] == [20, 10, 5, 2, 1]
    assert bracket(trials) == (None, 1)


def test_a_job_too_large_for_the_card_finds_the_batch_below() -> None:
    trials = searched(lambda batch: batch <= 11, lambda batch: 100 + batch, 128, 111)
    assert bracket(trials) == (11, 12)


def test_a_card_without_an_end_stops_the_search() -> None:
    trials = searched(lambda batch: True, lambda batch: 1000, 32, 10**12)
    assert bracket(trials) == (ENOUGH, None)


def test_from_sixteen_on_batches_are_multiples_of_eight() -> None:
    trials = searched(lambda batch: batch <= 700, lambda batch: batch, 30, 700)
    assert all(t.batch % 8 == 0 for t in trials if t.batch >= 16 and t.batch != 30)


def test_the_line_through_the_peaks() -> None:
    seen = [BatchTrial(8, True, 108), BatchTrial(16, True, 116), BatchTrial(64, False)]
    assert line(seen) == pytest.approx((100, 1))
    assert line(seen[:1]) is None
    assert line([BatchTrial(8, True, 108), BatchTrial(16, True, 108)]) is None


@pytest.mark.parametrize(("card", "kept"), [(80 * 2**30, 76 * 2**30), (4 * 2**30, 4 * 2**30 - 512 * 2**20)])
def test_the_margin_is_five_percent_and_at_least_half_a_gibibyte(card: int, kept: int) -> None:
    assert budget_of(card) == kept


# --- trials, on an allocator of the CPU's storages

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TARGET = """
import torch
SEEN = []
def build_model():
    return torch.nn.Sequential(torch.nn.Linear(256, 128), torch.nn.ReLU(), torch.nn.Linear(128, 4))
def train_batches():
    yield torch.randn(8, 256), torch.randn(8, 4)
def compute_loss(model, batch):
    x, y = batch
    SEEN.append((len(x), model.training, torch.is_grad_enabled()))
    if len(x) > LIMIT:
        raise RuntimeError("invalid configuration argument")
    return torch.nn.functional.mse_loss(model(x), y)
def build_optimizer(model):
    return torch.optim.Adam(model.parameters())
LIMIT = 10**9
"""
MIB = 2**20
FIXED = 8 * MIB  # cuBLAS's workspace in the fake


@pytest.fixture
def target(tmp_path: Path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(TARGET)
    return str(path)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeAllocator:
    """A card of 520 MiB, whose margin leaves 8 MiB and 300 kB beside the workspace; each child gets a fresh one."""
    monkeypatch.setattr(search, "cannot_start_again", lambda job, device: None)
    card = FakeAllocator()
    card.total = 512 * MIB + FIXED + 3 * MIB

    def run(task: str, request: dict[str, Any], seconds: float) -> Reply:
        sent = json.loads(json.dumps(request | {"device": "cpu"}))
        again = open_again(sent)
        card.retries, card.most = 0, 10**12
        with card:
            card.alive.clear()
            value = tried(again, card, sent, time.monotonic()) if task == search.SEARCH else timed(again, card, sent)
        card.children.append(task)
        return Reply(json.loads(json.dumps(value)))

    monkeypatch.setattr(search, "release_memory", lambda: None)  # collecting garbage takes most of a trial here
    monkeypatch.setattr(batch_trial, "release_memory", lambda: None)
    card.children = []  # type: ignore[attr-defined]
    monkeypatch.setattr(search.Processes, "run", lambda self, *given: run(*given))
    return card


def find(target: str, seconds: float = 600, **more: Any) -> LargestBatch:
    return search.find_largest_batch(load_job(target), Precision("FP32", ieee=True), 0, CUDA, seconds, **more)


def test_the_largest_batch_on_a_fake_card(target: str, fake: FakeAllocator) -> None:
    found = find(target, arm="fp32")
    assert found.reason is found.speed_reason is None
    assert (found.arm, found.precision, found.own_batch, found.at_least) == ("fp32", "FP32", 8, False)
    assert found.card_bytes == fake.total
    assert found.budget_bytes == FIXED + 3 * MIB
    assert not found.limited
    assert found.batch is not None
    assert found.too_large is not None
    assert found.batch % 8 == 0
    assert found.batch < found.too_large <= found.batch + max(8, TOLERANCE * found.batch) + 8
    assert found.peak_bytes is not None
    assert found.peak_bytes <= found.budget_bytes
    assert found.too_large_reason == "out of memory"
    assert found.bytes_per_sample is not None
    assert 256 * 4 < found.bytes_per_sample < 8 * 256 * 4
    assert found.step_time_ms is not None
    assert found.samples_per_second == found.batch * 1000 / found.step_time_ms
    assert any("samples are repeated" in note for note in found.notes)


def test_a_batch_that_lacks_memory_only_when_it_is_timed_is_not_the_answer(
    target: str, fake: FakeAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, largest = batch_trial._step_time, find(target).batch
    assert largest is not None

    def crowded(session: Any, batch: Any, device: Any) -> float | None:
        if len(batch[0]) > largest // 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 17.36 GiB")
        return real(session, batch, device)

    monkeypatch.setattr(batch_trial, "_step_time", crowded)
    found = find(target)
    assert found.batch is not None
    assert found.batch <= largest // 2
    assert found.step_time_ms is not None
    assert found.too_large_reason == "out of memory after its first 3 steps"


def test_after_a_lack_of_memory_the_next_trial_is_a_fresh_process(target: str, fake: FakeAllocator) -> None:
    found = find(target)
    unfit = sum(not trial.fits for trial in found.trials)
    assert fake.children.count(search.SEARCH) <= unfit + 1  # type: ignore[attr-defined]
    assert fake.children[-1] == search.SPEED  # type: ignore[attr-defined]


def test_a_trial_is_three_steps_and_a_pass_without_gradients(target: str, fake: FakeAllocator) -> None:
    again = open_again(request_for(load_job(target), Precision("FP32"), 0, CPU, None))
    seen = sys.modules["_mpdiag_target_tiny"].SEEN
    seen.clear()
    with fake, open_session(again.job, again.start, again.precision, CPU) as session:
        trial = attempt(session, again.start.batches[0], 24, fake)
        assert session.model.training
    assert trial.fits
    assert seen == [(24, True, True)] * 3 + [(24, False, False)]


def test_a_smaller_card_can_be_asked_for(target: str, fake: FakeAllocator) -> None:
    whole, smaller = find(target), find(target, memory_limit_bytes=fake.total - MIB)
    assert smaller.limited
    assert smaller.card_bytes == fake.total - MIB
    assert smaller.batch is not None
    assert whole.batch is not None
    assert smaller.batch < whole.batch


def test_a_larger_card_than_there_is_cannot(target: str, fake: FakeAllocator) -> None:
    found = find(target, memory_limit_bytes=fake.total * 2)
    assert not found.limited
    assert found.card_bytes == fake.total
    assert any("were asked for, the card has" in note for note in found.notes)


def test_a_card_that_others_use_says_how_much_was_left(target: str, fake: FakeAllocator) -> None:
    fake.held = MIB
    found = find(target)
    assert found.budget_bytes == FIXED + 2 * MIB
    assert any("in use already" in note for note in found.notes)


def test_a_full_card_has_a_reason(target: str, fake: FakeAllocator) -> None:
    fake.held = fake.total - MIB
    with pytest.raises(MpdiagError, match="GiB of the card are free"):
        find(target)


@pytest.mark.parametrize(
    ("room", "tried_batches", "reason"),
    [
        (1000, [1], "out of memory before the first batch"),  # the model has 133 kB, with its state four times that
        (300_000, [8, 4, 2, 1], "out of memory"),
    ],
)
def test_a_model_that_does_not_fit_at_all_has_a_reason(
    target: str, fake: FakeAllocator, room: int, tried_batches: list[int], reason: str
) -> None:
    fake.total = 512 * MIB + FIXED + room
    found = find(target)
    assert found.batch is found.samples_per_second is None
    assert found.reason == f"not even one sample fits: {reason}"
    assert [trial.batch for trial in found.trials] == tried_batches


def test_an_error_that_is_not_memory_bounds_the_batch_and_is_named(target: str, fake: FakeAllocator) -> None:
    text = Path(target).read_text()
    Path(target).write_text(text.replace("LIMIT = 10**9", "LIMIT = 40"))
    found = find(target)
    assert (found.batch, found.too_large) == (40, 48)
    assert found.too_large_reason is not None
    assert "invalid configuration argument" in found.too_large_reason


def test_a_job_that_fails_at_its_own_batch_raises_its_own_error(target: str, fake: FakeAllocator) -> None:
    text = Path(target).read_text()
    Path(target).write_text(text.replace("LIMIT = 10**9", "LIMIT = 4"))
    with pytest.raises(MpdiagError, match="invalid configuration"):
        find(target)


@pytest.mark.parametrize(("steps", "fits"), [((1,), True), ((2,), False), ((3,), False), ((1, 2, 3), False)])
def test_an_allocator_that_has_to_try_again_in_a_later_step_does_not_fit(
    target: str, fake: FakeAllocator, steps: tuple[int, ...], fits: bool
) -> None:
    """In the first one the optimizer's state is made, for which the cache is emptied once."""
    again = open_again(request_for(load_job(target), Precision("FP32"), 0, CPU, None))
    with FakeAllocator() as card, open_session(again.job, again.start, again.precision, CPU) as session:
        stepped = iter(range(1, 100))
        hook = session.optimizers[ONLY].register_step_post_hook(
            lambda *given: setattr(card, "retries", card.retries + (next(stepped) in steps))
        )
        trial = attempt(session, again.start.batches[0], 8, card)
        hook.remove()
    assert trial.fits is fits
    assert fits or "try again" in (trial.reason or "")


def answering(monkeypatch: pytest.MonkeyPatch, *replies: Reply) -> None:
    left = list(replies)
    monkeypatch.setattr(search, "cannot_start_again", lambda job, device: None)
    monkeypatch.setattr(search.Processes, "run", lambda self, *given: left.pop(0))


def told(*trials: BatchTrial) -> Reply:
    card = {"card_bytes": 1000, "budget_bytes": 900, "limited": False, "own_batch": 4, "notes": []}
    return Reply({**card, "trials": [vars(trial) for trial in trials]})


FITS, BURSTS = BatchTrial(4, True, 400), BatchTrial(8, False, None, "out of memory")


def test_a_child_that_is_killed_leaves_what_was_found_before_and_says_at_least(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Reply(None, "the process that measures it was killed by SIGKILL")
    answering(monkeypatch, told(FITS, BURSTS), killed, killed)
    found = find(target)
    assert (found.batch, found.too_large, found.at_least) == (4, 8, True)
    assert found.samples_per_second is None
    assert found.speed_reason == killed.reason
    assert f"the search ended early: {killed.reason}" in found.notes


def test_a_first_child_that_is_killed_gives_a_reason_and_no_batch(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, Reply(None, "it was killed"))
    found = find(target)
    assert (found.batch, found.reason, found.trials) == (None, "it was killed", ())


def test_what_does_not_fit_in_a_fresh_process_is_not_the_answer(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    six, seven = BatchTrial(6, True, 600), BatchTrial(7, False, None, "out of memory")
    again = Reply({"trial": vars(BatchTrial(6, False, None, "out of memory")), "step_time_ms": None})
    five = BatchTrial(5, True, 500)
    answering(
        monkeypatch,
        told(FITS, BURSTS, six, seven),
        again,
        told(FITS, BURSTS, seven, BatchTrial(6, False, None, "out of memory"), five),
        Reply({"trial": vars(five), "step_time_ms": 2.0}),
    )
    found = find(target)
    assert (found.batch, found.too_large, found.samples_per_second) == (5, 6, 2500)


def test_without_time_nothing_is_tried_and_the_reason_says_so(target: str, fake: FakeAllocator) -> None:
    found = find(target, seconds=5)
    assert (found.batch, found.reason) == (
        None, "the 5 s for the search were used up, a longer --time-budget gives it more",
    )  # fmt: skip
    assert fake.children == []  # type: ignore[attr-defined]


class Hour:
    """A clock that only children move, by so many seconds each."""

    def __init__(self, fake: FakeAllocator, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.now, left, real = 0.0, list(seconds), search.Processes.run

        def run(task: str, request: dict[str, Any], limit: float) -> Reply:
            self.now += left.pop(0) if left else seconds[-1]
            return real(None, task, request | ({"seconds": 1e9} if "seconds" in request else {}), limit)

        monkeypatch.setattr(search.Processes, "run", lambda self, *given: run(*given))
        monkeypatch.setattr(search.time, "monotonic", lambda: self.now)


ASKED = mpdiag.ScanOptions(largest_batch=True)


def asked_for(options: mpdiag.ScanOptions) -> CostsAsked:
    return CostsAsked(options.costs, options.batch_searched, options.memory_limit_bytes, options.time_budget_seconds)


def test_at_default_options_every_arm_has_time_enough_for_what_it_took_on_an_h100(
    target: str, fake: FakeAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hour(fake, monkeypatch, 20, 16, 17)  # the own batch, the next trials, the speed of what was found
    arms = {"fp32": Precision("FP32", ieee=True), "fp16": Precision("FP16", torch.float16)}
    found = list(largest_batches(load_job(target), arms, 0, CUDA, asked_for(ASKED), lambda line: None))
    assert [each.arm for each in found] == list(arms)
    assert all(each.reason is each.speed_reason is None for each in found)
    assert all(each.batch is not None and each.step_time_ms is not None for each in found)
    assert not any(note.startswith("the search ended early") for each in found for note in each.notes)


@pytest.mark.parametrize(("arms", "budget", "seconds"), [(1, 60.0, 120.0), (4, 60.0, 480.0), (3, 600.0, 600.0)])
def test_the_search_has_as_much_again_as_the_budget_and_at_least_two_minutes_an_arm(
    arms: int, budget: float, seconds: float
) -> None:
    assert search_seconds(arms, budget) == seconds


def test_what_one_arm_leaves_of_its_seconds_the_next_one_has(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now, given = [0.0], []

    def find(job: Any, precision: Any, seed: int, device: Any, seconds: float, *others: Any) -> LargestBatch:
        given.append(seconds)
        now[0] += 30.0
        return LargestBatch.absent("fp32", "FP32", "none")

    monkeypatch.setattr("mpdiag.verify.batch_stage.find_largest_batch", find)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    arms = dict.fromkeys(("fp32", "fp16", "bf16"), Precision("FP32"))
    list(largest_batches(load_job(target), arms, 0, CUDA, asked_for(ASKED), lambda line: None))
    assert given == [120.0, 165.0, 300.0]


def test_a_search_that_is_cut_says_how_many_seconds_it_had(
    target: str, fake: FakeAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hour(fake, monkeypatch, 50)
    found = find(target, seconds=60)
    assert found.at_least
    told = "the 60 s for the search were used up, a longer --time-budget gives it more"
    assert f"the search ended early: {told}" in found.notes
    assert found.speed_reason == f"no time was left to measure the speed: {told}"


def test_a_child_that_runs_out_of_time_hands_back_its_trials(target: str, fake: FakeAllocator) -> None:
    again = open_again(request_for(load_job(target), Precision("FP32"), 0, CPU, None))
    request = {"trials": [vars(BatchTrial(8, True, 9 * MIB))], "seconds": 0.0, "memory_limit_bytes": None}
    with fake:
        value = tried(again, fake, request, time.monotonic())
    assert value["trials"] == request["trials"]


def test_on_a_cpu_no_batch_is_searched(target: str) -> None:
    found = search.find_largest_batch(load_job(target), Precision("FP32"), 0, CPU, 60)
    assert found == LargestBatch.absent("FP32", "FP32", "needs a CUDA GPU; this run was on the CPU")
    assert found.reason == found.speed_reason


def test_a_speed_of_skipped_steps_is_none_with_its_reason(
    target: str, fake: FakeAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_trial, "skips_watched", lambda scaler: nullcontext(lambda: True))
    found = find(target)
    assert found.batch is not None
    assert (found.step_time_ms, found.samples_per_second) == (None, None)
    assert found.speed_reason == "the GradScaler skipped steps in 3 blocks of 10"
