"""What a scan leaves behind: files, stdout and stderr, names, and the exit code."""

from __future__ import annotations

import json

import pytest

from cli_samples import CAPTURE_ONLY, FAILS, OURS, RAISING, SMALL, WARNS, WHOLE, in_process_of_its_own, refused, saved
from mpdiag.saved import from_json

# what a scan leaves behind


def test_a_scan_writes_both_files_and_prints_both_paths(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *SMALL, "--fail-on", "never")
    assert result.code == 0, result.err
    assert "reports/job.html" in result.out
    assert "reports/job.json" in result.out
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"] is None
    assert data["capture"]["steps"] == 2
    assert data["verification"]["verdict"] in ("go", "go-with-changes", "no-go", "inconclusive")
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["job.html", "job.json"]
    assert (tmp_path / "reports/job.html").read_text("utf-8").lower().startswith("<!doctype html>")


def test_progress_is_on_stderr_and_the_summary_on_stdout(cli, write):
    result = cli("scan", write(WHOLE), *SMALL)
    assert "VERDICT" in result.out
    assert result.out.startswith("SCAN")
    assert all(line.startswith("· ") for line in result.err.splitlines())


def test_stdout_that_is_no_terminal_has_no_colour(cli, write):
    assert "\x1b" not in cli("scan", write(WHOLE), *SMALL).out


def test_json_on_stdout_is_alone(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *SMALL, "--json", "-")
    data = json.loads(result.out)
    assert data["schema_version"] == 1
    assert from_json(result.out).target is not None
    assert "VERDICT" in result.err
    assert not (tmp_path / "reports/job.json").exists()


def test_json_on_stdout_is_alone_though_the_capture_failed(cli, write):
    result = cli("scan", write(RAISING["computing the loss"]), *CAPTURE_ONLY, "--json", "-")
    refused(result, "user-code", 3)
    assert json.loads(result.out)["capture"]["steps"] == 1


NOISY = (
    "import os, sys\nprint('at import')\n"
    + WHOLE.replace("    return model(batch)", "    print('in the loss')\n    return model(batch)")
    + "def evaluate(model):\n    sys.stdout.write('in the metric')\n    return 1.0\n"
)


def test_a_target_that_prints_does_not_spoil_the_json_on_stdout(cli, write):
    result = cli("scan", write(NOISY), *SMALL, "--json", "-")
    assert json.loads(result.out)["schema_version"] == 1
    assert "at import" in result.err
    assert "in the loss" in result.err


def test_a_target_whose_children_print_does_not_spoil_the_json_on_stdout(tmp_path, write):
    path = write("import os\nos.system('echo from a child')\nos.write(1, b'past python')\n" + WHOLE)
    result = in_process_of_its_own("scan", path, *CAPTURE_ONLY, "--json", "-", cwd=tmp_path)
    assert json.loads(result.out)["schema_version"] == 1
    assert "from a child" in result.err


def test_the_jsons_place_may_be_chosen_and_its_folder_is_made(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "new/deep/run.json", "--html", "pages/run.html")
    assert result.code == 0, result.err
    assert saved(tmp_path / "new/deep/run.json")["target"]["name"] == "job"
    assert (tmp_path / "pages/run.html").is_file()
    assert not (tmp_path / "reports").exists()


def test_a_relative_out_that_is_not_there_yet_is_made(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--out", "a/b/c")
    assert result.code == 0, result.err
    assert {p.name for p in (tmp_path / "a/b/c").iterdir()} == {"job.html", "job.json"}


def test_a_second_scan_replaces_the_first(cli, write, tmp_path):
    path = write(WHOLE)
    assert cli("scan", path, *CAPTURE_ONLY).code == 0
    assert cli("scan", path, *CAPTURE_ONLY, "--seed", "7").code == 0
    assert saved(tmp_path / "reports/job.json")["capture"]["seed"] == 7


def test_a_target_that_changes_the_working_folder_does_not_move_the_results(cli, write, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    result = cli("scan", write(f"import os\nos.chdir({str(tmp_path / 'elsewhere')!r})\n" + WHOLE), *CAPTURE_ONLY)
    assert result.code == 0, result.err
    assert (tmp_path / "reports/job.json").is_file()


def test_module_and_attribute_is_a_target(cli, write, tmp_path):
    write(WHOLE.replace("build_model", "tiny"), "package_of_mine/jobs.py")
    result = cli("scan", "package_of_mine.jobs:tiny", *CAPTURE_ONLY)
    assert result.code == 0, result.err
    names = {p.name for p in (tmp_path / "reports").iterdir()}
    assert names == {"package_of_mine.jobs-tiny.json", "package_of_mine.jobs-tiny.html"}


def test_file_and_attribute_is_a_target(cli, write, tmp_path):
    text = WHOLE + "def other():\n    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))\n"
    result = cli("scan", f"{write(text)}:other", *CAPTURE_ONLY)
    assert result.code == 0, result.err
    (data,) = (tmp_path / "reports").glob("*.json")
    assert saved(data)["target"]["parameters"] == 13


def test_two_models_of_one_file_have_reports_of_their_own(cli, write, tmp_path):
    path = write(WHOLE + "def other():\n    return nn.Linear(2, 5)\n")
    for name in ("build_model", "other"):
        assert cli("scan", f"{path}:{name}", *CAPTURE_ONLY).code == 0
    assert len(list((tmp_path / "reports").glob("*.json"))) == 2


@pytest.mark.parametrize("name", ["my model.py", "modèle-漢字.py", "a'b\"c.py", "-dash.py", "x.y.z.py", "[red].py"])
def test_spaces_and_unicode_in_a_path_are_nothing_special(cli, write, tmp_path, name):
    path = write(WHOLE, f"a folder with ünïcode/{name}")
    result = cli("scan", path, *CAPTURE_ONLY)
    assert result.code == 0, result.err
    (data,) = (tmp_path / "reports").glob("*.json")
    assert saved(data)["target"]["source"] == str(path)
    assert data.name in result.out.replace("\n", "")
    assert cli("report", data).code == 0


def test_include_and_exclude_choose_the_tensors(cli, write, tmp_path):
    path = write(WHOLE.replace("nn.Linear(2, 1)", "nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))"))

    def seen(*options: str) -> set[str]:
        result = cli("scan", path, *CAPTURE_ONLY, "--fail-on", "never", *options)
        assert result.code == 0, result.err
        return {t["name"] for t in saved(tmp_path / "reports/job.json")["capture"]["tables"]}

    everything = {"0", "1", "2", "0.weight", "0.bias", "2.weight", "2.bias", "Sequential"}
    assert seen() | {"Sequential"} == everything
    assert seen("--include", "0.*") == {"0.weight", "0.bias"}
    assert seen("--include", "0*", "--include", "2.bias") == {"0", "0.weight", "0.bias", "2.bias"}
    assert seen("--include", "*.*", "--exclude", "*.bias") == {"0.weight", "2.weight"}


def test_a_pattern_that_matches_nothing_is_not_a_clean_bill_of_health(cli, write, tmp_path):
    result = cli("scan", write(FAILS), *CAPTURE_ONLY, "--include", "typo.*")
    assert OURS not in result.err, result.err
    assert result.code in (2, 3), "no tensor was looked at, so nothing can be said to be fine"


# exit codes


@pytest.mark.parametrize(
    ("text", "fail_on", "code"),
    [
        (WHOLE, "error", 0),
        (WHOLE, "never", 0),
        (WARNS, "error", 0),
        (WARNS, "warning", 1),
        (WARNS, "never", 0),
        (FAILS, "error", 1),
        (FAILS, "warning", 1),
        (FAILS, "never", 0),
    ],
)
def test_the_exit_code_follows_the_findings(cli, write, tmp_path, text, fail_on, code):
    result = cli("scan", write(text), *CAPTURE_ONLY, "--fail-on", fail_on)
    found = {f["severity"] for f in saved(tmp_path / "reports/job.json")["advice"]["findings"]}
    wanted = {WHOLE: set(), WARNS: {"warning"}, FAILS: {"error"}}[text]
    assert found - {"info"} >= wanted
    assert result.code == code, (found, result.err)


def test_a_verification_that_cannot_tell_gives_three_unless_told_never(cli, write):
    path = write(WHOLE)
    assert cli("scan", path, *SMALL).code == 3  # one seed gives no interval
    assert cli("scan", path, *SMALL, "--fail-on", "never").code == 0
