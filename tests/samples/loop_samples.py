"""Facts of training loops made by hand, and what a check finds in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from capture_samples import capture
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Finding
from mpdiag.loop import Event, LoopEvent, LoopFacts, OptimizerGroup

CPU = torch.device("cpu")
ADAMW = OptimizerGroup(
    "loss", "AdamW", "float16", 100, "fc.weight", lr=1e-3, eps=1e-8, betas=(0.9, 0.999), weight_decay=0.01,
    decoupled=True, state={"exp_avg": "float16", "exp_avg_sq": "float16"},
)  # fmt: skip
LINE = "model.py:7"


def found(code: str, facts: LoopFacts, *tables: Any, **more: Any) -> list[Finding]:
    seen = replace(capture(*tables, **more), loop=facts)
    return list(BY_CODE[code].find(seen, recommend(seen)))


def groups(**changes: Any) -> LoopFacts:
    return LoopFacts({"float16": 100}, (replace(ADAMW, **changes),))


def event(what: LoopEvent, name: str, **more: Any) -> LoopFacts:
    return LoopFacts({"float32": 100}, events=(Event(what, name, LINE, **more),))


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]
