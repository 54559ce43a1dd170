"""docs/checks.md: every check is on it, every rule is answered or has its reason, and it is what the code says."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from mpdiag.advice.checks import ALL, BY_CODE
from mpdiag.diagnosis import SEVERITIES
from mpdiag.finding import Certainty

DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXT = (DOCS / "checks.md").read_text(encoding="utf-8")


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_checks", DOCS / "make_checks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKER = maker()


def test_the_page_is_what_the_checks_say_now():
    assert MAKER.page() == TEXT, "run `python docs/make_checks.py`"


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.code)
def test_every_code_has_a_row_with_name_severity_certainty_and_meaning(rule):
    (row,) = re.findall(rf"^\| {rule.code} \| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", TEXT, re.MULTILINE)
    assert row[0] == rule.name
    assert set(row[1].split(", ")) <= set(SEVERITIES)
    assert row[2] in list(Certainty)
    assert row[3].endswith(".")


def test_all_57_rules_are_there_each_with_a_code_or_a_reason():
    assert re.findall(r"^\| (R\d\d) \|", TEXT, re.MULTILINE) == [f"R{number:02}" for number in range(1, 58)]
    assert [rule for rule, (_, codes, why) in MAKER.RULES.items() if not codes and not why] == []


@pytest.mark.parametrize("sure", Certainty)
def test_each_word_of_certainty_has_its_meaning_on_the_page(sure):
    assert f"\n- **{sure}**: {sure.meaning}.\n" in TEXT


def test_the_rules_name_codes_that_exist():
    named = {code for _, codes, _ in MAKER.RULES.values() for code in codes}
    assert named <= set(BY_CODE)


def test_the_severities_are_those_that_a_check_can_give():
    given = {code: MAKER.severities(BY_CODE[code]) for code in ("MP101", "MP103", "MP205", "MP303", "MP107", "MP402")}
    assert given == {
        "MP101": ["error", "warning"],
        "MP103": ["warning"],
        "MP205": ["error", "warning", "info"],
        "MP303": ["error"],  # "error" is also the name of a piece of its evidence, which does not count
        "MP107": ["error", "warning"],  # from the class that all overflows share
        "MP402": ["info"],
    }
