"""Tensor-core operations of one training step by hardware counters, in a child process; best effort.

A child, because CUPTI shares a process with no other profiler and a fault in it must end nothing else. The child first
counts a matrix product whose operations are known: counters that get that wrong are not believed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from mpdiag.costs.tensor_cores import FP16_MATMUL, CounterEvidence
from mpdiag.device.bodies import ready_body
from mpdiag.device.cupti import Cupti, CuptiRefusedError
from mpdiag.measure.again import cannot_start_again, open_again, request_for
from mpdiag.measure.child import in_child
from mpdiag.settings import WARMUP_STEPS
from mpdiag.target import Job
from mpdiag.training.precision import Precision

SECONDS = 180.0  # for the child: torch and the user's model take half a minute to load, five counters as many steps
KNOWN_SIZE = 4096  # M = N = K: 2 * 4096^3 = 1.374e11 operations
KNOWN_WITHIN = 0.01  # of that; a tile at the edge of a matrix may compute a little more

_PATH = "sm__ops_path_tensor_src_"
# by source type, the first set whose first member the chip has; a chip names its sums by what they accumulate in
OPERATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "fp16": (("fp16",), ("fp16_bf16_tf32_dst_fp32", "fp16_dst_fp16"), ("fp16_dst_fp32", "fp16_dst_fp16")),
    "bf16": (("bf16_dst_fp32",),),
    "tf32": (("tf32_dst_fp32",),),
    "fp8": (
        ("fp8",),
        ("fp8_dst_fp32", "fp8_dst_fp16"),
        ("fp4_fp6_fp8_dst_fp32", "fp4_fp6_fp8_dst_fp16"),
    ),
}
INSTRUCTIONS = "sm__inst_executed_pipe_tensor"
CONSTANTS = "sm__inst_executed_pipe_tensor_op_hmma_type_hfma2"  # on the pipe, yet no matrix product

Counted = tuple[dict[str, float], int]


def counters_of_arm(
    arm: str, job: Job, precision: Precision, seed: int, device: torch.device, seconds: float = SECONDS,
    samples: int | None = None,
) -> CounterEvidence:  # fmt: skip
    """Count one warm step of an arm. Never raises for what the child meets: that is the reason.

    samples: the batch size, None for the job's own.
    """
    reason = cannot_start_again(job, device)
    if reason is not None:
        return CounterEvidence(arm, None, reason=reason)
    request = request_for(job, precision, seed, device, samples)
    return evidence_of(arm, in_child("mpdiag.measure.counters:count_step", request, seconds))


def evidence_of(arm: str, reply: Any) -> CounterEvidence:
    """The record of a child's reply."""
    if reply.value is None:
        return CounterEvidence(arm, None, reason=reply.reason or "the process that measures it gave no answer")
    return CounterEvidence(arm=arm, **reply.value)


def count_step(request: dict[str, Any]) -> dict[str, Any]:
    """The child's task: counters_of_arm's request; the fields of CounterEvidence but for `arm`."""
    from mpdiag.measure.steady import steady_run

    again = open_again(request, largest=False)  # as the formulas count it
    with (
        steady_run(again.job, again.start, again.precision, again.device, WARMUP_STEPS) as run,
        run.in_force_again() as step,
    ):
        return count(step, again.device)


def count_known(request: dict[str, Any]) -> dict[str, Any]:
    """A child's task: the known product alone, with every call's status. request: {"device": "cuda:0"}."""
    device = torch.device(request["device"])
    found: dict[str, Counted] = {}
    chip = error = None
    with ready_body(FP16_MATMUL, KNOWN_SIZE, device) as body:
        for _ in range(3):  # CUPTI refuses a process that has run no kernel yet (999 on an H100)
            body.step()
        cupti = Cupti()
        try:
            chip = cupti.chip(device.index or 0)
            for name, group in metrics_for(cupti.base_metrics(chip)).items():
                found[name] = cupti.count(chip, group, body.step, device)
        except CuptiRefusedError as refused:
            error = f"{refused}; {cupti.obstacles(device.index or 0)}; {refused.remedy}"
    return {"chip": chip, "found": found, "error": error, "calls": cupti.calls, "expected": 2 * KNOWN_SIZE**3}


def count(step: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Count one step on a CUDA device, counter by counter; a counter that is refused leaves the others."""
    try:
        cupti = Cupti()
    except CuptiRefusedError as error:
        return {"operations": None, "reason": str(error), "remedy": error.remedy}
    try:
        chip = cupti.chip(device.index or 0)
        groups = metrics_for(cupti.base_metrics(chip))
        _check(cupti, chip, groups, device)
    except CuptiRefusedError as error:
        obstacles = cupti.obstacles(device.index or 0)
        named = f"; not supported here: {obstacles}" if obstacles else ""
        return {"operations": None, "reason": f"{error}{named}", "remedy": error.remedy}
    metrics: dict[str, float] = {}
    operations: dict[str, float] = {}
    refused: dict[str, str] = {}
    runs = 0
    for name, group in groups.items():
        try:
            values, passes = cupti.count(chip, group, step, device)
        except CuptiRefusedError as error:
            refused[name] = str(error)
            continue
        runs += passes
        metrics |= values
        if name != INSTRUCTIONS:
            operations[name] = sum(values.values())
    instructions = None
    if f"{INSTRUCTIONS}.sum" in metrics:
        instructions = metrics[f"{INSTRUCTIONS}.sum"] - metrics.get(f"{CONSTANTS}.sum", 0.0)
    return {
        "operations": operations or None,
        "instructions": instructions,
        "metrics": metrics,
        "chip": chip,
        "passes": runs,
        "reason": "; ".join(f"{name}: {why}" for name, why in refused.items() if name != INSTRUCTIONS) or None,
        "instructions_reason": refused.get(INSTRUCTIONS, None if instructions is not None else f"not there on {chip}"),
        "remedy": None,
    }


def metrics_for(names: list[str]) -> dict[str, list[str]]:
    """{source type: its counters} for a chip with these counters, and the pipe's instructions under their name."""
    there = set(names)
    groups: dict[str, list[str]] = {}
    for dtype, choices in OPERATIONS.items():
        chosen = next((choice for choice in choices if f"{_PATH}{choice[0]}" in there), None)
        if chosen is not None:
            groups[dtype] = [f"{_PATH}{name}.sum" for name in chosen if f"{_PATH}{name}" in there]
    if INSTRUCTIONS in there:
        groups[INSTRUCTIONS] = [f"{name}.sum" for name in (INSTRUCTIONS, CONSTANTS) if name in there]
    return groups


def _check(cupti: Cupti, chip: str, groups: dict[str, list[str]], device: torch.device) -> None:
    """Count the known product. Raises CuptiRefusedError where it comes out wrong."""
    if "fp16" not in groups:
        raise CuptiRefusedError(f"{chip} has no counter of FP16 tensor-core operations")
    with ready_body(FP16_MATMUL, KNOWN_SIZE, device) as body:
        for _ in range(3):  # the first calls choose a kernel and load it
            body.step()
        values, _ = cupti.count(chip, groups["fp16"], body.step, device)
    counted, expected = sum(values.values()), 2 * KNOWN_SIZE**3
    if abs(counted - expected) > KNOWN_WITHIN * expected:
        raise CuptiRefusedError(
            f"the counters are not believed: {counted:.4g} operations for a product that takes {expected:.4g}"
        )
