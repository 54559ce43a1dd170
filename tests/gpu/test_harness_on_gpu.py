"""benchmarks/harness.py with small models: on a GPU it measures both loops' memory too."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_both_loops_have_a_peak_and_ours_is_no_higher_than_reach(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import harness

    out = tmp_path / "harness.json"
    harness.main(["--small", "--rounds", "3", str(out)])
    for row in json.loads(out.read_text(encoding="utf-8"))["rows"]:
        peaks = row["peak_bytes"]
        assert peaks["by hand"] > 0
        assert peaks["harness"] <= harness.REACH * peaks["by hand"] + 2**20, row["subject"]  # small: blocks of 2 MiB
