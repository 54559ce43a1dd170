"""reports/README.md and the scans' pages: what follows from the runs is made anew, and told with when and where."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import evidence_index
import report_samples as samples
from judged_again import judged_again
from mpdiag.arm_names import BASELINE
from mpdiag.diagnosis import Diagnosis, Finding, SelfTest, Verification
from mpdiag.verify.repeat import ANOTHER_ORDER, KEEPS_STATE
from mpdiag.verify.run import VerificationRun
from paper_samples import line, row_of

STALE = Finding(
    "MP608", "controls-did-not-fail", "info", "the verification",
    "fp16-unscaled and fp16-pure did not fall behind FP32 in 100 steps", {"steps": 100, "controls": 2},
    "verify over more steps", "mpdiag scan model.py --verify-steps 1000\n",
)  # fmt: skip


def run_of(d: Diagnosis) -> Verification:
    assert d.verification is not None
    return d.verification


def codes(d: Diagnosis) -> list[str]:
    assert d.advice is not None
    return [finding.code for finding in d.advice.findings]


def with_runs(**of_pure: object) -> Diagnosis:
    """Three seeds in which FP16 and FP16 without a scale equal FP32, with a finding of an older version.

    of_pure: what the comparison of pure FP16 has other than an equal loss.
    """
    arms = (BASELINE, "fp16", "fp16-unscaled", "fp16-pure")
    trials = tuple(samples.run_of(arm, seed) for seed in range(3) for arm in arms)
    compared = (*(samples.comparison(arm) for arm in arms[1:3]), samples.comparison(arms[3], **of_pure))
    made = samples.full()
    assert made.advice is not None
    advice = replace(made.advice, findings=(*made.advice.findings, STALE))
    return replace(made, advice=advice, verification=replace(run_of(made), trials=trials, comparisons=compared))


def test_a_finding_of_the_runs_is_replaced_and_stands_once():
    found = judged_again(with_runs())
    assert codes(found).count("MP608") == 1
    assert found.advice is not None
    made = next(finding for finding in found.advice.findings if finding.code == "MP608")
    assert "--verify-steps 1000" not in made.snippet
    assert made.evidence["steps"] == 4


def test_a_control_that_broke_is_not_said_to_have_kept_up():
    broke = {"verdict": "worse", "difference": None, "reason": "not finite at step 2 of seed 0, while FP32 is"}
    found = judged_again(with_runs(**broke))
    assert [(c.arm, c.failed, c.broke) for c in run_of(found).controls] == [
        ("fp16-unscaled", False, False), ("fp16-pure", None, True),
    ]  # fmt: skip
    assert found.advice is not None
    said = next(finding.message for finding in found.advice.findings if finding.code == "MP608")
    assert said.startswith("fp16-unscaled did not fall behind")


def test_judging_again_what_was_judged_again_changes_nothing():
    for made in (with_runs(), samples.on_gpu(), samples.full(), samples.minimal()):
        once = judged_again(made)
        assert judged_again(once) == once


def test_what_the_runs_left_is_kept():
    made = samples.on_gpu()
    found = judged_again(made)
    assert (found.capture, found.created, found.elapsed_seconds) == (made.capture, made.created, made.elapsed_seconds)
    quality = [[c for c in run_of(d).comparisons if not c.is_ratio] for d in (made, found)]
    assert quality[0] == quality[1]
    assert [t.losses for t in run_of(found).trials] == [t.losses for t in run_of(made).trials]
    assert run_of(found).costs == run_of(made).costs


def test_ratios_of_costs_are_made_of_what_was_measured():
    made = samples.on_gpu()
    run = run_of(made)
    wrong = tuple(replace(c, difference=99.0) if c.is_ratio and c.difference else c for c in run.comparisons)
    found = judged_again(replace(made, verification=replace(run, comparisons=wrong)))
    assert run_of(found).comparisons == run_of(judged_again(made)).comparisons
    assert not any(c.difference == 99.0 for c in run_of(found).comparisons)


def stopped_reason() -> str:
    """What an interrupted verification says of itself."""
    job: Any = SimpleNamespace(margins={}, better=True)
    return VerificationRun(job, samples.full().advice, torch.device("cpu")).record(interrupted=True).reason  # type: ignore[arg-type]


APART = "FP32 trained again after the other arms ends 0.2 from its first run in loss (margin 0.1)"


def test_runs_that_could_not_be_compared_stay_so_and_are_told_the_cause_anew():
    made = with_runs()
    left = replace(run_of(made), verdict="inconclusive", reason=f"{APART}: {KEEPS_STATE}", train_with=None)
    capture = replace(made.capture, selftest=SelfTest(True, 2, 0.0, 0.1))  # under deterministic algorithms it repeats
    found = run_of(judged_again(replace(made, capture=capture, verification=left)))
    assert (found.verdict, found.reason, found.train_with) == ("inconclusive", f"{APART}: {ANOTHER_ORDER}", None)
    assert run_of(judged_again(replace(made, verification=found))).strays == APART


@pytest.mark.parametrize("why", [stopped_reason()])
def test_runs_that_were_stopped_keep_their_verdict(why):
    made = with_runs()
    left = replace(run_of(made), verdict="inconclusive", reason=why, train_with=None)
    found = run_of(judged_again(replace(made, verification=left)))
    assert (found.verdict, found.reason, found.train_with) == ("inconclusive", why, None)
    other = run_of(judged_again(replace(made, verification=replace(left, reason="as an older version said"))))
    assert "as an older version said" not in other.reason


# the index

COLUMNS = ("report", "on", "when", "command", "took", "verdict")
SECONDS = {"capture": 2.0, "selftest": 1.0, "prediction": 10.0, "verify": 60.0, "build": 4.0}


def scan(created: str = "2026-11-22T13:00:00+00:00", **more: object) -> Diagnosis:
    return replace(samples.full(), created=created, elapsed_seconds=SECONDS, **more)  # type: ignore[arg-type]


def index(**scans: Diagnosis) -> str:
    return evidence_index.index_page(scans, {"harness": "what the loop costs."}, paper=True)


def test_a_scan_has_one_machine_one_date_and_all_of_its_stages():
    row = row_of(index(a=scan()), "| [a]", COLUMNS)
    assert row["on"].startswith("NVIDIA H100 80GB HBM3, driver")
    assert (row["when"], row["took"]) == ("2026-11-22T13:00:00+00:00", "77 s")


def test_what_was_finished_elsewhere_tells_both_machines_dates_and_times():
    laptop = samples.environment(gpu=None)
    done = scan(captured_on=laptop, verified="2026-11-22T14:00:00+00:00")
    row = row_of(index(a=done), "| [a]", COLUMNS)
    assert row["on"].startswith("verified on NVIDIA H100")
    assert "; scanned on a CPU, torch" in row["on"]
    assert row["when"] == "scanned 2026-11-22T13:00:00+00:00; verified 2026-11-22T14:00:00+00:00"
    assert row["took"] == "scanning 3 s, verifying 74 s"
    older = row_of(index(a=replace(done, verified=None)), "| [a]", COLUMNS)
    assert older["when"].endswith("verified at a time that its record does not tell")


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (scan("2026-11-22T13:01:00+00:00"), True),
        (scan("2026-11-22T12:59:00+00:00"), True),
        (scan("2026-11-22T13:02:00+00:00"), False),
        (scan("2026-11-22T13:01:00+00:00", environment=samples.environment(gpu=None)), False),
        (scan(captured_on=samples.environment(gpu=None)), False),
        (scan("2026-11-22T01:00:00+00:00", verified="2026-11-22T13:00:30+00:00"), True),
    ],
    ids=["began within", "ended within", "after", "another machine", "no date", "verified within"],
)
def test_scans_that_ran_side_by_side_are_named(other, together):
    said = line(index(a=scan(), b=other).replace("GPU it had.", "\nGPU it had."), "GPU it had.")
    assert ("By their times these did: a and b." in said) == together


def test_the_index_lists_the_pages():
    text = index(a=scan())
    assert "- [harness.md](harness.md): what the loop costs." in text
    assert "paper.md" in text
