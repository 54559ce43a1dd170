"""Tensor-core counters of one step: which ones a chip has, what they count, and every refusal."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager

import pytest

from cupti_samples import CHIPS, CUDA, PATH
from mpdiag import saved
from mpdiag.costs.tensor_cores import CounterEvidence
from mpdiag.device.bodies import Body
from mpdiag.device.cupti import END_OTHERS, PERMIT, Cupti, CuptiRefusedError
from mpdiag.measure import counters
from mpdiag.measure.counters import (
    CONSTANTS,
    INSTRUCTIONS,
    KNOWN_SIZE,
    count,
    metrics_for,
)

# which counters


@pytest.mark.parametrize(
    ("chip", "expected"),
    [
        ("GV100", {"fp16": 2}),
        ("TU102", {"fp16": 2}),
        ("GA100", {"fp16": 2, "bf16": 1, "tf32": 1}),
        ("AD102", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GH100", {"fp16": 1, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GB100", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 1}),
        ("GB202", {"fp16": 2, "bf16": 1, "tf32": 1, "fp8": 2}),
    ],
)
def test_counters_are_chosen_from_what_the_chip_has(chip, expected):
    names = [f"{PATH}{name}" for name in CHIPS[chip]]
    groups = metrics_for(names)
    assert {name: len(group) for name, group in groups.items()} == expected
    assert all(metric.removesuffix(".sum") in names for group in groups.values() for metric in group)


def test_turings_one_sum_of_three_types_is_fp16_because_it_has_no_other():
    names = [f"{PATH}{name}" for name in CHIPS["TU102"]]
    assert metrics_for(names)["fp16"] == [f"{PATH}fp16_bf16_tf32_dst_fp32.sum", f"{PATH}fp16_dst_fp16.sum"]


def test_the_pipes_instructions_come_with_the_constants_that_are_none():
    assert metrics_for([INSTRUCTIONS, CONSTANTS]) == {INSTRUCTIONS: [f"{INSTRUCTIONS}.sum", f"{CONSTANTS}.sum"]}
    assert metrics_for([INSTRUCTIONS]) == {INSTRUCTIONS: [f"{INSTRUCTIONS}.sum"]}
    assert metrics_for(["sm__cycles_active"]) == {}


# one step of an arm


def test_operations_are_by_source_type(fake):
    def step():
        fake.counts = {f"{PATH}fp16.sum": 3e9, f"{PATH}tf32_dst_fp32.sum": 1e9, f"{INSTRUCTIONS}.sum": 500.0}
        fake.counts[f"{CONSTANTS}.sum"] = 100.0

    found = count(step, CUDA)
    assert found["operations"] == {"fp16": 3e9, "bf16": 0.0, "tf32": 1e9, "fp8": 0.0}
    assert found["instructions"] == 400.0  # without those that load constants
    assert (found["chip"], found["passes"], found["reason"]) == ("GH100", 5, None)
    assert found["metrics"][f"{INSTRUCTIONS}.sum"] == 500.0


def test_counters_that_miscount_a_known_product_are_not_believed(fake, monkeypatch):
    @contextmanager
    def ready_body(name, size, device):
        fake.counts = {f"{PATH}fp16.sum": 1.02 * 2.0 * size**3}
        yield Body(name, lambda: None)

    monkeypatch.setattr(counters, "ready_body", ready_body)
    found = count(lambda: None, CUDA)
    assert found["operations"] is None
    assert found["reason"] == (
        f"the counters are not believed: {1.02 * 2 * KNOWN_SIZE**3:.4g} operations for a product that takes 1.374e+11"
    )


@pytest.mark.parametrize(
    ("function", "status", "remedy"),
    [
        ("cuptiRangeProfilerStart", 35, PERMIT),
        ("cuptiRangeProfilerEnable", 40, PERMIT),
        ("cuptiRangeProfilerEnable", 39, END_OTHERS),
        ("cuptiRangeProfilerEnable", 26, END_OTHERS),
        ("cuptiProfilerInitialize", 999, None),
        ("cuptiDeviceGetChipName", 2, None),
        ("cuptiProfilerHostInitialize", 46, None),
    ],
)
def test_a_refusal_names_the_call_its_code_and_what_would_permit_it(fake, function, status, remedy):
    fake.refusing = {function: status}
    found = count(lambda: None, CUDA)
    assert found["operations"] is None
    assert found["reason"].startswith(f"{function} returned {status} (CUPTI_ERROR_")
    assert (found["remedy"] or "").startswith(remedy or "")
    assert (found["remedy"] is None) == (remedy is None)


def test_a_refusal_names_what_the_device_does_not_support(fake):
    def supported(block):
        block.architecture, block.vgpu, block.wsl = 3, 2, 1

    fake._cuptiProfilerDeviceSupported = supported
    fake.refusing = {"cuptiRangeProfilerEnable": 33}
    assert count(lambda: None, CUDA)["reason"].endswith("; not supported here: vgpu, wsl")


def test_a_cupti_from_before_these_calls_is_a_reason(fake):
    fake.missing = {"cuptiRangeProfilerEnable"}
    assert count(lambda: None, CUDA)["reason"] == (
        "this CUPTI has no cuptiRangeProfilerEnable (CUDA 12.6 and later have)"
    )


def test_a_chip_without_such_counters_is_a_reason(fake):
    fake.names = ["sm__cycles_active"]
    assert count(lambda: None, CUDA)["reason"] == "GH100 has no counter of FP16 tensor-core operations"


def refusing(monkeypatch, *refused):
    """CUPTI refuses the counters with these among their metrics; the known product before them is counted."""
    real, calls = Cupti.count, []

    def counted(self, chip, metrics, step, device):
        calls.append(metrics)
        if len(calls) > 1 and set(metrics) & set(refused):
            raise CuptiRefusedError("cuptiProfilerHostConfigAddMetrics returned 17 (CUPTI_ERROR_OTHER)", 17)
        return real(self, chip, metrics, step, device)

    monkeypatch.setattr(Cupti, "count", counted)
    return count(lambda: None, CUDA)


def test_a_counter_that_is_refused_leaves_the_others(fake, monkeypatch):
    found = refusing(monkeypatch, f"{PATH}fp8.sum")
    assert found["operations"] == {"fp16": 0.0, "bf16": 0.0, "tf32": 0.0}
    assert found["reason"].startswith("fp8: cuptiProfilerHostConfigAddMetrics returned 17")
    assert found["instructions_reason"] is None


def test_every_refused_counter_is_told_and_the_pipes_instructions_apart(fake, monkeypatch):
    found = refusing(monkeypatch, f"{PATH}fp16.sum", f"{PATH}fp8.sum", f"{INSTRUCTIONS}.sum")
    why = "cuptiProfilerHostConfigAddMetrics returned 17 (CUPTI_ERROR_OTHER)"
    assert set(found["operations"]) == {"bf16", "tf32"}
    assert found["reason"] == f"fp16: {why}; fp8: {why}"
    assert (found["instructions"], found["instructions_reason"]) == (None, why)


def test_a_chip_without_a_count_of_instructions_says_so(fake):
    fake.names = [name for name in fake.names if not name.startswith(INSTRUCTIONS)]
    found = count(lambda: None, CUDA)
    assert (found["reason"], found["instructions_reason"]) == (None, "not there on GH100")


def test_a_record_comes_back_from_json_equal(fake):
    record = CounterEvidence(arm="fp16", **count(lambda: None, CUDA))
    text = json.dumps(saved._plain(dataclasses.asdict(record)))
    assert saved._typed(CounterEvidence, json.loads(text)) == record
