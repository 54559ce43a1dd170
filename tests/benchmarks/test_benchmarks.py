"""The benchmarks' own arithmetic and their pages: what they say of blocks, and that older records can still be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import capture_rows
import harness
import loss_scale_reach
import pages
from mpdiag.verify.block_ratio import ratio_interval

ROOT = Path(__file__).resolve().parents[2]

ON_H100 = {"gpu": "NVIDIA H100", "driver": "580.1", "torch": "2.11.0"}


# what observing costs


def block(ms: float) -> capture_rows.Block:
    return capture_rows.Block(ms, 100 * 2**20, 7.0, (3, 1000), None)


def captured(bare: list[float], arm: list[float | None], name: str = "mpdiag_no_updates") -> list[dict[str, Any]]:
    rounds = [
        {"none": block(a)} | ({} if b is None else {name: block(b)}) for a, b in zip(bare, arm, strict=True)
    ]  # fmt: skip
    who = {"model": "gpt2", "subject": "tokens"}
    return [{**who, "arm": arm, "what": arm, **capture_rows.summarized(arm, rounds)} for arm in ("none", name)]


def capture_record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"command": "python capture.py", "environment": ON_H100, "rows": rows, "targets": [{}]}


def test_the_interval_of_what_observing_costs_is_that_of_the_reports():
    row = captured([100.0, 101.0, 99.0], [104.0, 109.0, 105.0])[1]
    assert row["interval_95"] == ratio_interval([1.04, 109 / 101, 105 / 99])
    low, high = row["interval_95"]
    assert low < row["smallest_ratio"]  # three blocks say less than all of what they span
    assert high > row["largest_ratio"]


def test_a_round_in_which_an_arm_took_no_part_is_left_out_of_its_ratios():
    row = captured([100.0, 50.0, 100.0, 80.0], [None, 60.0, 110.0, 88.0])[1]
    bare = {"block_ms": [100.0, 50.0, 100.0, 80.0]}
    assert row["in_rounds"] == [1, 2, 3]
    assert capture_rows.paired_ratios(row, bare) == pytest.approx([1.2, 1.1, 1.1])


def test_blocks_of_older_records_are_paired_by_how_many_there_are_and_only_where_their_ratio_agrees():
    bare = {"block_ms": [100.0, 50.0, 100.0, 80.0, 90.0]}
    slow = {"block_ms": [200.0, 200.0, 270.0], "ratio": (2 * 2 * 3) ** (1 / 3)}
    assert capture_rows.paired_ratios(slow, bare) == pytest.approx([2.0, 2.0, 3.0])
    assert capture_rows.paired_ratios(slow | {"ratio": 2.2}, bare) is None
    assert capture_rows.paired_ratios(slow | {"block_ms": [200.0, 200.0]}, bare) is None


def test_a_page_of_an_older_record_has_the_wider_interval_and_is_judged_by_it():
    rows = captured([100.0, 100.0, 100.0], [104.0, 104.0, 106.8])
    for row in rows:
        del row["in_rounds"]
    rows[1]["interval_95"] = [1.040, 1.049]  # as the narrow bootstrap had it: within the limit of 1.05
    text = pages.capture_page(capture_record(rows))
    assert "| 1.049 | 1.010 to 1.090 | 1.040 to 1.068 |" in text
    assert "| step time ratio | 1.050 | 1.049 | open |" in text


def test_fewer_than_three_rounds_have_no_interval_and_decide_nothing():
    rows = captured([100.0, 100.0], [101.0, 101.0])
    assert rows[1]["interval_95"] is None
    assert capture_rows.judged(rows)[0]["verdict"] == "open"


def test_the_record_in_the_repository_can_still_be_read():
    record = json.loads((ROOT / "reports" / "capture.json").read_text(encoding="utf-8"))
    again = capture_rows.with_intervals(record["rows"])
    assert [row["interval_95"] is None for row in again] == [row["rounds"] < 3 for row in again]
    assert pages.capture_page(record).count("\n| ") > len(record["rows"])


# the loop


def test_the_file_may_stand_anywhere_among_the_words():
    for words in (["a.json", "--rounds", "4"], ["--rounds", "4", "a.json"]):
        asked = harness.arguments(words)
        assert (asked.out, asked.rounds) == (Path("a.json"), 4)
    assert harness.arguments([]).rounds == 10


@pytest.mark.parametrize("words", [["--rounds", "2"], ["--only", "VGG"], ["--round", "x"], ["a.json", "b.json"]])
def test_words_that_cannot_be_met_end_before_anything_is_measured(words, capsys):
    with pytest.raises(SystemExit) as ended:
        harness.arguments(words)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.fixture
def rehearsed(tmp_path, monkeypatch) -> tuple[dict[str, Any], list[tuple[str, ...]]]:
    """The record of a rehearsal of four rounds, and the orders it took."""
    taken: list[tuple[str, ...]] = []

    def turns(names: list[str], rounds: int) -> tuple[tuple[str, ...], ...]:
        taken.extend(turns_of(names, rounds))
        return tuple(taken[-rounds:])

    turns_of = harness.turns_of
    monkeypatch.setattr(harness, "turns_of", turns)
    out = tmp_path / "harness.json"
    harness.main(["--small", "--rounds", "4", "--only", "ResNet-50", str(out)])
    return json.loads(out.read_text(encoding="utf-8")), taken


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_a_rehearsal_without_a_gpu_measures_time_and_says_why_not_memory(rehearsed):
    record, taken = rehearsed
    assert [row["precision"] for row in record["rows"]] == ["FP32", "FP16"]
    for row in record["rows"]:
        assert {name: len(times) for name, times in row["blocks_ms"].items()} == dict.fromkeys(row["blocks_ms"], 4)
        assert (row["peak_bytes"], row["memory_not_measured"]) == (None, harness.NO_CPU_MEMORY)
    assert {order.index("by hand") for order in taken} == {0, 1, 2}  # not always in the middle
    text = pages.harness_page(record)
    assert "Memory: not measured: torch keeps no peak of CPU memory." in text


def test_a_peak_is_that_of_warm_steps_alone(monkeypatch):
    held = {"now": 5, "peak": 900}
    fakes = {
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": lambda device: held.update(peak=held["now"]),
        "max_memory_allocated": lambda device: held["peak"],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    steps: list[int] = []

    def step() -> None:
        steps.append(len(steps))
        held["peak"] = max(held["peak"], held["now"] + 10 * len(steps))

    assert harness.peak_bytes(step, torch.device("cuda", 0)) == 5 + 10 * harness.MEMORY_STEPS
    assert harness.peak_bytes(step, torch.device("cpu")) is None


def timed(**more: Any) -> dict[str, Any]:
    blocks = {"harness": [10.1, 10.1, 10.1], "by hand": [10.0, 10.0, 10.0], "by hand again": [10.0, 10.0, 10.0]}
    return {"subject": "ResNet-50", "precision": "FP16", **harness.summarized(blocks), **more}


def harness_cells(*rows: dict[str, Any]) -> list[list[str]]:
    text = pages.harness_page({"command": "x", "environment": ON_H100, "reach": 1.02, "rows": list(rows)})
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]


def test_a_page_says_time_and_memory_of_both_loops():
    head, _, lean, fat = harness_cells(
        timed(peak_bytes={"by hand": 200 * 2**20, "harness": 201 * 2**20}),
        timed(peak_bytes={"by hand": 200 * 2**20, "harness": 205 * 2**20}),
    )
    assert dict(zip(head, lean, strict=True)) == {
        "job": "ResNet-50", "precision": "FP16", "by hand, ms a step": "10.00",
        "time, mpdiag / by hand": "1.0100 (1.0100 to 1.0100)", "by hand / itself": "1.0000 (1.0000 to 1.0000)",
        "rounds": "3", "by hand, peak MiB": "200.0", "memory, mpdiag / by hand": "1.0050", "within reach": "yes",
    }  # fmt: skip
    assert fat[-2:] == ["1.0250", "no"]


def test_a_record_from_before_memory_was_measured_says_so():
    head, _, row = harness_cells(timed())
    assert len(row) == len(head)
    assert row[-3:] == ["", "", "yes, time alone"]
    text = pages.harness_page({"command": "x", "environment": ON_H100, "reach": 1.02, "rows": [timed(), timed()]})
    assert text.count("Memory: not measured: this record is older than that measurement.") == 1


# the loss scale


def scaled(policy: str, share_lost: float) -> dict[str, Any]:
    lost = [{"step": 1, "share_lost": share_lost, "energy_lost": 0.0}]
    return {
        "job": "a", "seed": 0, "policy": policy, "skipped_after_first": 0, "nonfinite_losses": 0, "lost": lost,
    }  # fmt: skip


def mean_lost(ours: float, theirs: float) -> dict[str, Any]:
    lines = loss_scale_reach.reach([scaled("mpdiag", ours), scaled("fixed", theirs)])
    return next(line for line in lines if line["what"].startswith("share_lost, mean"))


def test_against_a_policy_that_lost_nothing_any_loss_is_without_bound():
    line = mean_lost(0.25, 0.0)
    assert (line["measured"], line["met"]) == (None, False)
    assert line["misses"] == ["2.50e-01 against 0.00e+00"]
    json.dumps(line, allow_nan=False)


def test_against_a_policy_that_lost_something_the_ratio_is_told():
    assert mean_lost(0.25, 0.5)["measured"] == 0.5
    assert mean_lost(0.0, 0.0)["measured"] == 0.0
    assert math.isclose(mean_lost(0.5, 0.25)["measured"], 2.0)
