"""The rows that blocks run along are what the product that reads a tensor sums over."""

import pytest
import torch

from block_samples import counted, table_of
from mpdiag.blocks import CHANNELS, FEATURES, FILTER, TAPS
from mpdiag.capture.block_layout import Rows, rows_of

# rows


X = torch.randn


@pytest.mark.parametrize(
    ("tensor", "weight", "rows"),
    [
        (X(()), False, Rows((1,), (1,), 1)),
        (X(50), False, Rows((50,), (1,), 50)),
        (X(6, 40), False, Rows((240,), (1,), 40)),
        (X(2, 6, 40), False, Rows((480,), (1,), 40)),
        (X(2, 3, 4, 5), False, Rows((2, 20, 3), (60, 1, 20), 3, CHANNELS)),
        (X(2, 3, 4, 5).to(memory_format=torch.channels_last), False, Rows((120,), (1,), 3, CHANNELS)),
        (X(2, 1, 4, 5), False, Rows((40,), (1,), 5)),
        (X(8, 3, 5), True, Rows((120,), (1,), 15, FILTER)),
        (X(8, 3, 4, 5).to(memory_format=torch.channels_last), True, Rows((480,), (1,), 60, FILTER)),
        (X(6, 40).T, False, Rows((40, 6), (1, 40), 6)),
        (X(6, 40)[:, 3:33], False, Rows((6, 30), (40, 1), 30)),
        (X(40).expand(6, 40), False, Rows((6, 40), (0, 1), 40)),
        (X(()).expand(6, 40), False, Rows((240,), (0,), 40)),
        (X(6, 40)[:, ::2], True, Rows((120,), (2,), 20)),
    ],
)
def test_rows_are_what_a_product_sums_over(tensor, weight, rows):
    assert rows_of(tensor, weight) == rows
    values = rows.of(tensor)
    assert values.numel() == rows.count == tensor.numel()
    if tensor.dim() < 4 and not weight:
        assert torch.equal(values, tensor.reshape(-1))


IMAGES = X(2, 6, 4, 5)
SIGNAL = X(2, 6, 9)


@pytest.mark.parametrize(
    ("tensor", "weight", "module_type", "expected", "length", "along"),
    [
        (IMAGES, False, "Conv2d", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "LayerNorm2d", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "ReLU", IMAGES.permute(0, 2, 3, 1), 6, CHANNELS),
        (IMAGES, False, "Linear", IMAGES, 5, FEATURES),  # an image of features, as ConvNeXt's
        (IMAGES, False, "MultiheadAttention", IMAGES, 5, FEATURES),
        (SIGNAL, False, "Conv1d", SIGNAL.permute(0, 2, 1), 6, CHANNELS),
        (SIGNAL, False, "BatchNorm1d", SIGNAL.permute(0, 2, 1), 6, CHANNELS),
        (SIGNAL[0], False, "Conv1d", SIGNAL[0].permute(1, 0), 6, CHANNELS),  # a batch of none
        (SIGNAL[0], False, "BatchNorm1d", SIGNAL[0], 9, FEATURES),  # a batch of features
        (SIGNAL, False, "Linear", SIGNAL, 9, FEATURES),
        (SIGNAL, False, "ReLU", SIGNAL, 9, FEATURES),
        (IMAGES[0], False, "Conv2d", IMAGES[0].permute(1, 2, 0), 6, CHANNELS),  # a batch of none
        (IMAGES, True, "Conv2d", IMAGES.permute(0, 2, 3, 1), 6 * 20, TAPS),
        (IMAGES, True, "ConvTranspose2d", IMAGES.permute(1, 2, 3, 0), 2 * 20, TAPS),
        (SIGNAL, True, "Experts", SIGNAL, 54, FILTER),
    ],
)
def test_blocks_run_along_what_the_reading_product_sums_over(tensor, weight, module_type, expected, length, along):
    rows = rows_of(tensor, weight, module_type)
    assert torch.equal(rows.of(tensor), expected.reshape(-1))
    assert (rows.length, rows.along) == (length, along)


def test_one_large_channel_takes_its_neighbours_at_each_pixel_and_no_others():
    images = torch.full((1, 4, 8, 8), 1.0)
    images[:, 0, 0, :] = 2.0**20
    rows = rows_of(images, False, "Conv2d")
    found = counted(rows.of(images), rows.length)
    assert found.distances == table_of((0, 8 + 4 * 56), (20, 3 * 8))  # in memory order 32 of its own channel would be
