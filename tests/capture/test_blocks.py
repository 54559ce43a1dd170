"""What is counted inside blocks: tiny tables worked out by hand, and how the kernel's launch is packed."""

import math

import pytest
import torch

from block_samples import counted, table_of
from mpdiag.blocks import DISTANCES, RATIOS, BlockCounts, nvfp4_losses
from mpdiag.capture.block_layout import rows_of
from mpdiag.formats import E4M3

# tiny tables


def test_distances_are_octaves_below_the_largest_of_32():
    found = counted([1.0, -0.5, 0.25, 0.3, 0.0] + [0.0] * 27 + [2.0**-20, 2.0**-21])
    assert found.distances == (2, 2, 2)
    assert found.elements == 6


def test_a_largest_above_1_75_times_its_power_of_two_has_its_scale_rounded_up():
    assert counted([1.75, 1.0]).distances == (2,)
    assert counted([math.nextafter(1.75, 2), 1.0]).distances == (2,)  # the same in FP32
    assert counted([1.7500001, 1.0]).distances == (0, 2)


def test_ratios_are_octaves_below_two_thirds_of_the_largest_of_16():
    values = [6.0, 4.0, 3.9999, 2.0, 1.0, 0.5, 0.25, 0.2499]
    assert counted(values).ratios == (2, 2, 1, 1, 1, 1)


def test_a_quarter_of_an_e2m1_unit_survives_the_count_and_anything_below_is_lost():
    assert counted([6.0, 0.25]).nvfp4_lost == 0  # the tie, which real rounding takes to zero
    assert counted([6.0, 0.2499]).nvfp4_lost == 1


def test_blocks_of_16_and_32_begin_anew_in_each_row():
    values = torch.ones(3, 40)
    values[:, 33] = 2.0**10
    found = counted(values, 40)
    assert found.distances == table_of((0, 3 * 33), (10, 3 * 7))
    assert found.ratios == table_of((0, 3 * 33), (10, 3 * 7))


def test_infinities_and_nans_neither_count_nor_set_the_scale():
    assert counted([math.inf, math.nan, 1.0, 0.5]).distances == (1, 1)
    assert counted([math.inf, 0.0]).elements == 0


def test_the_last_place_holds_all_beyond():
    found = counted([1.0] + [2.0**-100] * 3)
    assert found.distances == table_of((0, 1), (DISTANCES - 1, 3))
    assert found.ratios == table_of((0, 1), (RATIOS - 1, 3))


def test_fp32_subnormals_have_exponents_of_their_own():
    assert counted([2.0**-126, 2.0**-127, 2.0**-149]).distances == table_of((0, 1), (1, 1), (23, 1))


@pytest.mark.parametrize("abs_max", [1.0, 6.0, 3e-7])
def test_a_block_vanishes_where_its_scale_is_zero_beside_the_tensors_largest(abs_max):
    # 448 * largest / abs_max is E4M3's: at 2^-10 it becomes zero
    limit = abs_max * 2.0**-10 / 448
    binade = math.floor(math.log2(limit))
    assert nvfp4_losses({binade - 1: 10}, {}, abs_max) == (10, 10)
    assert nvfp4_losses({binade + 1: 10}, {}, abs_max) == (0, 0)
    assert nvfp4_losses({binade + 1: 10}, {binade + 1: 4}, abs_max) == (4, 0)
    lost, vanished = nvfp4_losses({binade: 1000}, {}, abs_max)
    assert lost == vanished == round(1000 * (math.log2(limit) - binade))


def test_nothing_counted_loses_nothing():
    empty = counted([0.0, 0.0])
    assert empty == BlockCounts((), (), 0, 0)
    assert (empty.mx_underflows(E4M3), empty.mx_energy_lost(E4M3), empty.nvfp4_energy_lost()) == (0, 0.0, 0.0)


# the kernel's source


def test_the_kernels_launch_is_packed_as_its_source_declares_it():
    from mpdiag.capture import block_kernel

    launched = []
    kernel = block_kernel.BlockKernel(type("Function", (), {"launch": lambda self, *a: launched.append(a)})(), 264)
    values = torch.randn(7, 40)[:, 3:]
    kernel.count(
        9, values, rows_of(values, False), torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    )
    ((grid, threads, packed, offsets),) = launched
    numbers = block_kernel._BLOCKED.unpack(packed)
    assert numbers[:3] == (values.data_ptr(), 7, 37)
    assert numbers[3:9] == (7, 37, 0, 0, 0, 0)
    assert numbers[9:15] == (40, 1, 0, 0, 0, 0)
    assert numbers[15:18] == (2, 9, 0)
    assert (grid, threads, offsets) == ((1, 1), 512, (0, 136, 144))  # sizeof(Blocked) is 136: 15 words, 3 ints, padding
