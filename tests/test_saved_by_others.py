"""A JSON that others wrote or edited: what is read, and what is refused."""

from __future__ import annotations

import json

import pytest

from mpdiag.diagnosis import (
    SEVERITIES,
    VERDICTS,
)
from mpdiag.errors import UsageError
from mpdiag.saved import from_json, to_json
from saved_samples import changed, edited, full


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
