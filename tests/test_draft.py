"""A diagnosis in the making: what its stages took."""

import pytest

import report_samples as samples
from mpdiag.draft import Draft


def test_a_part_of_a_stage_is_told_apart_from_it():
    draft = Draft(samples.full(), lambda diagnosis: None)
    before = draft.diagnosis.elapsed_seconds
    draft.apart("verify", {"largest batch": 12.5})
    assert draft.diagnosis.elapsed_seconds == {
        **before,
        "verify": pytest.approx(before["verify"] - 12.5),
        "largest batch": 12.5,
    }


def test_a_part_that_took_nothing_is_not_told():
    draft = Draft(samples.full(), lambda diagnosis: None)
    before = draft.diagnosis.elapsed_seconds
    draft.apart("verify", {"largest batch": 0.0})
    assert draft.diagnosis.elapsed_seconds == before
