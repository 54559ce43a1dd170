"""A file that keeps state between runs: FP32 that does not repeat itself decides nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import report_samples as samples
from arm_samples import SCALE, judged, trial
from mpdiag.advice.format_choice import choose_format
from mpdiag.api import ScanOptions, scan
from mpdiag.diagnosis import Advice, SelfTest, Verification
from mpdiag.verify import verdict
from mpdiag.verify.repeat import ANOTHER_ORDER, KEEPS_STATE, strays

FIRST = trial("fp32", 0, [1.0] * 4, 0.5)
MARGINS = (judged("fp16", "equivalent"), judged("fp16", "equivalent", "accuracy", margin=0.01))


@pytest.mark.parametrize(
    ("loss", "accuracy", "told"),
    [
        (1.04, 0.5, None),
        (1.06, 0.5, "loss"),
        (0.94, 0.5, "loss"),
        (1.0, 0.48, "accuracy"),
        (math.nan, 0.5, "loss"),
    ],
)
def test_a_second_run_beyond_a_margin_strays(loss, accuracy, told):
    again = replace(FIRST, losses=(1.0, 1.0, loss, loss), metric={"accuracy": accuracy})
    found = strays(replace(FIRST, metric={"accuracy": 0.5}), again, MARGINS)
    assert (found is None) == (told is None)
    assert told is None or f"from its first run in {told} (margin" in found


def test_a_second_run_that_fails_is_told_by_its_error_and_not_by_where_it_stood():
    again = replace(FIRST, steps=2, losses=(1.0, 9.0), error="RuntimeError: used up")
    told = "FP32 trained again after the other arms fails at step 3: RuntimeError: used up"
    assert strays(FIRST, again, MARGINS) == told


@pytest.mark.parametrize(
    ("unchanged", "why"),
    [(True, ANOTHER_ORDER), (False, ANOTHER_ORDER), (None, KEEPS_STATE)],
    ids=["repeats under deterministic algorithms", "though the probe disturbs it", "never repeats"],
)
def test_the_cause_is_told_by_whether_deterministic_algorithms_make_it_repeat(unchanged, why):
    runs = (FIRST, replace(FIRST, arm="fp16"))
    found = Verification(runs, MARGINS, "go", "", strays="FP32 ends 0.2 away", train_with="fp16")
    again = verdict.judged(found, Advice("FP16", SCALE, ()), SelfTest(unchanged, 2, 0.0, 0.1))
    assert (again.verdict, again.reason, again.train_with) == ("inconclusive", f"FP32 ends 0.2 away: {why}", None)


COUNTING = """
import torch
STEP = 0
def build_model(): return torch.nn.Linear(4, 2)
def train_batches():
    while True:
        x = torch.randn(16, 4)
        yield x, (x.sum(1) > 0).long()
def compute_loss(model, batch):
    global STEP
    STEP += {by}
    y = model(batch[0])
    return torch.nn.functional.cross_entropy(y, batch[1]) + min(1.0, STEP / 500) * ((y - 2) ** 2).mean()
"""


def test_a_weight_that_grows_with_every_call_is_no_fault_of_fp16(tmp_path):
    path = tmp_path / "annealed.py"
    path.write_text(COUNTING.format(by=1))
    found = scan(str(path), ScanOptions(steps=3, verify_steps=20, seeds=2, device="cpu")).verification
    assert (found.verdict, found.train_with) == ("inconclusive", None)
    assert found.reason.startswith("FP32 trained again after the other arms ends ")
    assert "count steps in the model" in found.reason


def test_a_job_that_repeats_itself_trains_fp32_once_a_seed(tmp_path):
    path = tmp_path / "steady.py"
    path.write_text(COUNTING.format(by=0))
    lines = []
    options = ScanOptions(steps=3, verify_steps=5, seeds=1, device="cpu")
    found = scan(str(path), options, report=lines.append).verification
    assert "trained again" not in found.reason
    assert not any("fp32 again" in line for line in lines)


def test_no_format_is_ruled_out_by_runs_that_could_not_be_compared():
    full = samples.full()
    worse = tuple(replace(c, verdict="worse") for c in full.verification.comparisons if not c.is_ratio)
    told = replace(full.verification, comparisons=worse, train_with=None)
    said = lambda run: {o.format: o.why for o in choose_format(full.environment, full.advice, run).options}["FP16"]
    assert "falls behind FP32" in said(told)
    assert "trained here, undecided" in said(replace(told, strays="FP32 ends 0.2 away"))
