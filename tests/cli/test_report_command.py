"""`mpdiag report`: every format of a saved scan, and what it refuses."""

from __future__ import annotations

import csv
import io
import json

import pytest

import mpdiag
from cli_samples import OURS, RAISING, WHOLE, refused_at_once, saved
from mpdiag.errors import MpdiagError


def test_report_draws_all_five_formats(cli, run_json, tmp_path):
    text = cli("report", run_json)
    assert text.code == 0
    assert "VERDICT" in text.out
    page = cli("report", run_json, "--format", "html", "--plotly", "none").out
    assert page.lower().startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")
    assert page == (tmp_path / "reports/job.html").read_text("utf-8"), "the page drawn again is another"
    markdown = cli("report", run_json, "--format", "md").out
    assert markdown.startswith("#")
    rows = list(csv.DictReader(io.StringIO(cli("report", run_json, "--format", "csv").out)))
    tables = json.loads(run_json.read_text("utf-8"))["capture"]["tables"]
    assert [(r["name"], r["kind"]) for r in rows] == [(t["name"], t["kind"]) for t in tables]


def test_report_as_json_gives_back_every_byte(cli, run_json):
    result = cli("report", run_json, "--format", "json")
    assert result.out == run_json.read_text("utf-8")


@pytest.mark.parametrize("kind", ["text", "html", "json", "md", "csv"])
def test_report_writes_to_a_file_what_it_prints(cli, run_json, tmp_path, kind):
    printed = cli("report", run_json, "--format", kind, "--plotly", "none").out
    result = cli("report", run_json, "--format", kind, "--plotly", "none", "--out", f"drawn/it.{kind}")
    assert (result.code, result.out) == (0, "")
    assert (tmp_path / f"drawn/it.{kind}").read_text("utf-8") == printed


@pytest.mark.parametrize("kind", ["text", "html", "json", "md", "csv"])
@pytest.mark.parametrize("stage", ["target", "capture"])
def test_report_draws_a_scan_that_did_not_end(cli, write, tmp_path, kind, stage):
    text = WHOLE.replace("(model, batch)", "()") if stage == "target" else RAISING["computing the loss"]
    with pytest.raises(MpdiagError) as caught:
        mpdiag.scan(str(write(text)), device="cpu", steps=2, verify=False)
    (tmp_path / "reports").mkdir()
    mpdiag.save(caught.value.diagnosis, tmp_path / "reports/job.json")
    data = saved(tmp_path / "reports/job.json")
    assert (data["capture"] is None) == (stage == "target")
    result = cli("report", tmp_path / "reports/job.json", "--format", kind, "--plotly", "none")
    assert (result.code, result.err) == (0, "")
    assert "user-code" in result.out or kind == "csv"


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("", "not-a-diagnosis"),
        ("garbage", "not-a-diagnosis"),
        ("[]", "not-a-diagnosis"),
        ("null", "not-a-diagnosis"),
        ("{}", "not-a-diagnosis"),
        ('{"schema_version": 1}', "not-a-diagnosis"),
        ('{"schema_version": 99}', "schema-version"),
        ('{"schema_version": null}', "schema-version"),
        ('{"schema_version": "1"}', "schema-version"),
        ("[" * 100_000, "not-a-diagnosis"),
    ],
)
def test_report_refuses_what_is_no_diagnosis(cli, write, text, slug):
    result = cli("report", write(text, "run.json"))
    refused_at_once(result, slug)
    assert "run.json" in result.error, "which file?"


def test_report_refuses_half_a_file(cli, run_json, write):
    half = write(run_json.read_text("utf-8")[:-200], "half.json")
    refused_at_once(cli("report", half), "not-a-diagnosis")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("capture", "tables"), 3),
        (("capture", "tables"), [1]),
        (("capture", "tables", 0, "kind"), "weights"),
        (("capture", "tables", 0, "histogram"), None),
        (("capture", "steps"), "two"),
        (("capture", "losses"), "abc"),
        (("capture", "selftest"), None),
        (("advice", "loss_scale"), None),
        (("advice", "loss_scale", "log2_scale"), "high"),
        (("advice", "findings", 0, "severity"), "catastrophe"),
        (("advice", "findings", 0, "code"), None),
        (("target", "parameters"), None),
        (("environment",), None),
        (("environment", "cpu_threads"), {}),
        (("verification", "trials", 0, "losses"), None),
        (("verification", "verdict"), "maybe"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "html", "md", "csv"])
def test_report_never_shows_a_traceback_for_a_file_that_was_tampered_with(cli, run_json, write, path, value, kind):
    data = json.loads(run_json.read_text("utf-8"))
    *way, last = path
    inner = data
    for step in way:
        inner = inner[step]
    inner[last] = value
    result = cli("report", write(json.dumps(data), "tampered.json"), "--format", kind, "--plotly", "none")
    if result.code != 0:
        refused_at_once(result, "not-a-diagnosis")


def test_report_refuses_a_file_that_is_not_there_or_no_text(cli, tmp_path):
    refused_at_once(cli("report", "nowhere.json"), "no-such-file")
    refused_at_once(cli("report", tmp_path), "no-such-file")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    result = cli("report", "binary.json")
    assert result.code == 2
    assert OURS not in result.err


def test_report_refuses_an_unknown_format(cli, run_json):
    refused_at_once(cli("report", run_json, "--format", "pdf"), "usage")


def test_report_does_not_write_over_the_file_it_reads(cli, run_json):
    before = run_json.read_bytes()
    result = cli("report", run_json, "--format", "md", "--out", run_json)
    assert run_json.read_bytes() == before
    assert result.code == 2
