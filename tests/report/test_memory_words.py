"""Memory in words: below half, what stays in FP32, and multiples of next to nothing."""

from __future__ import annotations

import pytest

from mpdiag.costs.memory import MemorySplit, MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.report.html_memory import memory_context
from mpdiag.report.html_numbers import THIN, size
from mpdiag.report.memory_line import memory_words
from mpdiag.report.memory_reasons import half_words, times

MIB = 2**20


def use(arm: str, split: MemorySplit, parameters: int = 13_811_840) -> MemoryUse:
    return MemoryUse(arm, f"{arm.upper()} autocast", split.total, split=split, parameters=parameters)


def half(activations: int) -> dict[str, int]:
    return {"float16": activations * MIB}


RESNET = (  # resnet_images on an H100: cuDNN's FP32 convolutions took 938 MiB to work in
    use("fp32", MemorySplit(43 * MIB, 0, 43 * MIB, 43 * MIB, 3 * MIB, {"float32": 1136 * MIB}, 0, 938 * MIB)),
    use("fp16", MemorySplit(43 * MIB, 0, 43 * MIB, 43 * MIB, 3 * MIB, half(570), 21 * MIB, 78 * MIB)),
)


def told(*uses: MemoryUse) -> str:
    found = memory_words(Costs(memory=uses))
    assert found is not None
    return found.replace(THIN, "_")


def test_a_peak_below_half_names_the_part_that_shrank_by_far_more_than_half():
    assert told(*RESNET).endswith(
        "(x0.36); it is below half because workspace, which kernels take to work in, fell from 938_MiB to 78.0_MiB; "
        "without that it is x0.57"
    )
    (words,) = half_words(RESNET)
    assert words.halved
    assert words.below is not None


def test_a_workspace_that_is_gone_is_told_as_nothing():
    gone = use("fp16", MemorySplit(43 * MIB, 0, 43 * MIB, 43 * MIB, 3 * MIB, half(570), 21 * MIB))
    assert "fell from 938_MiB to nothing; without that it is x0.57" in told(RESNET[0], gone)


@pytest.mark.parametrize("workspace", [470, 300])
def test_a_part_that_shrank_as_a_change_of_type_does_explains_nothing(workspace):
    arm = use("fp16", MemorySplit(0, 0, 0, 0, 0, half(500), 0, workspace * MIB))
    assert "below half" not in told(RESNET[0], arm)


def test_a_peak_at_half_or_above_is_told_as_before():
    even = use("fp16", MemorySplit(43 * MIB, 0, 43 * MIB, 43 * MIB, 3 * MIB, half(900), 0, 80 * MIB))
    (words,) = half_words((RESNET[0], even))
    assert words.below is None
    assert "below half" not in told(RESNET[0], even)


def test_the_page_says_it_where_it_says_that_half_is_reached():
    from mpdiag.report.html import _environment

    source = _environment().get_template("memory.html").render(**memory_context(Costs(memory=RESNET)))
    assert "Half is reached: it is below half because workspace, which kernels take to work in" in source


# what stays


def test_gradients_of_half_a_mebibyte_are_not_among_what_stays_at_4_bytes_a_parameter():
    fp32 = use("fp32", MemorySplit(52 * MIB + 700_000, 0, MIB // 2, 0, 0, {"float32": 900 * MIB}))
    fp16 = use("fp16", MemorySplit(52 * MIB + 700_000, 0, MIB // 2, 0, 0, half(560)))
    (words,) = half_words((fp32, fp16))
    assert [each.brief.replace(THIN, " ") for each in words.reasons if "stay" in each.brief] == [
        "weights stay in FP32 (4.0 bytes a parameter)"
    ]


def test_gradients_as_large_as_the_weights_are():
    state = (53 * MIB, 0, 53 * MIB, 106 * MIB, 0)
    found = half_words(
        (use("fp32", MemorySplit(*state, {"float32": 500 * MIB})), use("fp16", MemorySplit(*state, half(250))))
    )
    (stay,) = [each.brief for each in found[0].reasons if "stay" in each.brief]
    assert stay == "weights, gradients and optimizer state stay in FP32 (16.1 bytes a parameter)"


# figures


@pytest.mark.parametrize(
    ("mine", "theirs", "shown"),
    [(150, 100, "×1.50"), (99, 1, "×99.00"), (MIB, 1526, None), (1, 0, None), (None, 1, None)],
)
def test_a_multiple_of_next_to_nothing_is_none(mine, theirs, shown):
    assert times(mine, theirs) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (MIB - 1, "1.0_MiB"), (MIB - 512, "1.0_MiB"), (1023 * 1024, "1023_KiB"), (2**30 - 1, "1.0_GiB"),
        (1023, "1023_bytes"), (1024, "1.0_KiB"), (0, "0_bytes"),
    ],
)  # fmt: skip
def test_no_size_is_1024_of_a_unit(count, shown):
    assert size(count).replace(THIN, "_") == shown
