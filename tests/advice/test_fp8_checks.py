"""MP7xx: FP8. Both sides of every threshold; nothing here is more than information."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from capture_samples import ACTIVATION, ACTIVATION_GRADIENT, capture, layered, table
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.diagnosis import Capture, Diagnosis, Environment, Finding
from op_table_samples import operation


def found(code: str, seen: Capture) -> list[Finding]:
    findings = list(BY_CODE[code].find(seen, recommend(seen)))
    assert all((f.code, f.severity) == (code, "info") for f in findings)
    return findings


# MP701 fp8-underflow


@pytest.mark.parametrize(("small", "says"), [(10, False), (11, True)])
def test_mp701_more_than_a_hundredth_of_a_tensor(small, says):
    # the largest is 1, so the scale is 2^8: E4M3's smallest, 2^-9, is then 2^-17, and below 2^-18 all is zero
    assert bool(found("MP701", capture(table("fc", ACTIVATION, {0: 1000 - small, -19: small})))) is says


def test_mp701_names_the_half_and_the_tensor_that_lose_most():
    forward = table("fc", ACTIVATION, {0: 90, -25: 10})
    backward = table("head", ACTIVATION_GRADIENT, {0: 50, -40: 50})
    (f,) = found("MP701", capture(forward, backward))
    assert f.subject == "FP8 backward"
    assert f.message == (
        "in E5M2 with a scale for each tensor, 1 of 1 tensors of the backward pass lose more than 1 %; "
        "head (activation_gradient) loses 50.0 %"
    )


def test_mp701_e5m2_holds_what_e4m3_does_not():
    assert found("MP701", capture(table("fc", ACTIVATION_GRADIENT, {0: 50, -25: 50}))) == []
    assert len(found("MP701", capture(table("fc", ACTIVATION, {0: 50, -25: 50})))) == 1


# MP702 fp8-delayed-spike


def stepped(*largest: float, **more: Any) -> Capture:
    made = replace(table("fc", ACTIVATION, {0: 10}, **more), abs_max_by_step=largest)
    return capture(made)


@pytest.mark.parametrize(
    ("largest", "says"),
    [
        ((1.0, 1.0, 1.0, 1.0, 2.01), True),
        ((1.0, 1.0, 1.0, 1.0, 2.0), False),
        ((1.0, 1.0, 1.0, 9.0), False),  # three steps are no history
        ((1.0, 5.0, 1.0, 1.0, 9.0), False),
        ((0.0, 0.0, 0.0, 0.0, 9.0), False),  # a layer that began at zero
    ],
)
def test_mp702_twice_the_largest_of_all_steps_before(largest, says):
    assert bool(found("MP702", stepped(*largest))) is says


def test_mp702_says_when_and_how_much():
    (f,) = found("MP702", stepped(1.0, 1.0, 1.0, 1.0, 3.0, 12.0))
    assert (f.subject, f.evidence["ratio"], f.evidence["step"]) == ("fc", 4.0, 5)
    assert f.message == (
        "the activation of fc is 4 times as large at observed step 5 as before: FP8 with delayed scaling would clip it"
    )


@pytest.mark.parametrize("exempt", [{"amp_dtype": "float32"}, {"noise_level": True}])
def test_mp702_what_would_not_be_fp8_is_no_matter(exempt):
    assert found("MP702", stepped(1.0, 1.0, 1.0, 1.0, 9.0, **exempt)) == []


# MP703 fp8-cast-old-torch


def scanned(version: str, dtype: str) -> Diagnosis:
    seen = replace(capture(), operations=(operation("_to_copy", dtype=dtype),))
    return Diagnosis("c", "m", Environment("3", version, "0", "p", 1), None, seen)


@pytest.mark.parametrize(
    ("version", "dtype", "says"),
    [
        ("2.11.0+cu130", "float8_e4m3fn", True),
        ("2.9.1", "float8_e4m3fn", True),
        ("2.12.0", "float8_e4m3fn", False),
        ("3.0.0", "float8_e4m3fn", False),
        ("2.11.0", "float8_e5m2", False),
        ("2.11.0", "float16", False),
        ("git", "float8_e4m3fn", False),
    ],
)
def test_mp703_a_cast_to_e4m3_under_an_old_torch(version, dtype, says):
    findings = list(BY_CODE["MP703"].find(scanned(version, dtype)))
    assert [f.severity for f in findings] == ["info"] * says


def test_mp703_a_capture_without_operations_has_no_finding():
    diagnosis = scanned("2.11.0", "float8_e4m3fn")
    assert list(BY_CODE["MP703"].find(replace(diagnosis, capture=capture()))) == []
    assert list(BY_CODE["MP703"].find(replace(diagnosis, capture=None))) == []


def test_mp703_this_torchs_cast_is_as_the_rule_says():
    cast = torch.tensor([464.0, 470.0]).to(torch.float8_e4m3fn).float()
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)
    assert cast[0] == 448
    assert bool(cast[1].isnan()) is old


# MP704 fp8-alignment


@pytest.mark.parametrize(
    ("features", "says"), [((24, 16), True), ((16, 24), True), ((16, 32), False), ((10, 16), False)]
)
def test_mp704_multiples_of_8_that_are_none_of_16(features, says):
    assert bool(found("MP704", layered(("fc", *features, 64)))) is says


def test_mp704_a_tenth_of_the_flops_is_left_alone():
    # 2 * 900 * 16 beside 2 * n * 24
    assert found("MP704", layered(("body", 16, 16, 900), ("head", 24, 16, 66))) == []
    (f,) = found("MP704", layered(("body", 16, 16, 900), ("head", 24, 16, 67)))
    assert (f.subject, f.evidence["layers"]) == ("head", 1)
