"""The benchmarks' pages say no more than their records hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import count_kernel
import loss_scale_reach
import made_on
import pages
from paper_samples import line, row_of

ROOT = Path(__file__).resolve().parents[2]
ON_H100 = {"gpu": "NVIDIA H100", "driver": "580.1", "torch": "2.11.0"}


def saved(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "reports" / f"{name}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_says_where_and_when_its_record_was_made(name):
    page_of, _ = pages.PAGES[name]
    record = saved(name)
    machine = record["environment"]
    assert f"{machine['gpu']}, driver {machine['driver']}, torch {machine['torch']}" in page_of(record)
    assert "(2026-11-22T20:00:00+00:00)" in page_of({**record, "created": "2026-11-22T20:00:00+00:00"})
    undated = {key: value for key, value in record.items() if key != "created"}
    assert f"({made_on.UNDATED})" in page_of(undated)


def test_a_record_begins_with_its_command_its_date_and_its_machine():
    made = made_on.origin("python x.py", torch.device("cpu"))
    assert list(made) == ["command", "created", "environment"]
    assert "a CPU, " in made_on.made_on(made, ", a rehearsal")
    assert made_on.made_on(made, ", a rehearsal").endswith(
        f", a rehearsal, torch {torch.__version__} ({made['created']})"
    )


# the loss scale


def policy(name: str, lost: list[float | None]) -> dict[str, Any]:
    """lost: at each checkpoint; None where the gradients overflow."""
    points = [
        {"step": 1, "overflowed": 3} if x is None else {"step": 1, "share_lost": x, "energy_lost": x} for x in lost
    ]
    made = {"job": "a", "seed": 0, "policy": name, "skipped_after_first": 0, "nonfinite_losses": 0, "settled": 0}
    return {**made, "lost": points, "final_loss": 1.0, "skipped": 0, "first_log2_scale": 1.0, "final_log2_scale": 1.0}


def means(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [found for found in loss_scale_reach.reach(list(rows)) if found["what"].startswith("share_lost, mean")]


def test_the_mean_stands_once_by_the_rule_of_the_runs_and_once_by_the_later_one():
    left_out, counted = means(policy("mpdiag", [0.25, 0.25]), policy("high", [0.125, None]))
    assert loss_scale_reach.LEFT_OUT in left_out["what"]
    assert (left_out["measured"], left_out["met"]) == (2.0, False)
    assert left_out["misses"] == ["2.50e-01 against 1.25e-01"]
    assert loss_scale_reach.COUNTED in counted["what"]
    assert (counted["measured"], counted["met"]) == (pytest.approx(0.25 / 0.5625), True)


def test_a_policy_that_overflows_everywhere_is_best_of_none_and_measured_against_none():
    left_out, counted = means(policy("mpdiag", [0.25]), policy("high", [None]))
    assert "(mpdiag)" in left_out["what"]
    assert (left_out["measured"], counted["measured"]) == (1.0, 0.25)
    nothing, _ = means(policy("mpdiag", [None]), policy("high", [0.5]))
    assert (nothing["met"], nothing["misses"]) == (False, ["no checkpoint"])


def test_the_page_tells_both_rules_which_came_later_and_who_overflowed():
    record = {"command": "x", "environment": ON_H100, "steps": 9, "jobs": {}, "policies": {}, "cut": []}
    fp32 = {key: value for key, value in policy("fp32", []).items() if key != "lost"}
    record["rows"] = [fp32, policy("mpdiag", [0.25]), policy("high", [None])]
    text = pages.PAGES["loss_scale"][0]({**record, "reach": []})
    assert 'was set as "those at which gradients overflow left out"' in text
    assert "was added after these runs" in text
    assert "Checkpoints with an overflow: high 1." in text
    assert "after the first runs" in pages.PAGES["loss_scale"][0](record)


def test_the_record_in_the_repository_says_by_its_own_rule_what_it_wrote_when_it_ran():
    record = saved("loss_scale")
    then = {each["what"].partition(",")[0]: each for each in record.get("reach", []) if ", mean" in each["what"]}
    now = [each for each in loss_scale_reach.reach(record["rows"]) if loss_scale_reach.LEFT_OUT in each["what"]]
    for each in now if then else []:
        old = then[each["what"].partition(",")[0]]
        assert (each["measured"], each["met"]) == (pytest.approx(old["measured"]), old["met"])


# what is foretold


def forecast(**more: Any) -> dict[str, Any]:
    worst = [{"error_points": 5.0, "observed_overflow": 0.0}, {"error_points": 90.0, "observed_overflow": 1.0}]
    errors = {"median_error_points": 0.0, "p95_error_points": 0.5}
    alone = {"alone_median_error_points": 0.0, "alone_p95_error_points": 49.6}
    shown = {"kind": "tiny", "comparisons": 9, "noise": 1, "largest_observed_underflow": 1.0, "overflow_missed": []}
    return {**shown, **errors, **alone, "worst": worst, **more}


def prediction(*rows: dict[str, Any]) -> str:
    record = {"command": "x", "environment": ON_H100, "steps": 100, "log2_scales": [0, 10], "rows": list(rows)}
    return str(pages.PAGES["prediction"][0](record))


COLUMNS = (
    "kind", "comparisons", "noise", "median", "95 %", "worst", "alone: median", "alone: 95 %", "lost", "overflow",
)  # fmt: skip


def test_the_counts_alone_are_told_as_the_rounded_pass_is():
    text = prediction(forecast(overflowed=0))
    row = row_of(text, "| tiny", COLUMNS)
    assert (row["95 %"], row["worst"], row["alone: 95 %"]) == ("0.500", "5.000", "49.600")
    assert "With the rounded pass, 1 of 1 kinds" in text
    assert "By the counts alone, 0 of 1 kinds" in text
    assert "others: tiny 49.600." in text
    assert "foretold from one FP32 step" not in text
    assert "Comparisons: with those" not in text


def test_a_kind_of_which_nothing_was_compared_is_within_no_limit():
    none = dict.fromkeys(("median_error_points", "p95_error_points", "alone_median_error_points"))
    text = prediction(forecast(**none, worst=[]))
    assert row_of(text, "| tiny", COLUMNS)["median"] == "none compared"
    assert "With the rounded pass, 0 of 1 kinds" in text
    assert "Comparisons: with those that overflow broke" in text


# the counting kernel


def kernel_row(mebibytes: int, kernel: float, **more: Any) -> dict[str, Any]:
    made = {"MiB": mebibytes, "dtype": "float16", "input": "gradients", "sum_gb_s": 1000.0, "amax_gb_s": 900.0}
    return {**made, "kernel_gb_s": kernel, **more}


def kernel(*rows: dict[str, Any]) -> str:
    record = {"command": "x", "environment": ON_H100, "counted_by": "CUDA kernel", "rows": list(rows)}
    return str(pages.PAGES["count_kernel"][0](record))


def test_nothing_that_the_kernel_exceeds_is_called_a_ceiling():
    text = kernel(kernel_row(1024, 500.0), kernel_row(4, 1400.0))
    assert "It is no ceiling: the kernel reads faster in 1 of 2 rows, of 4 MiB and less." in text
    assert text.count("ceiling") == 1
    assert "From 64 MiB on, kernel / torch: float16 gradients 0.50." in text
    assert "This record is older than that measurement." in text
    assert line(text, "| 4 |").split("|")[6].strip() == "1.40"


def test_the_share_of_a_copy_is_told_where_it_was_measured():
    text = kernel(kernel_row(256, 500.0, copy_gb_s=2000.0), kernel_row(4, 1400.0))
    assert line(text, "| 256 |").endswith("| 2000 | 0.25 |")
    assert line(text, "| 4 |").endswith("|  |  |")
    assert "older than that measurement" not in text


def test_the_inputs_are_as_the_page_says_they_are(monkeypatch):
    monkeypatch.setattr(count_kernel, "GPU", torch.device("cpu"))
    torch.manual_seed(0)
    for kind, least, rare in (("gradients", 0.85, 0.25), ("wide", 0.5, 0.08)):
        half = count_kernel.INPUTS[kind](2**20).half().abs()
        subnormal = (half > 0) & (half < 2.0**-14)
        outside = (subnormal | half.isinf()).view(-1, 8).any(1).float().mean().item()
        assert least < outside < 0.9
        assert subnormal.float().mean().item() == pytest.approx(rare, abs=0.03)
