"""Saved records with no field at its default, that of a capture and of its advice."""

from __future__ import annotations

import math

from mpdiag.blocks import BlockCounts
from mpdiag.diagnosis import (
    TensorKind,
    TensorTable,
)
from mpdiag.foretold import TensorForecast
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Event, Layer, LoopEvent, LoopFacts, OptimizerGroup
from mpdiag.operations import OpRole, OpTable
from mpdiag.other_formats import FormatForecast

TABLE = TensorTable(
    name="fc.weight",
    module_type="Linear",
    kind=TensorKind.WEIGHT_UPDATE,
    dtype="float32",
    elements=12,
    steps=3,
    histogram=ExponentHistogram(-30, (1, 0, 35), zeros=2, infs=1, nans=4),
    abs_max=2.0**-28,
    abs_min=1.17e-9,
    abs_max_by_step=(1.0, 2.0, 0.1),
    amp_dtype="float32",
    stagnant={"FP16": 0.25, "BF16": 1.0},
    noise_floor_log2=-40,
    noise_level=True,
    source="model.py:12",
    sampled=0.5,
    blocks=BlockCounts((3, 0, 1), (2, 2), 1, 1, 2, "the channels of each pixel"),
    blocks_reason=None,
)

FORMAT = FormatForecast(
    "E4M3", "forward", "per tensor", 9, 4, 0.25, 0.1, 0.2, 3, "fc1 (weight)", 0.5, "fits", {"fc1 (weight)": 0.5},
    31.5, 2, "the last dimension", 100,
)  # fmt: skip

FORECAST = TensorForecast("fc1", "activation_gradient", 5, 16, 12, 0.25, 0.5, 0.75, 0.125, 0.0625, True, 1e-9)

OPERATION = OpTable(
    op="masked_fill",
    module="blocks.0",
    direction="forward",
    role=OpRole.CONSTANT,
    dtype="float32",
    elements=2,
    calls=2,
    histogram=ExponentHistogram(29, (2,)),
    abs_max=1e9,
    abs_min=1e9,
    amp_dtype="float16",
    amp_result="nan",
    amp_error="cannot be converted",
    module_output=True,
    masked=True,
    source="model.py:12",
    sampled=True,
    rows_read=2,
    rows=9,
    argument="value",
    value=-1e9,
    amp_value=-1e9,
    in_fp16=-math.inf,
)

LOOP = LoopFacts(
    trainable={"float16": 7},
    groups=(
        OptimizerGroup(
            "loss", "AdamW", "float16", 7, "fc.weight", 1e-3, 1e-8, (0.9, 0.999), "bfloat16", 0.01, True, True,
            {"exp_avg": "float16"}, True,
        ),
    ),
    layers=(Layer("fc", "Linear", 4, 2, 4),),
    half_norms=("bn",),
    events=(Event(LoopEvent.AVERAGE, "ema", "model.py:3", "float16", 1e-4),),
    events_reason="the model is compiled",
    losses=("loss",),
    loss_reduction="mean",
    target_abs_max=7e4,
)  # fmt: skip
