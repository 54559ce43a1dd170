"""What a Diagnosis of `mpdiag.scan` holds, and that `mpdiag.load` reads it back."""

from __future__ import annotations

import json
import sys

import pytest

import mpdiag
from api_samples import CAPTURE_ONLY, JOB, KEYS, KINDS, SMALL, at
from mpdiag.errors import UsageError
from mpdiag.saved import to_json


@pytest.mark.parametrize("path", KEYS)
def test_every_promised_key_is_in_the_json(whole, path):
    records = at(json.loads(to_json(whole)), path)
    assert records or path == "advice.findings.*"
    for record in records:
        assert set(KEYS[path].split()) <= record.keys()


def test_a_trials_nulls_have_their_reasons(whole):
    for trial in json.loads(to_json(whole))["verification"]["trials"]:
        for key in KEYS["verification.trials.*"].split():
            if trial[key] is None:
                assert trial["not_measured"].get(key), (trial["arm"], key)


def test_a_comparisons_nulls_have_their_reason(whole):
    for comparison in json.loads(to_json(whole))["verification"]["comparisons"]:
        if comparison["interval"] is None:
            assert comparison["reason"], comparison
        assert comparison["verdict"] in ("equivalent", "better", "worse", "inconclusive", "not-measured")


def test_a_part_that_was_not_done_is_null_with_a_reason(write):
    record = json.loads(to_json(mpdiag.scan(write(JOB), CAPTURE_ONLY)))
    assert record["verification"] is None
    assert record["reason"], "verification is null, and nothing says why"


def test_a_prediction_that_is_null_says_why(whole):
    record = json.loads(to_json(whole))["verification"]
    assert record["prediction"] is not None or record["prediction_reason"]


def test_a_gpus_keys_are_null_on_a_cpu(whole):
    environment = whole.environment
    assert (environment.gpu, environment.driver, environment.compute_capability) == (None, None, None)
    assert environment.mpdiag == mpdiag.__version__
    assert environment.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_the_target_is_described(whole):
    target = whole.target
    assert target is not None
    assert (target.name, target.parameters, target.samples_per_step) == ("job", 3 * 4 + 4 + 4 + 1, 8)
    assert target.source.endswith("job.py")
    assert target.optimizer == "AdamW(lr=0.001)"
    assert any("AdamW" in note for note in target.notes)
    assert (target.synthetic_data, target.higher_is_better) == (False, False)


def test_the_capture_sees_every_kind_of_every_layer(whole):
    capture = whole.capture
    assert capture is not None
    assert (capture.steps, len(capture.losses), capture.seed, capture.device) == (3, 3, 0, "cpu")
    assert capture.unchanged is True
    assert {str(t.kind) for t in capture.tables} == KINDS
    seen = {(t.name, str(t.kind)): t for t in capture.tables}
    weight = seen["0.weight", "weight_gradient"]
    assert (weight.elements, weight.steps, weight.module_type, weight.dtype) == (12, 3, "Linear", "float32")
    assert weight.histogram.total == 36
    activation = seen["0", "activation"]
    assert (activation.elements, activation.amp_dtype) == (8 * 4, "float16")
    assert activation.source is not None
    assert activation.source.rpartition(":")[0].endswith("job.py")


def test_shares_are_fractions_and_exponents_are_integers(whole):
    assert whole.advice is not None
    scale = whole.advice.loss_scale
    for share in (scale.underflow_before, scale.underflow_after):
        assert share is None or 0 <= share <= 1
    for exponent in (scale.lower_log2, scale.upper_log2):
        assert isinstance(exponent, int)


def test_both_arms_and_their_controls_are_run(whole):
    assert whole.verification is not None
    trials = {t.arm: t for t in whole.verification.trials}
    assert {"fp32", "fp16", "bf16", "fp16-pure"} <= trials.keys()
    assert not trials["fp32"].emulated
    assert trials["fp16"].emulated
    assert all(len(t.losses) == 5 for t in trials.values() if t.error is None)


def test_a_metric_dict_is_kept_by_name_and_compared(whole):
    assert whole.verification is not None
    for trial in whole.verification.trials:
        if trial.error is None:
            assert trial.metric == {"error": 0.25, "score": 3.0}
    quantities = {c.quantity for c in whole.verification.comparisons if c.candidate == "fp16"}
    assert {"loss", "error", "score"} <= quantities


def test_each_stages_time_is_kept(whole):
    assert {"load", "selftest", "capture", "verify"} <= whole.elapsed_seconds.keys()
    assert all(seconds >= 0 for seconds in whole.elapsed_seconds.values())


# saved and read back


def test_a_saved_diagnosis_is_read_back_as_it_was(whole, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(to_json(whole), encoding="utf-8")
    for asked in (path, str(path)):
        assert mpdiag.load(asked) == whole


def test_a_diagnosis_that_was_read_is_saved_to_the_same_bytes(tmp_path, write):
    overflowing = JOB.replace("np.random.rand()", "1e6")
    text = to_json(mpdiag.scan(write(overflowing), SMALL))
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    assert json.loads(text)["advice"]["findings"]
    assert to_json(mpdiag.load(path)) == text


@pytest.mark.parametrize(
    ("text", "slug"),
    [("", "not-a-diagnosis"), ("{}", "not-a-diagnosis"), ('{"schema_version": 2}', "schema-version")],
)
def test_what_is_no_diagnosis_is_refused(tmp_path, text, slug):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        mpdiag.load(path)
    assert caught.value.slug == slug


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        mpdiag.load(tmp_path / "nowhere.json")
    assert caught.value.slug == "no-such-file"
