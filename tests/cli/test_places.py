"""Where results go: places that cannot be written, foreign files in the way, links, modes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cli_samples import CAPTURE_ONLY, SMALL, WHOLE, finished, refused_at_once, saved, started


@pytest.mark.parametrize("option", ["--out", "--json", "--html"])
def test_a_place_below_a_file_is_refused_before_any_work(cli, write, option):
    write("a file", "plain")
    result = cli("scan", write("import os\nos._exit(9)\n"), "--no-verify", option, "plain/below")
    refused_at_once(result, "output-not-writable")
    assert "plain/below" in result.error


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_a_place_in_proc_is_refused(cli, write):
    refused_at_once(cli("scan", write(WHOLE), *SMALL, "--out", "/proc/mpdiag"), "output-not-writable")


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_an_output_that_is_a_folder_is_refused(cli, write, tmp_path, option):
    (tmp_path / "folder").mkdir()
    result = cli("scan", write(WHOLE), *SMALL, option, "folder")
    refused_at_once(result, "output-not-writable")
    assert "is a folder" in result.error


@pytest.mark.parametrize("name", ["job.json", "job.html"])
def test_a_foreign_file_in_the_way_is_left_as_it_is(cli, write, name):
    foreign = write('{"mine": true}' if name.endswith("json") else "<p>mine</p>", f"reports/{name}")
    before = foreign.read_bytes()
    result = cli("scan", write(WHOLE), *SMALL)
    refused_at_once(result, "output-exists")
    assert foreign.read_bytes() == before


def test_a_foreign_json_that_also_has_a_creation_date_is_left_as_it_is(cli, write):
    foreign = write('{"created": "2020-01-01", "precious": [1, 2, 3]}', "reports/job.json")
    refused_at_once(cli("scan", write(WHOLE), *SMALL), "output-exists")
    assert "precious" in foreign.read_text("utf-8")


def test_a_page_that_only_mentions_us_is_left_as_it_is(cli, write):
    foreign = write("<p>my notes on mpdiag</p>", "reports/job.html")
    refused_at_once(cli("scan", write(WHOLE), *SMALL), "output-exists")
    assert "my notes" in foreign.read_text("utf-8")


def test_a_foreign_file_that_was_named_is_replaced(cli, write, tmp_path):
    write("mine", "chosen.json")
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "chosen.json").code == 0
    assert saved(tmp_path / "chosen.json")["target"]["name"] == "job"


def test_json_and_page_may_not_be_one_file(cli, write, tmp_path):
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "same", "--html", "same")
    assert result.code == 2, "one of the two results was overwritten by the other"
    assert not (tmp_path / "same").exists()


def test_the_target_itself_is_never_overwritten(cli, write):
    path = write(WHOLE)
    for option in ("--json", "--html"):
        cli("scan", path, *CAPTURE_ONLY, option, path)
        assert path.read_text("utf-8") == WHOLE


def test_results_are_readable_by_others_as_the_umask_says(cli, write, tmp_path):
    before = os.umask(0o022)
    try:
        cli("scan", write(WHOLE), *CAPTURE_ONLY)
    finally:
        os.umask(before)
    assert (tmp_path / "reports/job.json").stat().st_mode & 0o777 == 0o644


def test_an_output_that_is_a_link_stays_one(cli, write, tmp_path):
    write("", "real/store.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "real/store.json")
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "link.json").code == 0
    assert (tmp_path / "link.json").is_symlink()
    assert saved(tmp_path / "real/store.json")["target"]["name"] == "job"


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_what_is_no_regular_file_is_not_replaced_by_one(write, tmp_path, option):
    os.mkfifo(tmp_path / "pipe")  # stands for /dev/null and its like, which a test must never name as an output
    process = started("scan", write(WHOLE), *CAPTURE_ONLY, option, "pipe", cwd=tmp_path)
    result = finished(process, seconds=8)
    assert (tmp_path / "pipe").is_fifo()
    refused_at_once(result, "output-not-writable")
