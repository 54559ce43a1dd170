"""Target files in text, and what the tests of the Python interface ask of a scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpdiag
from mpdiag import Diagnosis, ScanOptions
from mpdiag.errors import MpdiagError

TARGETS = Path(__file__).parents[1] / "targets"
SMALL = ScanOptions(device="cpu", steps=3, verify_steps=5, seeds=1)
CAPTURE_ONLY = dataclasses.replace(SMALL, verify=False)

JOB = """
import random

import numpy as np
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

def train_batches():
    while True:
        yield torch.randn(8, 3) + random.random() + np.random.rand()

def compute_loss(model, batch):
    return model(batch).pow(2).mean()
"""
METRIC = "def evaluate(model):\n    return {'error': 0.25, 'score': 3}\nHIGHER_IS_BETTER = False\n"
FAILING = JOB.replace(
    "    return model(batch)", "    CALLS[0] += 1\n    if CALLS[0] == AT:\n        WHAT\n    return model(batch)"
)
# the calls of the loss: 1 to 6 are the self-test's, 7 is the FP16 iteration's, then the capture's three

KINDS = {"activation", "activation_gradient", "weight", "weight_gradient", "weight_update"}
KEYS = {
    "": "schema_version created command environment target capture advice verification reason elapsed_seconds",
    "environment": "python torch cuda driver gpu compute_capability mpdiag",
    "target": "name source parameters synthetic_data",
    "capture": "precision steps seed unchanged tables reason",
    "capture.tables.*": "name module_type kind dtype amp_dtype elements steps abs_max source histogram",
    "capture.tables.*.histogram": "lowest counts zeros infs nans",
    "advice": "loss_scale findings keep_fp32",
    "advice.loss_scale": "log2_scale mode lower_log2 upper_log2 limited_by underflow_before underflow_after snippet",
    "advice.findings.*": "code name severity subject message evidence remedy snippet",
    "verification": "verdict reason trials comparisons prediction",
    "verification.trials.*": "arm precision emulated seed losses metric skipped_steps final_log2_scale "
    "peak_memory_bytes step_time_ms tensor_core energy_joules_per_sample",
    "verification.comparisons.*": "quantity unit baseline candidate interval verdict",
}

Write = Callable[..., str]


def failing(at: int, what: str) -> str:
    return FAILING.replace("AT:", f"{at}:").replace("WHAT", what).replace("def build", "CALLS = [0]\n\ndef build", 1)


def at(record: Any, path: str) -> list[Any]:
    """The records at a dotted path; `*` stands for every item of a list."""
    found = [record]
    for step in path.split(".") if path else []:
        found = [inner for outer in found for inner in (outer if step == "*" else [outer[step]])]
    return found


def seen(diagnosis: Diagnosis) -> tuple[Any, Any]:
    """What a seed decides: the counts and the losses, without paths and clocks."""
    assert diagnosis.capture is not None
    return diagnosis.capture.tables, diagnosis.capture.losses


def trained(diagnosis: Diagnosis) -> dict[tuple[str, int], tuple[float, ...]]:
    assert diagnosis.verification is not None
    return {(t.arm, t.seed): t.losses for t in diagnosis.verification.trials}


def outcome(path: str, options: ScanOptions) -> tuple[Diagnosis | None, str]:
    """The diagnosis, whole or partial, and what the error said, if there was one; only MpdiagError may be raised."""
    try:
        return mpdiag.scan(path, options), ""
    except MpdiagError as error:
        return error.diagnosis, f"{error.slug}: {error.message} {error.hint}"
