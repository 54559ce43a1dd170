"""The findings of the second pass on given tables of operations, or on a function."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mpdiag.advice import advise
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Capture, Finding, SelfTest
from mpdiag.operations import OpTable
from op_samples import of


def capture(*tables: OpTable) -> Capture:
    return Capture("FP32", "cpu", 1, 0, True, SelfTest(True, 2, 0.0, 0.0), (), losses=(1.0,), operations=tables)


def found(code: str, *tables: OpTable) -> list[Finding]:
    seen = capture(*tables)
    return list(BY_CODE[code].find(seen, recommend(seen)))


def only(code: str, *tables: OpTable) -> Finding:
    findings = found(code, *tables)
    assert len(findings) == 1
    assert (findings[0].code, findings[0].name) == (code, BY_CODE[code].name)
    return findings[0]


def codes(fn: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> list[tuple[str, str]]:
    """(code, severity) of every finding on fn, given x as an activation."""
    return [(f.code, f.severity) for f in advise(capture(*of(fn, x))).findings]
