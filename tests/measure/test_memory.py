"""Memory at the peak: the parts from an allocator's history, the recording of a step, and why the peak is not half."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fake_allocator import FakeAllocator
from mpdiag.costs.memory import MemorySplit, MemoryUse, from_reply, why_not_half
from mpdiag.device.memory import MARK_BYTES, NoHistoryError, is_out_of_memory
from mpdiag.errors import UsageError
from mpdiag.measure import memory
from mpdiag.measure.again import Again, cannot_start_again, open_again, request_for
from mpdiag.measure.child import Reply
from mpdiag.measure.memory_record import _is_weight_copy, record_step
from mpdiag.measure.memory_split import HistoryMismatchError, Note, split_at_peak
from mpdiag.measure.steady import steady_run
from mpdiag.target import Job, load_job
from mpdiag.training.precision import FP32_IEEE, Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


# --- the split, from histories written by hand

MARK = [("alloc", 9, MARK_BYTES), ("free", 9, MARK_BYTES)]
BEGIN = Note("tag", "weight", (100,))


def alloc(address: int, size: int) -> list[tuple[str, int, int]]:
    return [("alloc", address, size)]


def free(address: int, size: int) -> list[tuple[str, int, int]]:
    return [("free", address, size)]


def at_peak(live: Any, events: Any, notes: Any, peak: int = 0) -> Any:
    return split_at_peak(live, events, notes, peak or sum(n for _, n in live) + 10_000, MARK_BYTES)


def test_a_step_that_allocates_nothing_is_what_was_there_before() -> None:
    found = at_peak([(100, 40), (200, 2)], MARK, [BEGIN], 512)
    assert found.split == MemorySplit(weights_bytes=40, other_bytes={"before the step": 2}, rounding_bytes=470)
    assert (found.phase, found.near) == ("before the step", None)


def test_every_part_at_the_peak_and_nothing_that_came_or_went_beside_it() -> None:
    live = [(100, 40), (110, 41), (120, 42), (130, 43), (140, 44), (150, 1000)]
    history = [
        *MARK, *MARK, *MARK, *MARK, *MARK, *MARK,  # the tags of the state, then forward
        *alloc(200, 20), *MARK,  # a 16-bit copy of a weight
        *alloc(210, 7), *free(210, 7),  # gone before the peak
        *alloc(220, 300), *MARK, *alloc(230, 600), *MARK,  # activations
        *alloc(240, 5),  # held by nobody that we know
        *MARK, *free(200, 20), *MARK, *MARK,  # autocast ends, backward begins
        *alloc(250, 30), *alloc(260, 80), *free(260, 80), *MARK,  # a gradient, and scratch memory at the peak
        *free(220, 300), *free(230, 600), *alloc(270, 8),
        *MARK, *MARK, *free(150, 1000), *MARK,  # the end, and cuBLAS's workspace
    ]  # fmt: skip
    notes = [
        BEGIN, Note("tag", "buffer", (110,)), Note("tag", "optimizer state", (120,)), Note("tag", "batch", (130,)),
        Note("tag", "gradient", (140,)), Note("phase", "forward"), Note("tag", "activation float16", (200,)),
        Note("tag", "activation float16", (220,)), Note("tag", "activation float32", (230,)),
        Note("freeing", "autocast copy"), Note("freeing"), Note("phase", "backward"),
        Note("tag", "gradient", (250,), "fc.weight"), Note("phase", "end"), Note("freeing", "workspace"),
        Note("freeing"),
    ]  # fmt: skip
    total = 40 + 41 + 42 + 43 + 44 + 1000 + 300 + 600 + 5 + 30 + 80
    found = at_peak(live, history, notes, total + 24)
    assert found.split == MemorySplit(
        weights_bytes=40,
        buffers_bytes=41,
        optimizer_state_bytes=42,
        batch_bytes=43,
        gradients_bytes=44 + 30,
        activations_bytes={"float32": 600, "float16": 300},
        workspace_bytes=1000 + 80,
        other_bytes={"forward": 5},
        rounding_bytes=24,
    )
    assert found.split.total == total + 24
    assert (found.phase, found.near) == ("backward", "fc.weight")


def test_a_copy_that_autocasts_end_frees_was_a_copy_at_the_peak_though_nobody_saved_it() -> None:
    history = [*MARK, *MARK, *alloc(200, 20), *alloc(210, 50), *MARK, *free(200, 20), *MARK]
    notes = [BEGIN, Note("phase", "forward"), Note("freeing", "autocast copy"), Note("freeing")]
    split = at_peak([(100, 40)], history, notes).split
    assert split.autocast_copies_bytes == 20
    assert split.other_bytes == {"forward": 50}


def test_an_address_that_is_given_again_is_another_block() -> None:
    history = [
        *MARK, *MARK, *alloc(200, 20), *MARK, *free(200, 20), *alloc(200, 90), *MARK, *alloc(300, 1),
    ]  # fmt: skip
    notes = [
        BEGIN, Note("phase", "forward"), Note("tag", "activation float16", (200,)),
        Note("tag", "activation float32", (200,)),
    ]  # fmt: skip
    assert at_peak([(100, 40)], history, notes).split.activations_bytes == {"float32": 90}


def test_a_saved_weight_stays_a_weight() -> None:
    notes = [BEGIN, Note("tag", "activation float32", (100,))]
    split = at_peak([(100, 40)], [*MARK, *MARK], notes).split
    assert (split.weights_bytes, split.activations_bytes) == (40, {})


def test_the_module_at_work_when_the_peak_was_reached() -> None:
    history = [*MARK, *MARK, *MARK, *alloc(200, 9), *MARK, *alloc(300, 9), *free(200, 9), *MARK, *alloc(400, 1)]
    notes = [BEGIN, Note("phase", "forward"), *(Note("at", where=name) for name in ("a", "b", "c"))]
    assert at_peak([(100, 40)], history, notes).near == "b"


def test_in_the_optimizer_step_a_block_of_a_moment_is_no_workspace() -> None:
    history = [*MARK, *MARK, *alloc(200, 9), *free(200, 9)]
    split = at_peak([(100, 40)], history, [BEGIN, Note("phase", "optimizer step")]).split
    assert (split.workspace_bytes, split.other_bytes) == (0, {"optimizer step": 9})


def test_what_comes_after_the_end_is_no_peak() -> None:
    history = [*MARK, *MARK, *alloc(200, 9), *MARK, *alloc(300, 10**9)]
    assert at_peak([(100, 40)], history, [BEGIN, Note("phase", "forward"), Note("phase", "end")]).phase == "forward"


def test_a_block_freed_between_the_snapshot_and_the_first_mark_is_not_counted() -> None:
    split = at_peak([(100, 40), (200, 7)], [*free(200, 7), *MARK, *alloc(300, 1)], [BEGIN]).split
    assert split.other_bytes == {"before the step": 1}


@pytest.mark.parametrize(
    ("events", "notes", "reason"),
    [
        (MARK, [BEGIN, BEGIN], "1 marks in the history for 2 notes"),
        ([*MARK, *MARK], [BEGIN], "more marks in the history than the 1 notes"),
        ([*MARK, *free(777, 5)], [BEGIN], "never given"),
        ([*MARK, *alloc(100, 5)], [BEGIN], "given twice"),
        ([*MARK, *alloc(200, MARK_BYTES), *free(200, MARK_BYTES)], [BEGIN], "more marks"),  # a tensor like a mark
        ([*MARK, *alloc(200, 10**9)], [BEGIN], "more than the allocator's peak"),
    ],
)
def test_a_history_that_cannot_be_right_is_refused(events: Any, notes: Any, reason: str) -> None:
    with pytest.raises(HistoryMismatchError, match=reason):
        at_peak([(100, 40)], events, notes)


@given(st.lists(st.tuples(st.integers(380, 999), st.booleans(), st.sampled_from(["", "weight", "batch"])), max_size=40))
def test_the_parts_add_up_to_the_peak_whatever_happened(steps: list[tuple[int, bool, str]]) -> None:
    events, notes, alive, total, most = [*MARK], [BEGIN], [], 40, 40
    for address, (size, give_back, label) in enumerate(steps, 1000):
        events += alloc(address, size)
        alive.append((address, size))
        total += size
        most = max(most, total)
        if label:
            events += MARK
            notes.append(Note("tag", label, (address,)))
        if give_back:
            gone, freed = alive.pop(0)
            events += free(gone, freed)
            total -= freed
    assert at_peak([(100, 40)], events, notes, most + 1).split.total == most + 1
    assert at_peak([(100, 40)], events, notes, most + 1).split.rounding_bytes == 1


# --- a recorded step, on an allocator of the CPU's storages

TARGET = """
import torch
def build_model():
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32, bias=False), torch.nn.ReLU(), torch.nn.Linear(32, 8, bias=False))
def train_batches():
    for size in (4, 16, 8):
        yield torch.randn(size, 64), torch.randn(size, 8)
def loss_fn(output, target):
    return torch.nn.functional.mse_loss(output, target)
def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
"""
WEIGHTS = (64 * 32 + 32 * 8) * 4


@pytest.fixture
def target(tmp_path: Any) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(TARGET)
    return str(path)


def again(target: str, precision: Precision = FP32_IEEE, samples: int | None = None) -> Again:
    return open_again(request_for(load_job(target), precision, 0, CPU, samples))


def test_a_recorded_step_of_a_known_model_byte_by_byte(target: str) -> None:
    job = again(target)
    with FakeAllocator() as fake, steady_run(job.job, job.start, job.precision, CPU, 3) as run:
        recorded = record_step(run, fake)
    split = recorded.at_peak.split
    assert split.total == recorded.peak_bytes
    assert split.weights_bytes == split.optimizer_state_bytes == split.gradients_bytes == WEIGHTS
    assert split.batch_bytes == 16 * (64 + 8) * 4
    assert split.workspace_bytes == 8 * 2**20
    # the forward has no gradients beside it, so the peak is where the last of them comes and its input is still there
    assert (recorded.at_peak.phase, recorded.at_peak.near) == ("backward", "0.weight")
    assert split.activations_bytes == {}  # the layers behind have given theirs back
    assert split.other_bytes == {
        "forward": 16 * 8 * 4,  # the loss, whose storage on a CPU is that of what it averages
        "backward": 16 * 32 * 4 + 4,  # the gradient of ReLU's input, and that of the loss
    }
    assert split.rounding_bytes == 508  # of the latter's 512; every other size here is a multiple


def test_recording_changes_no_lifetime(target: str) -> None:
    job = again(target)
    with FakeAllocator() as fake, steady_run(job.job, job.start, job.precision, CPU, 3) as run:
        found = []
        for hooked in (False, True, False):
            fake.reset_peaks()
            if hooked:
                record_step(run, fake)
            else:
                with run.in_force_again() as step:
                    step()
            found.append((fake.peaks().allocated_bytes, fake.in_use))
    assert found[0] == found[1] == found[2]


def test_what_a_child_sends_is_a_record(target: str) -> None:
    with FakeAllocator() as fake:
        sent = json.loads(json.dumps(memory.measured(again(target), fake)))
    use = from_reply("fp32", sent)
    assert use.reason is use.split_reason is None
    assert (use.arm, use.precision, use.samples, use.parameters) == ("fp32", "FP32", 16, WEIGHTS // 4)
    assert use.split is not None
    assert use.split.total == use.recorded_peak_bytes == use.peak_allocated_bytes
    assert use.peak_reserved_bytes == use.peak_allocated_bytes + 4096
    assert (use.driver_bytes, use.driver_reason) == (None, "a fake has no driver")
    assert use.alloc_retries == 0


@pytest.mark.parametrize("failing", ["start_history", "history", "mark"])
def test_without_a_history_the_peak_stands_and_the_split_has_a_reason(target: str, failing: str) -> None:
    class Refusing(FakeAllocator):
        pass

    def refuse(self: Any) -> Any:
        raise (NoHistoryError("no history here") if failing != "mark" else ValueError("changed"))

    setattr(Refusing, failing, refuse)
    with Refusing() as fake:
        use = from_reply("fp32", memory.measured(again(target), fake))
    assert use.peak_allocated_bytes
    assert use.split is None
    assert use.peak_phase is use.recorded_peak_bytes is None
    expected = "no history here" if failing != "mark" else "the step could not be recorded: ValueError: changed"
    assert use.split_reason == expected


def test_a_job_whose_steps_are_all_skipped_says_so(target: str) -> None:
    job = again(target, Precision("FP16", autocast=torch.float16, log2_scale=4))
    job.start.batches[0][1].fill_(float("nan"))
    with FakeAllocator() as fake:
        use = from_reply("fp16", memory.measured(job, fake))
    assert use.notes
    assert "skipped every one" in use.notes[0]


def test_a_copy_of_a_weight_is_told_from_an_activation() -> None:
    seen: dict[str, bool] = {}
    linear, other = torch.nn.Linear(8, 8), torch.nn.Conv1d(8, 8, 1)
    lstm = torch.nn.LSTM(4, 4, 2)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16:
            own = {p.shape for m in (linear, other) for p in m.parameters()} | {linear.weight.t().shape}
            seen[f"{tuple(tensor.shape)} {tensor.shape in own}"] = _is_weight_copy(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = linear(torch.randn(3, 8, requires_grad=True)).relu()
        other(hidden.t().reshape(1, 8, 3)).sum()
    assert seen == {"(3, 8) False": False, "(8, 8) True": True, "(1, 8, 3) False": False, "(8, 8, 1) True": True}
    assert not _is_weight_copy(lstm.weight_ih_l0)
    assert _is_weight_copy(linear.weight.chunk(2)[0].to(torch.bfloat16).t())
    assert not _is_weight_copy(linear.weight.to(torch.float16) * 2)


# --- the arms of a job


def test_on_a_cpu_nothing_is_measured_and_the_reason_says_so(target: str) -> None:
    found = memory.memory_of_arms(load_job(target), {"fp32": FP32_IEEE}, 0, CPU, 60)
    use = found["fp32"]
    assert use == MemoryUse.absent("fp32", "FP32", "needs a CUDA GPU; this run was on the CPU")
    assert use.peak_allocated_bytes is use.split is use.driver_bytes is None
    assert use.reason == use.split_reason == use.driver_reason


def test_a_job_that_no_other_process_can_load_says_so() -> None:
    job = Job("j", "here", torch.nn.Identity, list, lambda m, b: iter(()), lambda m: {})  # type: ignore[arg-type, return-value]
    assert (
        cannot_start_again(job, CUDA) == "the job was not loaded from a file or module, so no other process can load it"
    )


ARMS = {name: Precision(name.upper()) for name in ("fp32", "fp16", "bf16", "tf32")}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fake card: free bytes, and what each child answers."""
    state: dict[str, Any] = {"free": 80 * 2**30, "groups": [], "answers": {}}
    monkeypatch.setattr(memory.CudaAllocator, "__init__", lambda self, device: None)
    monkeypatch.setattr(memory.CudaAllocator, "card", lambda self: (state["free"], 80 * 2**30))

    def run(requests: list[dict[str, Any]], seconds: float, task: str, stopped: Any) -> list[Reply]:
        names = [request["precision"]["name"].lower() for request in requests]
        state["groups"].append(names)
        good = {"precision": "P", "peak_allocated_bytes": 9 * 2**30, "peak_reserved_bytes": 10 * 2**30}
        return [state["answers"].get(name, Reply(good)) for name in names]

    monkeypatch.setattr(memory, "run_side_by_side", run)
    return state


def test_the_first_arm_runs_alone_and_the_others_as_many_as_fit(target: str, card: dict[str, Any]) -> None:
    found = memory.memory_of_arms(load_job(target), ARMS, 0, CUDA, 600)
    assert card["groups"] == [["fp32"], ["fp16", "bf16", "tf32"]]
    assert list(found) == list(ARMS)
    assert {use.peak_allocated_bytes for use in found.values()} == {9 * 2**30}


def test_on_a_busy_card_the_arms_run_one_after_the_other(target: str, card: dict[str, Any]) -> None:
    card["free"] = 12 * 2**30
    memory.memory_of_arms(load_job(target), ARMS, 0, CUDA, 600)
    assert card["groups"] == [[name] for name in ARMS]


def test_an_arm_whose_process_dies_has_a_reason_and_the_others_their_figures(target: str, card: dict[str, Any]) -> None:
    card["answers"] = {"fp32": Reply(None, "it was killed by SIGKILL"), "bf16": Reply(None, "out of memory", "oom")}
    found = memory.memory_of_arms(load_job(target), ARMS, 0, CUDA, 600)
    assert found["fp32"].reason == found["fp32"].split_reason == "it was killed by SIGKILL"
    assert found["bf16"].reason == "out of memory"
    assert found["fp16"].peak_allocated_bytes == 9 * 2**30
    assert card["groups"] == [["fp32"], ["fp16"], ["bf16", "tf32"]]


def test_without_time_left_no_process_is_started(target: str, card: dict[str, Any]) -> None:
    found = memory.memory_of_arms(load_job(target), ARMS, 0, CUDA, 5)
    assert card["groups"] == []
    assert {use.reason for use in found.values()} == {"an arm takes at least 20 s, the time budget had 5 s left for it"}


def test_a_child_measures_the_largest_of_the_jobs_batches_or_the_size_asked_for(target: str) -> None:
    assert len(again(target).start.batches) == 1
    assert again(target).start.batches[0][0].shape == (16, 64)
    assert again(target, samples=3).start.batches[0][1].shape == (3, 8)


def test_a_request_survives_json(target: str) -> None:
    precision = Precision("BF16", autocast=torch.bfloat16, keep_fp32=("head",), tf32=True)
    request = request_for(load_job(target), precision, 5, CUDA, 12)
    assert open_again(json.loads(json.dumps(request | {"device": "cpu"}))).precision == precision


def test_a_request_for_a_target_that_is_gone_says_so() -> None:
    with pytest.raises(UsageError):
        open_again({"target": "gone.py", "start_from": None, "seed": 0, "device": "cpu", "samples": None})


# --- why not half


def used(arm: str, **parts: Any) -> MemoryUse:
    return MemoryUse(arm, arm.upper(), split=MemorySplit(**parts))


def test_the_excess_over_half_adds_up_to_the_gap() -> None:
    fp32 = used(
        "fp32", weights_bytes=101, gradients_bytes=100, optimizer_state_bytes=200, activations_bytes={"float32": 400},
        other_bytes={"backward": 200}, rounding_bytes=7,
    )  # fmt: skip
    fp16 = used(
        "fp16", weights_bytes=101, gradients_bytes=100, optimizer_state_bytes=200, autocast_copies_bytes=50,
        activations_bytes={"float16": 150, "float32": 100}, other_bytes={"backward": 90, "forward": 3},
    )  # fmt: skip
    found = why_not_half(fp32, fp16)
    assert found is not None
    assert found.ratio == 794 / 1008
    assert found.foretold == (1008 - 300) / 1008
    assert found.excess_bytes == {
        "weights": 50.5, "gradients": 50, "optimizer state": 100, "autocast copies of weights": 50,
        "activations": 50, "other": -7, "allocator's rounding": -3.5,
    }  # fmt: skip
    assert sum(found.excess_bytes.values()) == 794 - 1008 / 2


def test_what_an_optimizer_step_takes_does_not_shrink_with_activations() -> None:
    fp32 = used("fp32", weights_bytes=50, other_bytes={"optimizer step": 50})
    assert why_not_half(fp32, fp32).foretold == 1  # type: ignore[union-attr]


def test_without_both_splits_there_is_no_reason_to_give() -> None:
    assert why_not_half(used("fp32"), MemoryUse.absent("fp16", "FP16", "no")) is None


def test_the_split_names_its_parts_and_leaves_out_empty_ones() -> None:
    split = MemorySplit(weights_bytes=1, activations_bytes={"float16": 2}, other_bytes={"backward": 3, "forward": 0})
    assert split.parts == {"weights": 1, "activations, float16": 2, "other, from backward": 3}
    assert MemorySplit(**json.loads(json.dumps(asdict(split)))) == split


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
    ],
)
def test_a_lack_of_memory_is_known_by_its_type_or_its_words(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
