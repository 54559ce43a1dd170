"""The probe on a GPU: the same counts as on a CPU, no synchronization inside a step, not one bit changed."""

from pathlib import Path

import pytest
import torch

from mpdiag.capture import portable
from mpdiag.capture.columns import CODES
from mpdiag.capture.counting import CountTable
from mpdiag.capture.kernel import Update
from mpdiag.capture.portable import count_codes, magnitude_bits
from mpdiag.capture.probe import Probe
from mpdiag.capture.selftest import run_selftest
from mpdiag.target import load_job
from mpdiag.training.precision import FP32_IEEE
from mpdiag.training.session import open_session

pytestmark = pytest.mark.gpu

TARGETS = sorted((Path(__file__).resolve().parents[1] / "targets").glob("*.py"))


def _bits(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int64, generator=generator).to(torch.int32)


def test_any_bit_pattern_is_counted_as_on_the_cpu(gpu):
    bits = _bits(3_000_001) & 0x7FFFFFFF
    assert torch.equal(count_codes(bits.to(gpu)).cpu(), portable.count(bits.view(torch.float32))[0])


def test_counts_are_the_same_under_deterministic_algorithms(gpu):
    bits = (_bits(100_001) & 0x7FFFFFFF).to(gpu)
    plain = count_codes(bits)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(count_codes(bits), plain)
    finally:
        torch.use_deterministic_algorithms(False)


def _both(gpu, entries):
    """The rows counted by the kernel and by the portable path on the CPU."""
    fast, slow = CountTable(gpu, rows=len(entries)), CountTable(torch.device("cpu"), rows=len(entries))
    assert fast.counted_by == "CUDA kernel"
    for row, values in enumerate(entries):
        fast.add_later(row, values.to(gpu))
        slow.add(row, values)
    return fast.take(), slow.take()


KINDS_OF_VALUES = {
    "any bits": lambda n: (_bits(n)).view(torch.float32),
    "normal": lambda n: torch.randn(n),
    "wide": lambda n: torch.randn(n) * 2.0 ** torch.randint(-149, 127, (n,)).double().clamp(-140, 120).float(),
    "relu": lambda n: torch.randn(n).relu(),
    "zeros": lambda n: torch.zeros(n),
    "subnormal": lambda n: torch.randint(1, 2**23, (n,), dtype=torch.int32).view(torch.float32),
    "inf and nan": lambda n: torch.tensor([float("inf"), float("nan"), -1.0, 0.0]).repeat(n // 4 + 1)[:n],
    "one value": lambda n: torch.full((n,), 0.37),
}


@pytest.mark.parametrize("kind", KINDS_OF_VALUES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_kernel_counts_what_the_portable_path_counts(kind, dtype, gpu):
    lengths = (0, 1, 3, 4, 7, 255, 256, 1000, 2047, 2048, 2049, 63_489, 200_003, 3_000_001)
    entries = [KINDS_OF_VALUES[kind](n).to(dtype) for n in lengths]
    fast, slow = _both(gpu, entries)
    assert fast == slow


def test_hundreds_of_tensors_share_launches(gpu):
    entries = [torch.randn(n % 977 + 1) for n in range(300)]
    fast, slow = _both(gpu, entries)
    assert fast == slow


def test_a_tensor_that_begins_off_a_16_byte_boundary_is_counted_too(gpu):
    values = torch.randn(10_001)
    table = CountTable(gpu)
    table.add(0, values.to(gpu)[1:])
    slow = CountTable(torch.device("cpu"))
    slow.add(0, values[1:])
    assert table.take() == slow.take()


@pytest.mark.slow
def test_more_than_two_to_the_31_elements_are_counted(gpu):
    values = torch.ones(2**31 + 5, dtype=torch.float16, device=gpu)
    table = CountTable(gpu)
    table.add(0, values)
    assert table.take()[0].histogram.bins == {0: 2**31 + 5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sixteen_bit_tensors_are_counted_as_on_the_cpu(dtype, gpu):
    values = torch.randn(100_003).mul(torch.logspace(-9, 4, 100_003)).to(dtype)
    assert torch.equal(count_codes(magnitude_bits(values.to(gpu))).cpu(), portable.count(values)[0])


def test_counting_does_not_synchronize(gpu):
    table = CountTable(gpu)
    portable = CountTable(gpu, portable=True)
    values = torch.randn(4096, device=gpu)
    portable.add(0, values)  # the first call of some operators synchronizes
    after = values * 1.001
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in range(3):
            table.add(row, values)
            portable.add(row, values)
        table.add_updates([Update(3, values, after, None)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    rows = table.take()
    assert [rows[i].histogram.total for i in range(4)] == [4096] * 4
    assert CODES == 280


def test_a_captured_step_does_not_synchronize(gpu):
    job = load_job(str(TARGETS[[t.stem for t in TARGETS].index("encoder")]))
    start = job.start(0, 2)
    with open_session(job, start, FP32_IEEE, gpu) as run:
        probe = Probe(run.model, run.optimizers.values(), gpu)
        batches = [run.place(start.batch(i)) for i in range(2)]
        run.step(batches[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.step(batches[1])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        probe.step_done()
        assert len(probe.tables()) > 50
        probe.remove()


@pytest.mark.parametrize("target", TARGETS, ids=lambda path: path.stem)
def test_training_is_bit_identical_with_the_probe(target, gpu):
    job = load_job(str(target))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        result = run_selftest(job, job.start(0, 2), gpu, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    # a kind of model whose own kernels are not deterministic can only be told so, with both differences
    if result.unchanged is None:
        assert result.control > 0
        pytest.skip(f"{target.stem} differs from itself by {result.control:.2g}: no bit can be compared")
    assert result.unchanged is True


STRIDED = {
    "transposed": lambda: torch.randn(70, 33, 9).transpose(0, 2),
    "sliced": lambda: torch.randn(300, 77)[:, 5:60],
    "every other": lambda: torch.randn(20_001)[::2],
    "expanded": lambda: torch.randn(513).expand(40, 513),
    "one value expanded": lambda: torch.tensor(0.375).expand(1000, 3),
    "expanded slice": lambda: torch.randn(60, 1, 50)[:, :, :7].expand(60, 11, 7),
    "overlapping": lambda: torch.randn(5000).unfold(0, 100, 7),
    "six dimensions": lambda: torch.randn(4, 5, 4, 5, 4, 5)[:, ::2, :, ::2, :, ::2],
    "channels last": lambda: torch.randn(3, 8, 9, 10).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", STRIDED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_strides_are_counted_without_a_copy(kind, dtype, gpu):
    tensor = STRIDED[kind]()
    base = tensor.as_strided((tensor.untyped_storage().nbytes() // 4,), (1,), 0).to(gpu, dtype)
    there = base.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    table, slow = CountTable(gpu), CountTable(torch.device("cpu"))
    table.add(0, there)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    table.add(1, there)
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    slow.add(0, tensor.to(dtype))
    slow.add(1, tensor.to(dtype))
    assert table.take() == slow.take()


@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_alignment_is_counted_to_the_last_element(offset, dtype, gpu):
    values = torch.randn(9000).to(dtype)
    table, slow = CountTable(gpu), CountTable(torch.device("cpu"))
    there = values.to(gpu)
    for row, count in enumerate((0, 1, 2, 5, 8, 9, 64, 1021, 4099, 8191)):
        table.add_later(row, there[offset : offset + count])
        slow.add(row, values[offset : offset + count])
    assert table.take() == slow.take()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("log2_ratio", [-2, -9, -12, -20])
def test_updates_and_their_stagnation_are_counted_as_on_the_cpu(dtype, log2_ratio, gpu):
    generator = torch.Generator().manual_seed(-log2_ratio)
    updates = []
    for row, count in enumerate((1, 31, 1000, 70_001)):
        before = (torch.randn(count, generator=generator) * 8).to(dtype)
        before[::50] = 2.0**-26
        after = (before + torch.randn(count, generator=generator) * 2.0**log2_ratio).to(dtype)
        after[::7] = before[::7]
        if dtype == torch.float32 and count > 100:
            before[3], after[5], before[9], after[9] = float("inf"), float("nan"), 1e38, -3e38
            before[11], after[11] = 65519.9, 65520.1
        gradient = torch.randn(count, generator=generator).relu().to(dtype)
        updates.append(Update(row, before, after, gradient))
    fast, slow = CountTable(gpu), CountTable(torch.device("cpu"))
    slow.add_updates(updates)
    there = [Update(u.row, u.before.to(gpu), u.after.to(gpu), u.gradient.to(gpu)) for u in updates]
    fast.add_updates(there)
    assert fast.take() == slow.take()


def test_a_step_with_the_probe_asks_the_allocator_for_nothing_more(gpu):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).to(gpu)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    batch = torch.randn(32, 64, device=gpu)

    def steps(probe):
        for index in range(6):
            if index == 3:
                before = torch.cuda.memory_stats()["allocation.all.allocated"]
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            if probe is not None:
                probe.step_done()
        return torch.cuda.memory_stats()["allocation.all.allocated"] - before

    plain = steps(None)
    probe = Probe(model, [optimizer], gpu)
    assert steps(probe) == plain
    assert {table.steps for table in probe.tables()} == {6}


def test_handing_over_a_step_does_not_synchronize(gpu):
    model = torch.nn.Linear(64, 64).to(gpu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, [optimizer], gpu)
    batch = torch.randn(32, 64, device=gpu)
    for index in range(4):
        if index == 2:
            torch.cuda.set_sync_debug_mode("error")
        try:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
            probe.step_done()
        finally:
            if index == 3:
                torch.cuda.set_sync_debug_mode("default")
    assert {table.steps for table in probe.tables()} == {4}


def test_a_gradient_is_counted_before_it_is_clipped(gpu):
    model = torch.nn.Linear(1, 1, bias=False).to(gpu)
    probe = Probe(model, [torch.optim.SGD(model.parameters(), lr=0.0)], gpu)
    model(torch.full((1, 1), 64.0, device=gpu)).sum().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    probe.step_done()
    found = {table.kind.value: table for table in probe.tables()}
    assert found["weight_gradient"].histogram.bins == {6: 1}
