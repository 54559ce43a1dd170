"""Tables of tensors with given values, counted whole and in blocks, and what is foretold of them."""

import numpy as np
import torch

from mpdiag.advice.other_formats import what_if
from mpdiag.capture import portable_blocks
from mpdiag.capture.block_columns import block_counts_of
from mpdiag.diagnosis import Capture, SelfTest, TensorTable
from mpdiag.histogram import ExponentHistogram


def table(name, kind, values, **more):
    magnitudes = np.abs(np.asarray(values, dtype=np.float32))
    histogram = ExponentHistogram.of(magnitudes.astype(float).tolist())
    nonzero = magnitudes[magnitudes > 0]
    extremes = {"abs_max": float(nonzero.max()), "abs_min": float(nonzero.min())} if len(nonzero) else {}
    fields = {"module_type": "Linear", "dtype": "float32", "elements": len(magnitudes), "steps": 1}
    return TensorTable(
        name=name, kind=kind, histogram=histogram, **{**fields, "amp_dtype": "float16", **extremes, **more}
    )


def capture(*tables):
    return Capture("FP32", "cpu", 1, 0, True, SelfTest(True, 1), tables)


def forecasts(*tables):
    return {(f.format, f.part): f for f in what_if(capture(*tables))}


def spread(octaves, count=20_000, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal(count) * 2.0 ** generator.uniform(-octaves, 0, count)


def in_blocks(name, kind, values, **more):
    values = np.asarray(values, dtype=np.float32)
    counts = portable_blocks.count_blocks(torch.from_numpy(values.ravel()), values.shape[-1])
    return table(name, kind, values.ravel(), blocks=block_counts_of(counts), blocks_reason=None, **more)
