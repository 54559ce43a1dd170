"""Counting exponents on the device, against the slow reference and against the bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpdiag.capture import portable
from mpdiag.capture.columns import ABS_MAX, ABS_MIN, BINS, CODES, INFS, LOWEST, NANS, ZEROS, Row, empty_table, unscaled
from mpdiag.capture.counting import CountTable
from mpdiag.capture.kernel import Update
from mpdiag.capture.layout import flat, layout_of, real_part
from mpdiag.capture.portable import codes, count_codes, magnitude_bits
from mpdiag.capture.tally import Tensor, tabled
from mpdiag.diagnosis import TensorKind, TensorTable
from mpdiag.histogram import ExponentHistogram

CPU = torch.device("cpu")
FP32_VALUES = st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), max_size=50)
EVERY_CLASS = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-126), 1.0, -1.5, 3.4028234663852886e38]

quick = settings(deadline=None)  # torch's first call of a kind may take longer than hypothesis allows


def row_of(*tensors: torch.Tensor) -> Row:
    """One row after adding each tensor to it."""
    table = CountTable(CPU)
    for tensor in tensors:
        values = real_part(tensor)
        assert values is not None
        table.add(0, values)
    return table.take()[0]


def add_update(table, row, before, after, gradient=None):
    table.add_updates([Update(row, before, after, gradient)])


def counted_on_cpu(bits: torch.Tensor) -> torch.Tensor:
    """The quick path's counts of FP32 bit patterns."""
    return portable.count(bits.view(torch.float32))[0]


def random_bits(count: int, seed: int) -> torch.Tensor:
    """Random FP32 bit patterns: all exponents, subnormals, infinities (rare), quiet and signalling NaNs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)


def by_numpy(values: np.ndarray) -> ExponentHistogram:
    """An independent count of millions: numpy's frexp, not bits."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide = values.astype(np.float64)
    finite = np.isfinite(wide) & (wide != 0)
    found = np.unique(np.frexp(wide[finite])[1] - 1, return_counts=True)
    bins = dict(zip(found[0].tolist(), found[1].tolist(), strict=True))
    return ExponentHistogram.from_bins(
        bins, int((wide == 0).sum()), int(np.isinf(wide).sum()), int(np.isnan(wide).sum())
    )


# the reference


@quick
@given(FP32_VALUES.filter(len))
def test_counts_are_those_of_the_slow_reference(values):
    assert row_of(torch.tensor(values)).histogram == ExponentHistogram.of(values)


@quick
@given(FP32_VALUES.filter(lambda values: any(math.isfinite(v) and v for v in values)))
def test_the_extremes_are_the_exact_finite_nonzero_magnitudes(values):
    row = row_of(torch.tensor(values))
    magnitudes = [abs(v) for v in values if math.isfinite(v) and v]
    assert (row.abs_max, row.abs_min) == (max(magnitudes), min(magnitudes))


@quick
@given(st.lists(st.floats(width=16), min_size=1, max_size=50))
def test_fp16_values_are_counted_as_they_are(values):
    row = row_of(torch.tensor(values, dtype=torch.float16))
    assert row.histogram == ExponentHistogram.of(values)


@quick
@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50))
def test_bf16_values_are_counted_as_they_are(patterns):
    tensor = torch.tensor(np.array(patterns, dtype=np.uint16).view(np.int16)).view(torch.bfloat16)
    assert row_of(tensor).histogram == ExponentHistogram.of(tensor.double().tolist())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_16_bit_pattern_is_counted_in_its_binade(dtype):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    histogram = row_of(every).histogram
    assert histogram == by_numpy(every.double().numpy())
    infinities_and_nans = {torch.float16: (2, 2 * 1023), torch.bfloat16: (2, 2 * 127)}
    assert (histogram.infs, histogram.nans) == infinities_and_nans[dtype]


def test_four_million_random_bit_patterns_are_counted_in_their_binades():
    bits = random_bits(4_000_000, seed=0)
    assert row_of(bits.view(torch.float32)).histogram == by_numpy(bits.numpy().view(np.float32))


def test_two_million_subnormals_are_counted_in_their_binades():
    bits = random_bits(2_000_000, seed=1) & 0x007FFFFF  # an exponent field of zero, all mantissas
    bits = bits >> (random_bits(2_000_000, seed=2) & 31).clamp(max=22)  # down to the last one, 2^-149
    histogram = row_of(bits.view(torch.float32)).histogram
    assert histogram == by_numpy(bits.numpy().view(np.float32))
    assert (histogram.lowest, histogram.highest) == (-149, -127)


@pytest.mark.parametrize("exponent", range(-149, 128))
def test_a_power_of_two_and_its_lower_neighbour_lie_in_neighbouring_binades(exponent):
    power = torch.tensor([2.0**exponent])
    below = torch.nextafter(power, torch.zeros(1))
    assert row_of(power).histogram.bins == {exponent: 1}
    below_bins = row_of(below).histogram.bins
    assert below_bins == ({exponent - 1: 1} if exponent > -149 else {})


def test_codes_name_each_class():
    values = torch.tensor([2.0**-149, 2.0**-127, 2.0**-126, 1.0, 3.4e38, math.inf, -math.inf, 0.0, -0.0, math.nan])
    expected = [0, 22, 23, 149, 276, INFS, INFS, ZEROS, ZEROS, NANS]
    assert codes(magnitude_bits(values)).tolist() == expected
    assert (LOWEST, BINS, CODES) == (-149, 277, 280)


@pytest.mark.parametrize("pattern", [0x7F800001, 0x7FC00000, 0x7FFFFFFF, -0x400000, -0x7FFFFF])
def test_quiet_and_signalling_nans_of_either_sign_count_as_nan(pattern):
    tensor = torch.tensor([pattern], dtype=torch.int32).view(torch.float32)
    assert torch.isnan(tensor).all()
    assert row_of(tensor).histogram == ExponentHistogram(nans=1)


# the CPU's quick path


@pytest.mark.parametrize("seed", range(3))
def test_the_quick_path_is_bit_equal_to_codes_and_bincount(seed):
    bits = random_bits(1_000_000, seed) & 0x7FFFFFFF
    assert torch.equal(counted_on_cpu(bits), torch.bincount(codes(bits), minlength=CODES))


@quick
@given(FP32_VALUES)
def test_the_quick_path_is_bit_equal_on_chosen_values(values):
    bits = magnitude_bits(torch.tensor(values, dtype=torch.float32))
    counted = counted_on_cpu(bits)
    assert counted.dtype == torch.int64
    assert torch.equal(counted, torch.bincount(codes(bits), minlength=CODES))


def test_the_portable_paths_of_a_gpu_agree_with_the_quick_path():
    bits = random_bits(500_000, seed=4) & 0x7FFFFFFF
    bits[:3] = torch.tensor([0, 0x7F800000, 0x7FC00000])
    by_histc = torch.histc(codes(bits).float(), bins=CODES, min=0, max=CODES).long()  # integers only on a GPU
    torch.use_deterministic_algorithms(True)
    try:
        by_scatter = count_codes(bits)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(counted_on_cpu(bits), by_histc)
    assert torch.equal(counted_on_cpu(bits), by_scatter)


# any tensor


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).transpose(0, 2),
        torch.arange(48.0)[::2],
        torch.arange(24.0).reshape(4, 6)[:, 1:4],
        torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.arange(3.0).expand(4, 3),
        torch.tensor(3.0).expand(7),
        torch.arange(12.0).reshape(3, 4).T[1:],
        torch.arange(10.0).unfold(0, 3, 1),
        torch.arange(6.0).flip(0),
    ],
    ids=[
        "transposed",
        "strided",
        "sliced",
        "channels_last",
        "expanded",
        "expanded-0-dim",
        "both",
        "overlapping",
        "flip",
    ],
)
def test_any_memory_order_counts_each_element_once(tensor):
    assert row_of(tensor).histogram == ExponentHistogram.of(tensor.flatten().tolist())


def test_a_dense_tensor_in_another_order_is_read_without_a_copy():
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    values = flat(tensor)
    assert values.shape == (120,)
    assert values.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize(
    ("tensor", "sizes", "strides", "times"),
    [
        (torch.ones(2, 3, 4), (24,), (1,), 1),
        (torch.ones(2, 3, 4).transpose(0, 2), (24,), (1,), 1),
        (torch.ones(()), (1,), (1,), 1),
        (torch.ones(()).expand(6, 2), (1,), (1,), 12),
        (torch.ones(3).expand(4, 3), (3,), (1,), 4),
        (torch.ones(4, 6)[:, 1:4], (4, 3), (6, 1), 1),
        (torch.ones(4, 5, 6)[:, :, ::2], (60,), (2,), 1),
        (torch.ones(4, 1, 6)[:, :, :2].expand(4, 9, 2), (4, 2), (6, 1), 9),
        (torch.ones(10).unfold(0, 3, 1), (8, 3), (1, 1), 1),
        (torch.ones(0, 3), (0,), (1,), 1),
    ],
)
def test_a_layout_has_as_few_dimensions_as_can_be(tensor, sizes, strides, times):
    layout = layout_of(tensor)
    assert (layout.sizes, layout.strides, layout.times) == (sizes, strides, times)
    assert layout.count * layout.times == tensor.numel()


def test_a_view_into_the_middle_of_a_storage_reads_its_own_elements():
    tensor = torch.arange(60.0).reshape(5, 12)[2:4].reshape(2, 3, 4).permute(1, 2, 0)
    assert sorted(flat(tensor).tolist()) == [float(v) for v in range(24, 48)]


def test_a_0_dim_tensor_is_one_element():
    row = row_of(torch.tensor(-6.0))
    assert row.histogram == ExponentHistogram(2, (1,))
    assert (row.abs_max, row.abs_min) == (6.0, 6.0)


def test_an_empty_tensor_counts_nothing():
    table = CountTable(CPU)
    table.add(0, torch.empty(0, 4))
    assert table.take() == {}


@pytest.mark.parametrize("conjugate", [False, True])
def test_a_complex_tensor_gives_both_parts(conjugate):
    tensor = torch.tensor([[1 + 2j, 0 - 4j], [complex(math.inf, math.nan), 0.5 + 0j]])
    tensor = tensor.conj() if conjugate else tensor
    histogram = row_of(tensor).histogram
    assert histogram == ExponentHistogram.of([1, 2, 0, 4, math.inf, math.nan, 0.5, 0])


def test_the_imaginary_part_of_a_conjugate_is_read():
    # .imag of a conjugate view is a real tensor with the negative bit set
    tensor = torch.tensor([1 + 2j, 3 + 8j]).conj().imag
    assert row_of(tensor).histogram.bins == {1: 1, 3: 1}


def test_a_sparse_tensor_gives_its_stored_values_coalesced():
    indices = torch.tensor([[0, 2, 0]])
    sparse = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 8.0, 1.0]), (5,), check_invariants=True)
    assert row_of(sparse).histogram == ExponentHistogram.of([2.0, 8.0])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
def test_a_compressed_sparse_tensor_gives_its_stored_values():
    sparse = torch.tensor([[0.0, 3.0], [0.5, 0.0]]).to_sparse_csr()
    assert row_of(sparse).histogram == ExponentHistogram.of([3.0, 0.5])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool, torch.uint8])
def test_other_types_have_no_values(dtype):
    assert real_part(torch.ones(3, dtype=dtype)) is None


def test_a_tensor_that_requires_grad_is_read_detached():
    values = real_part(torch.ones(3, requires_grad=True) * 2)
    assert not values.requires_grad


def test_float64_is_rounded_to_fp32_first():
    tensor = torch.tensor([1e300, 1e-300, 1.0, 1 - 2.0**-40], dtype=torch.float64)
    assert row_of(tensor).histogram == ExponentHistogram(0, (2,), zeros=1, infs=1)


def test_counting_does_not_change_the_tensor():
    bits = random_bits(1000, seed=5)
    before = bits.clone()
    row_of(bits.view(torch.float32))
    assert torch.equal(bits, before)


# updates


def direct_stagnation(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> int:
    """Element by element in Python: the weight stored in 16 bits, plus the FP32 update, stored again."""
    count = 0
    for old, new in zip(before.tolist(), after.tolist(), strict=True):
        update = torch.tensor(new) - torch.tensor(old)
        stored = torch.tensor(old).to(dtype).item()
        if update.item() != 0 and (torch.tensor(stored) + update).to(dtype).item() == stored:
            count += 1
    return count


@pytest.mark.parametrize("log2_ratio", [-6, -9, -11, -13])
def test_stagnation_is_that_of_a_direct_computation(log2_ratio):
    generator = torch.Generator().manual_seed(log2_ratio + 100)
    before = torch.randn(500, generator=generator)
    after = before + torch.randn(500, generator=generator) * 2.0**log2_ratio
    after[::7] = before[::7]
    table = CountTable(CPU)
    add_update(table, 0, before, after)
    row = table.take()[0]
    assert row.stagnant_fp16 == direct_stagnation(before, after, torch.float16)
    assert row.stagnant_bf16 == direct_stagnation(before, after, torch.bfloat16)
    assert 0 < row.stagnant_bf16 < row.histogram.finite_nonzero or log2_ratio == -13
    assert row.histogram.zeros >= len(before[::7])


@pytest.mark.parametrize(
    ("update", "fp16", "bf16"),
    [
        (2.0**-10, 0, 1),  # one FP16 ulp of 1
        (2.0**-11, 1, 1),  # a tie, to the even 1
        (-(2.0**-11), 0, 1),  # below a power of two the spacing is half
        (-(2.0**-12), 1, 1),
        (2.0**-7, 0, 0),
        (2.0**-8, 0, 1),
        (-(2.0**-8), 0, 0),
        (-(2.0**-9), 0, 1),
        (0.0, 0, 0),
    ],
)
def test_an_update_of_a_weight_of_one_is_felt_as_its_half_ulp_says(update, fp16, bf16):
    before = torch.ones(1)
    table = CountTable(CPU)
    add_update(table, 0, before, before + update)
    row = table.take()[0]
    assert (row.stagnant_fp16, row.stagnant_bf16) == (fp16, bf16)


def test_the_update_is_counted_in_its_own_binade():
    table = CountTable(CPU)
    add_update(table, 0, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.25, 2.0, 2.0]))
    row = table.take()[0]
    assert row.histogram == ExponentHistogram.from_bins({-2: 1, 0: 1}, zeros=1)
    assert (row.abs_max, row.abs_min) == (1.0, 0.25)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_updates_of_16_bit_weights_are_counted_exactly(dtype):
    before = torch.tensor([1.0, 2.0], dtype=dtype)
    after = torch.tensor([1.0, 2.5], dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, before, after)
    assert table.take()[0].histogram == ExponentHistogram.from_bins({-1: 1}, zeros=1)


@pytest.mark.parametrize("gradient", [None, torch.zeros(4), torch.ones(4)], ids=["none", "zeros", "ones"])
def test_an_update_of_fp32_weights_is_wanted_where_it_is_not_zero(gradient):
    before = torch.ones(4)
    after = before + torch.tensor([0.0, 2.0**-12, 2.0**-8, 0.5])
    table = CountTable(CPU)
    add_update(table, 0, before, after, gradient)
    row = table.take()[0]
    assert (row.wanted, row.stagnant_fp16, row.stagnant_bf16) == (3, 1, 2)


@pytest.mark.parametrize(("dtype", "own"), [(torch.float16, "stagnant_fp16"), (torch.bfloat16, "stagnant_bf16")])
def test_an_update_of_16_bit_weights_is_wanted_where_the_gradient_is_not_zero(dtype, own):
    before = torch.tensor([1.0, 1.0, 1.0, 1.0, 2.0], dtype=dtype)
    after = torch.tensor([1.0, 1.5, 1.0, 0.5, 2.0], dtype=dtype)
    gradient = torch.tensor([1.0, -1.0, 0.0, 0.0, -(2.0**-14)], dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, before, after, gradient)
    row = table.take()[0]
    # the first and the last stayed although asked to move; the fourth moved without a gradient (weight decay, momentum)
    assert row.wanted == 3
    assert {name: getattr(row, name) for name in ("stagnant_fp16", "stagnant_bf16")} == {
        "stagnant_fp16": 0,
        "stagnant_bf16": 0,
        own: 2,
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_that_all_stay_have_lost_every_wanted_update(dtype):
    weights = torch.ones(100, dtype=dtype)
    table = CountTable(CPU)
    add_update(table, 0, weights, weights.clone(), torch.full((100,), 1e-3, dtype=dtype))
    row = table.take()[0]
    assert (row.wanted, row.stagnant_fp16 + row.stagnant_bf16, row.histogram.zeros) == (100, 100, 100)


@quick
@given(st.lists(st.sampled_from([0.0, 2.0**-12, 2.0**-9, 0.25, -0.25, -(2.0**-13)]), min_size=1, max_size=50))
def test_no_more_updates_are_stagnant_than_wanted(updates):
    before = torch.ones(len(updates))
    table = CountTable(CPU)
    add_update(table, 0, before, before + torch.tensor(updates))
    row = table.take()[0]
    assert row.wanted == sum(u != 0 for u in updates)
    assert max(row.stagnant_fp16, row.stagnant_bf16) <= row.wanted


def test_wanted_updates_of_several_calls_add_up():
    table = CountTable(CPU)
    add_update(table, 0, torch.ones(2), torch.tensor([1.0, 1.5]))
    add_update(table, 0, torch.ones(3), torch.tensor([1.5, 1.5, 1.0]))
    assert table.take()[0].wanted == 3


def table_of(kind: TensorKind, dtype: str, row: Row) -> TensorTable:
    return tabled(Tensor("fc.weight", "Linear", kind, dtype), row, 2, [row.abs_max, row.abs_max], None)


@pytest.mark.parametrize(
    ("dtype", "stagnant"),
    [("float32", {"FP16": 0.25, "BF16": 0.75}), ("float16", {"FP16": 0.25}), ("bfloat16", {"BF16": 0.75})],
)
def test_the_stagnant_share_is_of_the_wanted_updates_and_16_bit_weights_have_their_own_format_only(dtype, stagnant):
    row = Row(ExponentHistogram(-1, (2,), zeros=18), 0.5, 0.5, 2, 6, 8)
    assert table_of(TensorKind.WEIGHT_UPDATE, dtype, row).stagnant == stagnant


def test_a_tensor_without_a_wanted_update_has_no_stagnant_share_and_neither_has_one_that_is_no_update():
    unwanted, row = (Row(ExponentHistogram(zeros=9), 0.0, math.inf, 0, 0, wanted) for wanted in (0, 4))
    assert table_of(TensorKind.WEIGHT_UPDATE, "float32", unwanted).stagnant is None
    assert table_of(TensorKind.WEIGHT, "float32", row).stagnant is None


def test_16_bit_weights_that_never_moved_still_have_a_stagnant_share():
    row = Row(ExponentHistogram(zeros=9), 0.0, math.inf, 9, 0, 9)
    assert table_of(TensorKind.WEIGHT_UPDATE, "float16", row).stagnant == {"FP16": 1.0}


# the table


def test_adding_twice_to_a_row_merges():
    row = row_of(torch.tensor([1.0, 0.0]), torch.tensor([4.0, math.nan, 0.25]))
    assert row.histogram == ExponentHistogram.from_bins({-2: 1, 0: 1, 2: 1}, zeros=1, nans=1)
    assert (row.abs_max, row.abs_min) == (4.0, 0.25)


def test_rows_are_kept_apart():
    table = CountTable(CPU)
    table.add(0, torch.tensor([1.0]))
    table.add(2, torch.tensor([2.0, 4.0]))
    rows = table.take()
    assert {row: rows[row].histogram.bins for row in rows} == {0: {0: 1}, 2: {1: 1, 2: 1}}


@pytest.mark.parametrize("row", [1, 2, 3, 7, 1000])
def test_the_table_grows_to_any_row_and_keeps_what_was_counted(row):
    table = CountTable(CPU, rows=1)
    table.add(0, torch.tensor([1.0, 3.0]))
    table.add(row, torch.tensor([8.0]))
    rows = table.take()
    assert rows.keys() == {0, row}
    assert rows[0] == Row(ExponentHistogram.from_bins({0: 1, 1: 1}), 3.0, 1.0, 0, 0, 0)
    assert rows[row] == Row(ExponentHistogram.from_bins({3: 1}), 8.0, 8.0, 0, 0, 0)


def test_a_grown_table_still_has_no_smallest_element_in_its_new_rows():
    table = CountTable(CPU, rows=1)
    table.add(5, torch.tensor([0.0]))
    assert table.take()[5].abs_min == math.inf


def test_take_starts_the_table_anew():
    table = CountTable(CPU)
    add_update(table, 3, torch.ones(2), torch.ones(2) + 2.0**-12)
    row = table.take()[3]
    assert (row.stagnant_fp16, row.wanted) == (2, 2)
    assert table.take() == {}
    table.add(3, torch.tensor([0.5]))
    assert table.take() == {3: Row(ExponentHistogram(-1, (1,)), 0.5, 0.5, 0, 0, 0)}


def test_a_row_without_a_finite_nonzero_element_has_no_extremes():
    row = row_of(torch.tensor([0.0, math.inf, math.nan]))
    assert (row.abs_max, row.abs_min) == (0.0, math.inf)


def test_one_of_each_class_in_one_row():
    histogram = row_of(torch.tensor(EVERY_CLASS)).histogram
    assert (histogram.zeros, histogram.infs, histogram.nans) == (2, 2, 1)
    assert histogram.bins == {-149: 1, -126: 1, 0: 2, 127: 1}


# the loss scale


@pytest.mark.parametrize("k", [-3, 0, 1, 16, 24])
def test_rows_of_scaled_gradients_are_counted_as_if_they_had_not_been_scaled(k):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(k))
    scaled = CountTable(CPU)
    scaled.add(0, values * 2.0**k)
    plain = CountTable(CPU)
    plain.add(0, values)
    assert torch.equal(unscaled(scaled.hand_over().values(), 2.0**k), plain.hand_over().values())


def test_a_scale_between_powers_of_two_divides_the_extremes_and_moves_the_binades_by_its_floor():
    table = CountTable(CPU)
    table.add(0, torch.tensor([3.0, 768.0]))
    row = unscaled(table.hand_over().values(), 3.0)
    assert row[0, ABS_MAX : ABS_MIN + 1].to(torch.int32).view(torch.float32).tolist() == [256.0, 1.0]
    assert (row[0, :BINS].nonzero().flatten() + LOWEST).tolist() == [0, 8]


def test_what_unscaling_would_push_below_fp32_is_kept_as_its_smallest():
    table = CountTable(CPU)
    table.add(0, torch.tensor([2.0**-140, 2.0**-149]))
    assert unscaled(table.hand_over().values(), 2.0**20)[0, 0] == 2


def test_a_row_in_which_nothing_was_counted_stays_empty_when_it_is_unscaled():
    assert torch.equal(unscaled(empty_table(2, CPU), 2.0**16), empty_table(2, CPU))
