"""How commands are typed: options, commands that were meant, help, and what `explain` explains."""

from __future__ import annotations

import json
import re

import pytest
import torch

from cli_samples import CAPTURE_ONLY, OURS, SMALL, WHOLE, refused_at_once, saved

# options


@pytest.mark.parametrize(
    "option",
    [
        ("--steps", "0"),
        ("--steps", "-1"),
        ("--steps", "many"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--verify-steps", "0"),
        ("--seeds", "0"),
        ("--time-budget", "0"),
        ("--time-budget", "-5"),
        ("--time-budget", "nan"),
        ("--time-budget", "inf"),
        ("--device", "tpu"),
        ("--fail-on", "info"),
        ("--plotly", "cdn"),
        ("--steps",),
        ("surplus",),
    ],
)
def test_a_bad_value_is_refused_in_one_line(cli, write, option):
    result = cli("scan", write(WHOLE), *option)
    refused_at_once(result, "usage")
    assert " --help" in result.err


@pytest.mark.parametrize("seed", [2**32, 2**63 - 1, 2**64 - 1])
def test_a_large_seed_is_a_seed(cli, write, tmp_path, seed):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--seed", seed)
    assert result.code == 0, result.err
    assert saved(tmp_path / "reports/job.json")["capture"]["seed"] == seed


@pytest.mark.parametrize("seed", [2**64, 10**30])
def test_a_seed_that_torch_cannot_take_is_refused(cli, write, seed):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--seed", seed)
    assert OURS not in result.err, result.err
    assert result.code == 2
    assert "seed" in result.error


def test_an_unknown_option_gets_the_one_meant(cli, write):
    result = cli("scan", write(WHOLE), "--step", "3")
    refused_at_once(result, "usage")
    assert "--steps" in result.err


@pytest.mark.parametrize(("typed", "meant"), [("scna", "scan"), ("reprot", "report"), ("explian", "explain")])
def test_an_unknown_command_gets_the_one_meant(cli, typed, meant):
    result = cli(typed, "model.py")
    refused_at_once(result, "usage")
    assert f"did you mean `mpdiag {meant}`?" in result.err


def test_an_unknown_command_that_resembles_none_gets_the_help(cli):
    result = cli("xyzzy")
    refused_at_once(result, "usage")
    assert "mpdiag --help" in result.err


def test_scan_without_a_target_is_a_usage_error(cli):
    refused_at_once(cli("scan"), "usage")


def test_no_command_at_all_shows_the_help(cli):
    result = cli()
    assert result.code in (0, 2)
    assert any(line.strip().startswith("scan ") for line in (result.out + result.err).splitlines())
    assert "error[usage]: Usage:" not in result.err, "the whole help, squeezed into an error line"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_without_a_device_is_refused_with_the_way_out(cli, write):
    result = cli("scan", write(WHOLE), *SMALL, "--device", "cuda")
    refused_at_once(result, "no-cuda")
    assert "--device cpu" in result.err


def test_the_version_is_one_line_on_stdout(cli):
    result = cli("--version")
    assert re.fullmatch(r"mpdiag, version \d+\.\d+\.\d+\n", result.out)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["scan", "--help"], ["report", "-h"], ["explain", "--help"]])
def test_help_is_on_stdout(cli, arguments):
    result = cli(*arguments)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: ")


def test_only_commands_that_are_built_are_in_the_help(cli):
    listed = re.findall(r"^  ([a-z]+) ", cli("--help").out.partition("Commands:")[2], re.MULTILINE)
    for name in listed:
        assert cli(name, "--help").code == 0
    assert {"scan", "report", "explain"} <= set(listed)


# explain


def test_explain_lists_every_finding(cli):
    result = cli("explain")
    assert result.code == 0
    codes = [line.split()[0] for line in result.out.splitlines()]
    assert codes == sorted(set(codes))
    assert all(re.fullmatch(r"MP\d{3}", code) for code in codes)
    assert all(len(line.split()) > 3 for line in result.out.splitlines())


def test_explain_knows_a_code_in_either_case_and_by_name(cli):
    listed = cli("explain").out.splitlines()
    for line in listed:
        code, name = line.split()[:2]
        pages = {cli("explain", asked).out for asked in (code, code.lower(), name, name.upper())}
        assert len(pages) == 1
        (page,) = pages
        assert code in page
        assert name in page


@pytest.mark.parametrize("asked", ["MP999", "mp20", "nonsense", "", "MP201 ", "漢字"])
def test_explain_refuses_a_code_that_is_none(cli, asked):
    result = cli("explain", asked)
    if asked.strip() == "MP201":  # a pasted code may carry a space
        assert result.code in (0, 2)
        return
    refused_at_once(result, "unknown-code")
    assert "mpdiag explain" in result.err


def test_explain_offers_the_code_that_was_meant(cli):
    assert "did you mean MP20" in cli("explain", "MP20").err


def test_every_finding_of_a_scan_can_be_explained(cli, run_json):
    findings = json.loads(run_json.read_text("utf-8"))["advice"]["findings"]
    assert findings
    for finding in findings:
        assert cli("explain", finding["code"]).code == 0
