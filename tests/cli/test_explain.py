"""What `mpdiag explain` offers for a code or a name that is none: one of the same hundred, or what the hundreds are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpdiag.advice.checks import ALL, BY_CODE, HUNDREDS
from mpdiag.cli.explain import _near

NAMES = [rule.name for rule in ALL]


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("MP20", "MP201"),
        ("mp6", "MP601"),
        ("MP299", max(code for code in BY_CODE if code.startswith("MP2"))),
        ("NP203", "MP203"),
        ("203", "MP203"),
        ("MP201 ", "MP201"),
        ("gradient-underfow", "gradient-underflow"),
        ("fp8-underfloww", "fp8-underflow"),
    ],
)
def test_the_nearest_of_the_same_hundred_or_the_name_most_alike(asked, near):
    assert _near(asked, BY_CODE, NAMES) == near


@pytest.mark.parametrize("asked", ["MP999", "MP000", "MP", "MP1010", "nonsense", "", "漢字", "MP٢٠١"])
def test_where_nothing_is_near_nothing_is_offered(asked):
    assert _near(asked, BY_CODE, NAMES) is None


def test_a_code_of_no_hundred_is_answered_with_the_hundreds():
    done = subprocess.run(
        [sys.executable, "-m", "mpdiag", "explain", "MP999"], capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 2
    assert "did you mean" not in done.stderr
    assert "the codes are MP1xx forward range, MP2xx gradients and loss scale," in done.stderr
    assert "`mpdiag explain` lists them all" in done.stderr


def test_every_code_is_of_a_hundred_that_is_told():
    assert {code[:3] for code in BY_CODE} == set(HUNDREDS)
