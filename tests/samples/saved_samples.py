"""A saved diagnosis with every record in it and no field at its default, and its JSON edited."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from typing import Any

from cost_samples import full_costs, with_reasons
from mpdiag.accuracy import ControlOutcome, CurveBand, GradientCheck, GradientError, PairedTest
from mpdiag.diagnosis import (
    Advice,
    Asked,
    Capture,
    Comparison,
    Diagnosis,
    EnergyLost,
    Environment,
    Finding,
    LossScaleAdvice,
    ScalePoint,
    SelfTest,
    TargetRecord,
    Trial,
    Verification,
)
from mpdiag.drift import WindowAt
from mpdiag.finding import Certainty
from mpdiag.foretold import FirstOverflow, Prediction
from mpdiag.other_formats import FormatChoice, FormatOption
from mpdiag.plan import IslandPlan
from mpdiag.saved import to_json
from saved_parts import FORECAST, FORMAT, LOOP, OPERATION, TABLE


def full() -> Diagnosis:
    """A diagnosis with every record in it and no field at its default."""
    return Diagnosis(
        created="2026-11-22T00:00:00+00:00",
        command="mpdiag scan model.py",
        environment=Environment(
            python="3.11.7",
            torch="2.13.0",
            mpdiag="0.1.0",
            platform="Linux",
            cpu_threads=2,
            cuda="13.0",
            driver="580.1",
            gpu="H100",
            compute_capability="9.0",
            fp32_precision={"cuda.matmul": "none", "cudnn.conv": "tf32"},
            cudnn_benchmark=True,
            matmul_flags={"allow_fp16_accumulation": True},
            overrides={"NVIDIA_TF32_OVERRIDE": "0"},
        ),
        target=TargetRecord(
            name="model",
            source="model.py",
            parameters=1234,
            synthetic_data=False,
            optimizer="AdamW",
            batches=8,
            samples_per_step=32,
            metric="accuracy",
            higher_is_better=True,
            notes=("a note", 'with "quotes" and ünïcode'),
            start_from="late.pt",
            structure="1f",
            source_hash="2e",
            lower_is_better=("perplexity",),
            batch_hash="3d",
            batch_ms=1.5,
        ),
        capture=Capture(
            precision="FP32 (IEEE)",
            device="cpu",
            steps=3,
            seed=7,
            unchanged=None,
            selftest=SelfTest(None, 2, difference=0.5, control=math.inf, reason="not deterministic"),
            tables=(TABLE, dataclasses.replace(TABLE, name="x", stagnant=None, abs_max=None, source=None)),
            losses=(1.5, 0.75, 0.1),
            loss_amp_dtype="float32",
            amp_error="refused",
            amp_nonfinite=("fc",),
            amp_vanished=("norm",),
            amp_fed_nonfinite=("head",),
            amp_loss_finite=False,
            input_abs_max=3.5,
            not_seen=("unused",),
            counted_by="CUDA kernel",
            reason="stopped",
            operations=(OPERATION,),
            operations_reason="types after masked_fill are not known",
            loop=LOOP,
            first_step=20,
            last_step=24,
        ),
        advice=Advice(
            format="FP16",
            loss_scale=LossScaleAdvice(
                log2_scale=16,
                mode="dynamic",
                lower_log2=4,
                upper_log2=20,
                limited_by={"lower": ("a", "b"), "upper": ()},
                underflow_before=0.3,
                underflow_after=0.001,
                energy_lost_before=1e-6,
                energy_lost_after=0.0,
                snippet="GradScaler()",
                reason="because",
                growth_interval=2000,
                backoff_factor=0.5,
                curve=(ScalePoint(0, 0.3, 1e-6, 0.0), ScalePoint(16, 0.001, 0.0, 0.0)),
                most_lost_before=EnergyLost("a (weight_gradient)", 0.2, 0),
                most_lost_after=EnergyLost("b (weight_gradient)", 1e-9, 100),
            ),
            findings=(
                Finding(
                    code="MP101",
                    name="some-finding",
                    severity="warning",
                    subject="fc",
                    message="m",
                    evidence={"limit": 65504.0, "steps": 3, "where": "fc", "unknown": None, "cured": True},
                    remedy="r",
                    snippet="s",
                    source="model.py:3",
                    certainty=Certainty.FORETOLD,
                ),
            ),
            keep_fp32=("head",),
            other_formats=(FORMAT,),
            format_choice=FormatChoice("BF16", True, "trained here", (FormatOption("FP8", False, "needs 8.9"),)),
            drift=(WindowAt(100, 119, 20, 4, 15, 15, 0.01, 1e-6),),
            plan=IslandPlan(
                ("head",),
                True,
                True,
                14,
                "dynamic",
                2000,
                3,
                0.5,
                True,
                ("body",),
                "why",
                1.05,
                "fp16",
                "not timed",
                "apply()",
                0.5,
                (1.04, 1.06),
                0.25,
                "not by module",
                ("Linear 4->2",),
            ),
        ),
        verification=Verification(
            trials=(
                Trial(
                    arm="FP16",
                    precision="FP16",
                    emulated=True,
                    seed=1,
                    steps=2,
                    losses=(1.0, 0.5),
                    metric={"accuracy": 0.9},
                    skipped_steps=1,
                    loss_scales_log2=(16.0, 15.0),
                    final_log2_scale=15.0,
                    peak_memory_bytes=2**33,
                    step_time_ms=1.25,
                    step_time_iqr_ms=(1.0, 1.5),
                    timed_steps=50,
                    tensor_core={"hmma": 0.5},
                    energy_joules_per_sample=0.01,
                    error="none",
                    not_measured={"peak_memory_bytes": "no GPU"},
                    overflow=FirstOverflow(3, "fc", 70000.0, "told"),
                ),
            ),
            comparisons=(
                Comparison(
                    quantity="loss",
                    unit="",
                    baseline="FP32",
                    candidate="FP16",
                    baseline_value=1.0,
                    candidate_value=1.01,
                    difference=0.01,
                    interval=(-0.01, 0.03),
                    margin=0.05,
                    seeds=3,
                    verdict="equivalent",
                    reason="r",
                    is_ratio=True,
                    test=PairedTest("half the spread", False, 0.03, 0.02, 0.1, 9, 0.06, 0.003, True),
                ),
            ),
            verdict="go",
            reason="all equal",
            prediction=Prediction((FORECAST,), True, 0.01, 0.5, 0.02, 0.6, 1, 2, ("fc1 (activation)",), "no memory"),
            prediction_reason="the second state is missing",
            train_with="bf16",
            gradients=GradientCheck(
                2, (GradientError("FP16", "FP16", 0.1, 0.2, 0.9, 0.3, "fc1.weight", 0.4, "in part"),), "halves", 1e-7
            ),
            curves=(CurveBand("FP16", 5, (1, 2), (0.0, 0.5), (-0.5, 0.25), (0.5, 0.75), 0.9375, 1, 2, "ends early"),),
            controls=(ControlOutcome("fp16-pure", True, "loss +1", True),),
            cut=("BF16",),
            costs=with_reasons(full_costs()),
            strays="FP32 trained again ends 0.5 away",
        ),
        reason="partial",
        elapsed_seconds={"capture": 1.5},
        captured_on=Environment("3.12", "2.11.0", "0.1.0", "Linux", 8),
        asked=Asked(100, 3),
        hint="mend it",
        verified="2026-11-22T01:00:00+00:00",
    )


def refuse(constant: str) -> Any:
    raise AssertionError(f"not strict JSON: {constant}")


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


def bare(**changes: Any) -> Diagnosis:
    environment = Environment(python="3", torch="2", mpdiag="0", platform="p", cpu_threads=1)
    return Diagnosis(created="c", command="m", environment=environment, target=None, **changes)


def with_losses(*losses: float) -> Diagnosis:
    capture = dataclasses.replace(full().capture, losses=losses)
    return dataclasses.replace(full(), capture=capture)


def edited(**keys: Any) -> str:
    return json.dumps({**json.loads(to_json(full())), **keys})


def records_in(value: Any) -> Iterator[Any]:
    """Every record inside a value, itself included."""
    if dataclasses.is_dataclass(value):
        yield value
        for item in dataclasses.fields(value):
            yield from records_in(getattr(value, item.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from records_in(item)


def changed(*path: str | int, to: Any) -> str:
    """The full diagnosis as JSON with the value at `path` replaced."""
    raw = json.loads(to_json(full()))
    holder = raw
    for key in path[:-1]:
        holder = holder[key]
    assert path[-1] in holder if isinstance(holder, dict) else path[-1] < len(holder)
    holder[path[-1]] = to
    return json.dumps(raw)
