"""The catalogue of checks and its pages, and the advice that all findings make together."""

from __future__ import annotations

import re

import pytest

from capture_samples import ACTIVATION, HEALTHY, WEIGHT, WEIGHT_GRADIENT, capture, found, table
from mpdiag.advice import advise
from mpdiag.advice.checks import ALL, BY_CODE, CAPTURE_CHECKS, RUN_CHECKS, TRIAL_CHECKS

SECTIONS = ("Why it is bad:", "Threshold:", "Remedy:", "Source:")


# the catalogue


def test_codes_are_unique_and_ascending():
    codes = [check.code for check in ALL]
    assert codes == sorted(set(codes))
    assert len(codes) == len(BY_CODE) == len(CAPTURE_CHECKS) + len(TRIAL_CHECKS) + len(RUN_CHECKS)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_code_is_mp_and_three_digits_and_a_name_is_kebab_case(check):
    assert re.fullmatch(r"MP[1-7]\d\d", check.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", check.name)


def test_names_are_unique():
    assert len({check.name for check in ALL}) == len(ALL)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_page_has_its_sections_in_order_each_with_text(check):
    page = check.page()
    places = [page.index(f"\n{section}") for section in SECTIONS]
    assert places == sorted(places)
    assert all(re.search(rf"\n{section} \S+", page) for section in SECTIONS)


@pytest.mark.parametrize("check", ALL, ids=lambda c: c.code)
def test_a_page_begins_with_code_and_name_and_a_one_sentence_summary(check):
    first, blank, summary = check.page().splitlines()[:3]
    assert (first, blank) == (f"{check.code} {check.name}", "")
    assert summary.endswith(".")


def test_a_page_is_not_indented():
    assert not any(line.startswith(" ") for check in ALL for line in check.page().splitlines())


@pytest.mark.parametrize("check", CAPTURE_CHECKS, ids=lambda c: c.code)
def test_a_healthy_capture_has_no_finding(check):
    assert found(check.code, *HEALTHY) == []


@pytest.mark.parametrize("check", CAPTURE_CHECKS, ids=lambda c: c.code)
def test_an_empty_capture_has_no_finding(check):
    assert found(check.code, input_abs_max=None, losses=(), loss_amp_dtype=None) == []


# all findings together


def test_advice_has_the_worst_first_then_by_code():
    advice = advise(
        capture(
            table("b", ACTIVATION, {15: 1}, 40000.0),
            table("a", ACTIVATION, {17: 1}),
            table("w", WEIGHT_GRADIENT, {-30: 999, 3: 1}),
            input_abs_max=255.0,
        )
    )
    assert [(f.severity, f.code) for f in advice.findings] == [
        ("error", "MP101"),
        ("warning", "MP101"),
        ("warning", "MP103"),
        ("info", "MP201"),
        ("info", "MP202"),
    ]


def test_what_overflows_or_must_stay_is_kept_in_fp32_once():
    large = table("norm", ACTIVATION, {17: 1}, module_type="MyNorm")
    assert advise(capture(large, table("fc", ACTIVATION, {1: 1}), input_abs_max=255.0)).keep_fp32 == ("norm",)


def test_the_module_of_a_weight_that_overflows_is_kept_in_fp32():
    weight = table("body.head.weight", WEIGHT, {16: 1}, 70000.0)
    assert advise(capture(weight)).keep_fp32 == ("body.head",)
    assert advise(capture(weight, table("body.head", ACTIVATION, {17: 1}))).keep_fp32 == ("body.head",)


def test_a_weight_of_the_model_itself_that_overflows_names_no_nameless_module():
    # the model itself is known by its class (capture/modules.py), never by an empty name
    assert "" not in advise(capture(table("weight", WEIGHT, {16: 1}, 70000.0))).keep_fp32


def test_nothing_is_kept_in_fp32_in_a_healthy_capture():
    advice = advise(capture(*HEALTHY))
    assert (advice.findings, advice.keep_fp32, advice.format) == ((), (), "FP16")
