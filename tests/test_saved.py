"""A diagnosis as JSON and back: what is written, what is read, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost_samples import full_costs, with_reasons
from mpdiag.accuracy import ControlOutcome, CurveBand, GradientCheck, GradientError, PairedTest
from mpdiag.blocks import BlockCounts
from mpdiag.costs.energy import EnergyUse
from mpdiag.costs.gpu import GpuSharing, GpuState
from mpdiag.costs.kernels import ArmKernels, Flops, HostWait, KernelTime, Ladder, LayerUse, Level, NamedKernel, WhyNot
from mpdiag.costs.largest_batch import BatchTrial, LargestBatch
from mpdiag.costs.memory import MemorySplit, MemoryUse
from mpdiag.costs.record import Costs
from mpdiag.costs.tensor_cores import BodyReading, Calibration, Ceilings, CounterEvidence, GpmEvidence
from mpdiag.costs.timing import ArmTime, Timing
from mpdiag.diagnosis import (
    SCHEMA_VERSION,
    SEVERITIES,
    VERDICTS,
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
    TensorKind,
    TensorTable,
    Trial,
    Verification,
)
from mpdiag.drift import WindowAt
from mpdiag.errors import UsageError
from mpdiag.finding import Certainty
from mpdiag.foretold import Prediction, TensorForecast
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Event, Layer, LoopEvent, LoopFacts, OptimizerGroup
from mpdiag.operations import OpRole, OpTable
from mpdiag.other_formats import FormatChoice, FormatForecast, FormatOption
from mpdiag.plan import IslandPlan
from mpdiag.saved import from_json, to_json

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
)  # fmt: skip


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
        ),
        reason="partial",
        elapsed_seconds={"capture": 1.5},
        captured_on=Environment("3.12", "2.11.0", "0.1.0", "Linux", 8),
        asked=Asked(100, 3),
        hint="mend it",
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


# round trip


def test_a_full_diagnosis_comes_back_equal():
    assert from_json(to_json(full())) == full()


RECORDS = (
    *(Environment, TargetRecord, Asked, SelfTest, TensorTable, Capture, ScalePoint, EnergyLost, LossScaleAdvice),
    *(
        Finding,
        Advice,
        IslandPlan,
        Trial,
        Comparison,
        Verification,
        Diagnosis,
        ExponentHistogram,
        OpTable,
        LoopFacts,
        OptimizerGroup,
        Layer,
        Event,
        Prediction,
        TensorForecast,
        WindowAt,
        FormatForecast,
        BlockCounts,
        FormatChoice,
        FormatOption,
        PairedTest,
        CurveBand,
        GradientCheck,
        GradientError,
        ControlOutcome,
    ),
    *(
        Costs,
        Timing,
        ArmTime,
        MemoryUse,
        MemorySplit,
        EnergyUse,
        GpmEvidence,
        CounterEvidence,
        Calibration,
        BodyReading,
    ),
    *(
        Ceilings,
        GpuSharing,
        GpuState,
        ArmKernels,
        KernelTime,
        HostWait,
        NamedKernel,
        LayerUse,
        WhyNot,
        Ladder,
        Level,
        Flops,
    ),
    *(BodyReading, LargestBatch, BatchTrial),
)
CONSTANT = {"schema_version"}  # fields that have one value only


def records_in(value: Any) -> Iterator[Any]:
    """Every record inside a value, itself included."""
    if dataclasses.is_dataclass(value):
        yield value
        for item in dataclasses.fields(value):
            yield from records_in(getattr(value, item.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from records_in(item)


@pytest.mark.parametrize("record", RECORDS)
def test_the_records_example_fills_every_field_of_every_record(record):
    # so the round trip above cannot pass by leaving a field at its default
    made = [r for r in records_in(full()) if type(r) is record]
    for item in dataclasses.fields(record):
        assert f'"{item.name}"' in to_json(full())
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        if default is not dataclasses.MISSING and item.name not in CONSTANT:
            assert any(getattr(r, item.name) != default for r in made), item.name


def test_the_records_example_has_every_record():
    assert {type(r) for r in records_in(full())} == set(RECORDS)


def test_a_diagnosis_that_saw_nothing_comes_back_equal():
    assert from_json(to_json(bare(reason="interrupted"))) == bare(reason="interrupted")


def test_types_come_back_as_annotated_not_as_json_gives_them():
    loaded = from_json(to_json(full()))
    table = loaded.capture.tables[0]
    assert isinstance(loaded.capture.tables, tuple)
    assert table.kind is TensorKind.WEIGHT_UPDATE
    assert isinstance(table.histogram, ExponentHistogram)
    assert isinstance(table.histogram.counts, tuple)
    assert isinstance(loaded.advice.loss_scale.curve[0], ScalePoint)
    assert loaded.advice.loss_scale.limited_by == {"lower": ("a", "b"), "upper": ()}
    assert loaded.verification.trials[0].step_time_iqr_ms == (1.0, 1.5)


def test_a_float_that_json_wrote_as_an_integer_comes_back_as_a_float():
    raw = json.loads(to_json(full()))
    raw["capture"]["losses"] = [1, 2]
    losses = from_json(json.dumps(raw)).capture.losses
    assert losses == (1.0, 2.0)
    assert all(isinstance(value, float) for value in losses)


@given(st.lists(st.floats(allow_nan=False), max_size=5))
def test_every_float_comes_back_bit_for_bit(losses):
    loaded = from_json(to_json(with_losses(*losses))).capture.losses
    assert [value.hex() for value in loaded] == [value.hex() for value in losses]


@given(st.text())
def test_every_text_comes_back(text):
    assert from_json(to_json(bare(reason=text))).reason == text


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity"])
def test_a_text_that_reads_like_a_nonfinite_number_comes_back_as_that_text(text):
    assert from_json(to_json(bare(reason=text))).reason == text


def test_large_counts_come_back_exactly():
    histogram = ExponentHistogram(-149, (2**62, 1), zeros=2**53 + 1)
    table = dataclasses.replace(TABLE, histogram=histogram)
    diagnosis = dataclasses.replace(full(), capture=dataclasses.replace(full().capture, tables=(table,)))
    assert from_json(to_json(diagnosis)).capture.tables[0].histogram == histogram


# non-finite numbers


def test_nonfinite_numbers_are_written_as_strings_and_the_json_stays_strict():
    raw = strict(to_json(with_losses(math.nan, math.inf, -math.inf, 1.0)))
    assert raw["capture"]["losses"] == ["NaN", "Infinity", "-Infinity", 1.0]


def test_nonfinite_losses_come_back_as_numbers():
    nan, inf, minus = from_json(to_json(with_losses(math.nan, math.inf, -math.inf))).capture.losses
    assert math.isnan(nan)
    assert (inf, minus) == (math.inf, -math.inf)


def test_a_nonfinite_optional_number_comes_back_as_a_number():
    loaded = from_json(to_json(full())).capture.selftest
    assert loaded.control == math.inf


def test_nonfinite_evidence_comes_back_as_numbers_beside_texts_and_none():
    finding = full().advice.findings[0]
    finding = dataclasses.replace(finding, evidence={"a": math.inf, "b": -math.inf, "c": "text", "d": None, "e": 2.0})
    advice = dataclasses.replace(full().advice, findings=(finding,))
    loaded = from_json(to_json(dataclasses.replace(full(), advice=advice)))
    assert loaded.advice.findings[0].evidence == finding.evidence


def test_whole_numbers_in_the_evidence_stay_whole_and_fractions_stay_fractions():
    finding = dataclasses.replace(
        full().advice.findings[0], evidence={"log2": 16, "large": 2**53 + 1, "limit": 65520.0}
    )
    advice = dataclasses.replace(full().advice, findings=(finding,))
    loaded = from_json(to_json(dataclasses.replace(full(), advice=advice))).advice.findings[0].evidence
    assert loaded == finding.evidence
    assert [type(value) for value in loaded.values()] == [int, int, float]


def test_a_nan_in_the_evidence_comes_back_as_nan():
    finding = dataclasses.replace(full().advice.findings[0], evidence={"a": math.nan})
    advice = dataclasses.replace(full().advice, findings=(finding,))
    loaded = from_json(to_json(dataclasses.replace(full(), advice=advice))).advice.findings[0].evidence["a"]
    assert isinstance(loaded, float)
    assert math.isnan(loaded)


def test_nonfinite_metrics_and_intervals_keep_the_json_strict():
    trial = dataclasses.replace(full().verification.trials[0], metric={"a": math.nan}, step_time_iqr_ms=(0.0, math.inf))
    verification = dataclasses.replace(full().verification, trials=(trial,))
    text = to_json(dataclasses.replace(full(), verification=verification))
    strict(text)
    assert from_json(text).verification.trials[0].step_time_iqr_ms == (0.0, math.inf)


# the contract's keys


def test_the_json_has_the_keys_of_the_contract():
    raw = json.loads(to_json(full()))
    assert {"python", "torch", "cuda", "driver", "gpu", "compute_capability", "mpdiag"} <= raw["environment"].keys()
    assert {"name", "source", "parameters", "synthetic_data"} <= raw["target"].keys()
    assert {"precision", "steps", "seed", "unchanged"} <= raw["capture"].keys()
    table = raw["capture"]["tables"][0]
    promised = {"name", "module_type", "kind", "dtype", "amp_dtype", "elements", "steps", "abs_max", "source"}
    assert promised <= table.keys()
    assert table["histogram"].keys() == {"lowest", "counts", "zeros", "infs", "nans"}
    assert {"verdict", "reason", "trials", "comparisons", "prediction"} <= raw["verification"].keys()
    assert raw["schema_version"] == SCHEMA_VERSION == 1


def test_the_file_begins_with_its_schema_version():
    assert to_json(full()).startswith('{\n "schema_version": 1,')
    assert to_json(full()).count('"schema_version"') == 1


def test_a_kind_is_written_as_its_plain_name():
    assert json.loads(to_json(full()))["capture"]["tables"][0]["kind"] == "weight_update"


# what others may have written


def test_unknown_keys_are_ignored_at_every_depth():
    raw = json.loads(to_json(full()))
    raw["future"] = {"a": 1}
    raw["environment"]["future"] = [1]
    raw["capture"]["tables"][0]["histogram"]["future"] = None
    assert from_json(json.dumps(raw)) == full()


def test_a_missing_key_with_a_default_takes_the_default():
    raw = json.loads(to_json(full()))
    del raw["capture"]["not_seen"]
    assert from_json(json.dumps(raw)).capture.not_seen == ()


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version_is_refused_with_both_numbers(version):
    with pytest.raises(UsageError) as caught:
        from_json(edited(schema_version=version))
    assert caught.value.slug == "schema-version"
    assert caught.value.message == f"schema_version {json.dumps(version)}, this mpdiag reads 1"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "{", "not json", "\ufeff{}", "{'schema_version': 1}"])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(UsageError, match="not JSON") as caught:
        from_json(text)
    assert caught.value.slug == "not-a-diagnosis"


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '"schema_version"', "{}", '{"created": "x"}', '["schema_version"]']
)
def test_json_without_a_schema_version_is_refused(text):
    with pytest.raises(UsageError, match="without schema_version") as caught:
        from_json(text)
    assert caught.value.slug == "not-a-diagnosis"


@pytest.mark.parametrize(
    "keys",
    [
        {"environment": None},
        {"environment": "linux"},
        {"environment": {}},
        {"capture": []},
        {"capture": "x"},
        {"capture": 3},
        {"advice": {"format": "FP16"}},
        {"elapsed_seconds": [1]},
        {"elapsed_seconds": {"a": "fast"}},
        {"verification": {"trials": 1}},
        {"reason": 3},
        {"elapsed_seconds": {"a": 10**400}},
    ],
    ids=lambda keys: "-".join(keys),
)
def test_a_malformed_record_is_refused(keys):
    with pytest.raises(UsageError) as caught:
        from_json(edited(**keys))
    assert caught.value.slug == "not-a-diagnosis"


def test_a_missing_required_key_is_refused():
    raw = json.loads(to_json(full()))
    del raw["command"]
    with pytest.raises(UsageError, match="command") as caught:
        from_json(json.dumps(raw))
    assert caught.value.slug == "not-a-diagnosis"


def test_a_table_whose_source_is_a_number_is_refused():
    raw = json.loads(to_json(full()))
    raw["capture"]["tables"][0]["source"] = 12
    with pytest.raises(UsageError) as caught:
        from_json(json.dumps(raw))
    assert caught.value.slug == "not-a-diagnosis"


def changed(*path: str | int, to: Any) -> str:
    """The full diagnosis as JSON with the value at `path` replaced."""
    raw = json.loads(to_json(full()))
    holder = raw
    for key in path[:-1]:
        holder = holder[key]
    assert path[-1] in holder if isinstance(holder, dict) else path[-1] < len(holder)
    holder[path[-1]] = to
    return json.dumps(raw)


ILL_TYPED = {
    "a fraction for an int": (("capture", "steps"), 1.5),
    "a whole float for an int": (("capture", "steps"), 3.0),
    "a text for an int": (("target", "parameters"), "12"),
    "a bool for an int": (("capture", "seed"), True),
    "null for an int": (("capture", "steps"), None),
    "a text for an optional int": (("advice", "loss_scale", "log2_scale"), "14"),
    "a bool for an optional int": (("advice", "loss_scale", "upper_log2"), False),
    "a text in counts": (("capture", "tables", 0, "histogram", "counts", 0), "1"),
    "a number for a bool": (("target", "higher_is_better"), 1),
    "a text for a bool": (("capture", "tables", 0, "noise_level"), "false"),
    "null for a bool": (("target", "synthetic_data"), None),
    "a number for an optional bool": (("capture", "selftest", "unchanged"), 0),
    "a text for a float": (("capture", "losses", 0), "fast"),
    "a list for a float": (("capture", "losses", 0), [1.0]),
    "a number for a text": (("command",), 3),
    "a list for a text": (("capture", "device"), ["cpu"]),
    "null for a text": (("advice", "findings", 0, "message"), None),
    "a number for an optional text": (("environment", "gpu"), 3),
    "a number in a list of texts": (("capture", "not_seen", 0), 3),
    "a text for a list of texts": (("capture", "not_seen"), "fc"),
    "a text for a list of records": (("capture", "tables"), "x"),
    "an object for a list": (("capture", "losses"), {"0": 1.0}),
    "null for a list": (("verification", "trials"), None),
    "a text for an object": (("environment", "fp32_precision"), "tf32"),
    "a text for a record": (("capture", "selftest"), "passed"),
    "a list for a record": (("capture", "tables", 0, "histogram"), [1]),
    "a number for an optional record": (("verification",), 1),
    "an object in the evidence": (("advice", "findings", 0, "evidence", "limit"), {}),
}


@pytest.mark.parametrize("name", ILL_TYPED)
def test_an_ill_typed_value_is_refused(name):
    path, value = ILL_TYPED[name]
    with pytest.raises(UsageError) as caught:
        from_json(changed(*path, to=value))
    assert caught.value.slug == "not-a-diagnosis"


def test_a_value_of_the_right_type_is_read():
    assert from_json(changed("capture", "steps", to=9)).capture.steps == 9
    assert from_json(changed("capture", "selftest", "unchanged", to=True)).capture.selftest.unchanged is True


@pytest.mark.parametrize("severity", ["fatal", "", "Error"])
def test_an_unknown_severity_is_refused(severity):
    with pytest.raises(UsageError, match="severity") as caught:
        from_json(changed("advice", "findings", 0, "severity", to=severity))
    assert caught.value.slug == "not-a-diagnosis"


@pytest.mark.parametrize("verdict", ["maybe", "", "GO", "none"])
def test_an_unknown_verdict_is_refused(verdict):
    with pytest.raises(UsageError, match="verdict") as caught:
        from_json(changed("verification", "verdict", to=verdict))
    assert caught.value.slug == "not-a-diagnosis"


@pytest.mark.parametrize("severity", SEVERITIES)
def test_every_severity_is_read(severity):
    assert from_json(changed("advice", "findings", 0, "severity", to=severity)).advice.findings[0].severity == severity


@pytest.mark.parametrize("verdict", [*VERDICTS, None])
def test_every_verdict_is_read_and_so_is_none_yet(verdict):
    assert from_json(changed("verification", "verdict", to=verdict)).verification.verdict == verdict


def test_json_nested_too_deeply_is_refused():
    with pytest.raises(UsageError) as caught:
        from_json("[" * 100_000)
    assert caught.value.slug == "not-a-diagnosis"


def test_an_unknown_kind_is_refused():
    raw = json.loads(to_json(full()))
    raw["capture"]["tables"][0]["kind"] = "optimizer_state"
    with pytest.raises(UsageError, match="optimizer_state"):
        from_json(json.dumps(raw))


def test_a_pair_of_three_is_refused():
    raw = json.loads(to_json(full()))
    raw["verification"]["trials"][0]["step_time_iqr_ms"] = [1, 2, 3]
    with pytest.raises(UsageError) as caught:
        from_json(json.dumps(raw))
    assert caught.value.slug == "not-a-diagnosis"


# the house rule


def test_importing_it_imports_no_torch_nor_numpy():
    script = "import sys, mpdiag.saved; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_import_check_can_fail():
    script = "import sys, mpdiag.saved, numpy; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
