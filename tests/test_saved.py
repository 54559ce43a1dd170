"""A diagnosis as JSON and back: what is written, and that the same is read."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from mpdiag.foretold import FirstOverflow, Prediction, TensorForecast
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Event, Layer, LoopFacts, OptimizerGroup
from mpdiag.operations import OpTable
from mpdiag.other_formats import FormatChoice, FormatForecast, FormatOption
from mpdiag.plan import IslandPlan
from mpdiag.saved import from_json, to_json
from saved_parts import TABLE
from saved_samples import bare, full, records_in, strict, with_losses

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
        FirstOverflow,
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


# the house rule


def test_importing_it_imports_no_torch_nor_numpy():
    script = "import sys, mpdiag.saved; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_import_check_can_fail():
    script = "import sys, mpdiag.saved, numpy; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 1
