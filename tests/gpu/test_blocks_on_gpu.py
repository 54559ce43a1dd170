"""The kernel that counts inside blocks: the integers of the portable path and of the usual kernel, in one pass."""

import pytest
import torch

from mpdiag.capture.block_columns import BLOCK_WIDTH, block_counts_of
from mpdiag.capture.block_kernel import block_kernel_for
from mpdiag.capture.counting import CountTable
from mpdiag.capture.portable_blocks import count_blocks
from mpdiag.capture.probe import Probe

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.float16, torch.bfloat16]


def _bits(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31 - 1, (count,), dtype=torch.int64, generator=generator).to(torch.int32)


KINDS_OF_VALUES = {
    "any bits": lambda n: _bits(n).view(torch.float32),
    "normal": lambda n: torch.randn(n),
    "wide": lambda n: torch.randn(n) * torch.exp2(torch.randn(n) * 30),
    "relu": lambda n: torch.randn(n).relu(),
    "zeros": lambda n: torch.zeros(n),
    "subnormal": lambda n: torch.randint(1, 2**23, (n,), dtype=torch.int32).view(torch.float32),
    "fp16 subnormal": lambda n: torch.randn(n) * 1e-6,
    "inf and nan": lambda n: torch.tensor([float("inf"), float("nan"), -1.0, 0.0]).repeat(n // 4 + 1)[:n],
    "one value": lambda n: torch.full((n,), 0.37),
}
LAYOUTS = {
    "a number": lambda v: v[0],
    "one dimension": lambda v: v,
    "rows of 1": lambda v: v[:1000].view(1000, 1),
    "rows of 7": lambda v: v[: len(v) // 7 * 7].view(-1, 7),
    "rows of 40": lambda v: v[: len(v) // 40 * 40].view(-1, 40),
    "rows of 768": lambda v: v[: len(v) // 768 * 768].view(-1, 768),
    "rows of 10007": lambda v: v[: len(v) // 10007 * 10007].view(-1, 10007),
    "off a boundary": lambda v: v[3:],
    "transposed": lambda v: v[: 70 * 33 * 9].view(70, 33, 9).transpose(0, 2),
    "sliced": lambda v: v[: 300 * 77].view(300, 77)[:, 5:60],
    "every other": lambda v: v[:20_001:2],
    "expanded": lambda v: v[:513].expand(40, 513),
    "expanded inside": lambda v: v[:60].view(60, 1).expand(60, 45),
    "one value expanded": lambda v: v[0].expand(1000, 3),
    "overlapping": lambda v: v[:5000].unfold(0, 100, 7),
    "six dimensions": lambda v: v[:8000].view(4, 5, 4, 5, 4, 5)[:, ::2, :, ::2, :, ::2],
    "images": lambda v: v[: 3 * 8 * 9 * 10].view(3, 8, 9, 10),
    "channels last": lambda v: v[: 3 * 8 * 9 * 10].view(3, 9, 10, 8).permute(0, 3, 1, 2),
}


def _both(gpu, values, there, weight=False, module_type=""):
    """(row of the usual table, row of the block table) by the kernel, and by the portable path on the CPU."""
    found = []
    for device, tensor in ((gpu, there), (CPU, values)):
        table = CountTable(device, rows=4)
        table.add_with_blocks(2, tensor, weight, module_type)
        found.append((table.take(), table.hand_over_blocks().values().clone()))
    return found


def _same_place(view, base, gpu):
    """The view of a copy of its whole base on the GPU."""
    return base.to(gpu).as_strided(view.size(), view.stride(), view.storage_offset())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS_OF_VALUES)
@pytest.mark.parametrize("dtype", TYPES)
def test_the_kernel_counts_what_the_portable_path_counts(dtype, kind, layout, gpu):
    base = KINDS_OF_VALUES[kind](200_003).to(dtype)
    view = LAYOUTS[layout](base)
    for weight in (False, True):
        fast, slow = _both(gpu, view, _same_place(view, base, gpu), weight)
        assert fast[0] == slow[0]
        assert torch.equal(fast[1], slow[1])


@pytest.mark.parametrize("channels", [3, 32, 40, 64])
@pytest.mark.parametrize("module_type", ["Conv2d", "ConvTranspose2d", "Linear"])
@pytest.mark.parametrize("last", [False, True])
def test_images_and_filters_have_the_same_rows_on_both_paths(channels, module_type, last, gpu):
    values = KINDS_OF_VALUES["wide"](6 * channels * 7 * 5).view(6, channels, 7, 5)
    view = values.to(memory_format=torch.channels_last) if last else values
    for weight in (False, True):
        fast, slow = _both(gpu, view, _same_place(view, view, gpu), weight, module_type)
        assert fast[0] == slow[0]
        assert torch.equal(fast[1], slow[1])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 32, 33, 48, 63, 255, 4096, 65_537, 3_000_001])
@pytest.mark.parametrize("dtype", TYPES)
def test_any_length_is_counted_to_the_last_element(dtype, length, gpu):
    base = KINDS_OF_VALUES["wide"](length + 8).to(dtype)
    for offset in (0, 1, 5):
        view = base[offset : offset + length]
        fast, slow = _both(gpu, view, _same_place(view, base, gpu))
        assert fast[0] == slow[0]
        assert torch.equal(fast[1], slow[1])


def test_several_tensors_add_up_in_a_row(gpu):
    values = [torch.randn(1000, 40), torch.randn(7), torch.randn(64, 64) * 100]
    fast, slow = CountTable(gpu), CountTable(CPU)
    for each in values:
        fast.add_with_blocks(700, each.to(gpu), False)  # beyond the first table: it grows
        slow.add_with_blocks(700, each, False)
    assert fast.take() == slow.take()
    assert torch.equal(fast.hand_over_blocks().values(), slow.hand_over_blocks().values())


def test_the_usual_kernel_gives_the_same_ordinary_counts(gpu):
    values = KINDS_OF_VALUES["any bits"](1_000_003).to(gpu)
    with_blocks, usual = CountTable(gpu), CountTable(gpu)
    with_blocks.add_with_blocks(0, values, False)
    usual.add(0, values)
    assert with_blocks.take() == usual.take()


def test_the_portable_path_counts_the_same_on_the_gpu(gpu):
    values = KINDS_OF_VALUES["wide"](300_007)
    whole = values[: 300_007 // 301 * 301]
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            assert torch.equal(count_blocks(whole.to(gpu), 301).cpu(), count_blocks(whole, 301))
        finally:
            torch.use_deterministic_algorithms(False)


def test_double_precision_takes_the_portable_path(gpu):
    values = torch.randn(100, 40, dtype=torch.float64)
    fast, slow = _both(gpu, values, values.to(gpu))
    assert fast[0] == slow[0]
    assert torch.equal(fast[1], slow[1])


@pytest.mark.slow
def test_more_than_two_to_the_31_elements_are_counted(gpu):
    values = torch.ones(2**31 + 32, dtype=torch.float16, device=gpu)
    values[-1] = 0.25
    table = CountTable(gpu)
    table.add_with_blocks(0, values, False)
    assert block_counts_of(table.hand_over_blocks().values()[0]).distances == (2**31 + 31, 0, 1)
    assert table.take()[0].histogram.bins == {0: 2**31 + 31, -2: 1}


def test_counting_in_blocks_does_not_synchronize(gpu):
    table, portable = CountTable(gpu), CountTable(gpu, portable=True)
    values = torch.randn(4096, 40, device=gpu)
    for each in (table, portable):
        each.add_with_blocks(0, values, False)  # the first call compiles, and of some operators synchronizes
    torch.cuda.set_sync_debug_mode("error")
    try:
        for row in range(3):
            table.add_with_blocks(row, values, False)
            portable.add_with_blocks(row, values, False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert table.hand_over_blocks().values().shape == (3, BLOCK_WIDTH)


def test_the_first_step_has_blocks_and_their_memory_is_given_back(gpu):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8)).to(gpu)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, [optimizer], gpu, blocks=True)
    batch = torch.randn(32, 64, device=gpu)
    held = []
    for _ in range(3):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()
        probe.step_done()
        torch.cuda.synchronize()
        held.append(torch.cuda.memory_allocated())
    assert held[1] == held[2]
    tables = {(t.kind.value, t.name): t for t in probe.tables()}
    probe.remove()
    assert tables["activation", "0"].blocks.elements == 32 * 64
    assert tables["activation", "0"].histogram.total == 3 * 32 * 64
    assert tables["weight", "2.weight"].blocks.elements == 64 * 8


def test_the_kernel_can_be_had(gpu):
    kernel = block_kernel_for(0)
    assert kernel.resident_blocks >= 2
