"""What the text reports say of what was not measured, of the scale, of the findings and of runs that broke."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from mpdiag.diagnosis import NOT_ASKED_FOR, Advice, Comparison, Diagnosis, Finding, LossScaleAdvice
from mpdiag.report.digest import comparison_line, digest_of
from text_samples import NO_GPU, SAMPLES, SCALE, flat, full, on_a_laptop, text, topics

# what was not measured


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_reads_none_or_nan_where_nothing_was_measured(name):
    words = flat(text(SAMPLES[name]())).replace("VERDICT none", "").replace(",", " ").replace(":", " ").split()
    assert not {"None", "nan", "NaN"} & set(words)


def test_costs_that_were_not_measured_have_their_reason_once_and_no_number():
    shown = flat(text(on_a_laptop()))
    assert f"peak memory, step time, tensor-core use, energy: {NO_GPU}" in shown
    assert shown.count(NO_GPU) == 1
    assert "step time 0" not in shown
    assert "peak memory 0" not in shown


def test_a_job_without_a_metric_says_why_there_is_none():
    reason = "the target defines no evaluate(model)"
    diagnosis = on_a_laptop()
    trials = tuple(
        replace(t, metric=None, not_measured={**t.not_measured, "metric": reason})
        for t in diagnosis.verification.trials
    )
    shown = flat(text(replace(diagnosis, verification=replace(diagnosis.verification, trials=trials))))
    assert f"metric: {reason}" in shown


def test_a_self_test_that_was_not_made_says_why():
    assert "bit-identity not tested: the scan was interrupted" in flat(text(samples.minimal()))


def test_a_self_test_passed_under_deterministic_algorithms_says_so():
    diagnosis, reason = full(), "under deterministic algorithms: without them the job differs from itself"
    test = replace(diagnosis.capture.selftest, unchanged=True, reason=reason)
    shown = flat(text(replace(diagnosis, capture=replace(diagnosis.capture, selftest=test))))
    assert f"the probe left the training bit-identical ({reason})" in shown
    assert "bit-identical (" not in flat(text(full()))


@pytest.mark.parametrize(
    ("steps", "kept", "words"), [(1, 1, "1 FP32 step · 1 tensor · "), (2, 3, "2 FP32 steps · 3 tensors · ")]
)
def test_one_is_written_without_an_s(steps, kept, words):
    seen = full().capture
    diagnosis = replace(full(), capture=replace(seen, steps=steps, tables=seen.tables[:kept]))
    assert f"observed {words}the probe" in flat(text(diagnosis))


def unverified(**changes: Any) -> Diagnosis:
    return replace(full(), verification=None, **changes)


def test_a_verification_that_was_not_asked_for_is_no_failure():
    shown = flat(text(unverified(reason=NOT_ASKED_FOR, advice=Advice("FP16", SCALE, ()))))
    assert "VERDICT none: not verified: mixed precision was not run" in shown
    assert "did not end" not in shown
    assert NOT_ASKED_FOR not in shown
    assert "verification: mixed precision was not run" in shown


def test_any_other_reason_is_a_failure():
    shown = flat(text(unverified(reason="stopped by Ctrl-C")))
    assert "VERDICT none: the scan did not end: stopped by Ctrl-C" in shown


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 finding to be mended first"), (2, "2 findings to be mended first")]
)
def test_without_a_verification_the_errors_are_counted(count, words):
    finding = Finding("MP101", "activation-overflow", "error", "fc", "too large", {}, "keep it")
    shown = flat(text(unverified(reason=NOT_ASKED_FOR, advice=Advice("FP16", SCALE, (finding,) * count))))
    assert f"VERDICT none: not verified; {words}" in shown


def test_without_a_scale_nothing_is_said_about_skipped_steps():
    diagnosis = on_a_laptop()
    trials = tuple(replace(t, skipped_steps=None) for t in diagnosis.verification.trials)
    assert "skips" in topics(diagnosis)
    assert "skips" not in topics(replace(diagnosis, verification=replace(diagnosis.verification, trials=trials)))


def test_the_skipped_steps_are_those_of_fp16_alone():
    # three seeds of two steps, one of them skipped each
    assert dict(digest_of(on_a_laptop()).why)["skips"] == "3 of 6 FP16 steps, those of 3 seeds together"


def test_a_probe_that_changed_the_training_is_shouted():
    diagnosis = full()
    test = replace(diagnosis.capture.selftest, unchanged=False, difference=1.25e-7)
    shown = flat(text(replace(diagnosis, capture=replace(diagnosis.capture, selftest=test))))
    assert "THE PROBE CHANGED THE TRAINING by 1.25e-07" in shown


def test_a_missing_loss_scale_says_why_and_shows_no_share():
    reason = "no gradient that is FP16 under autocast was seen"
    none = LossScaleAdvice(None, "none", None, None, {}, None, None, None, None, None, reason)
    shown = flat(text(replace(full(), advice=Advice("FP16", none, ()))))
    assert f"WHY scale {reason}" in shown
    assert "become zero" not in shown
    assert "train with" not in shown


def test_an_impossible_loss_scale_says_why_and_shows_what_is_lost_at_scale_one_only():
    none = replace(SCALE, log2_scale=None, mode="none", lower_log2=18, upper_log2=1, underflow_after=None,
                   energy_lost_after=None, most_lost_after=None, snippet=None,
                   reason="no scale serves all: 2^18 is needed")  # fmt: skip
    lines = digest_of(replace(full(), advice=Advice("FP16", none, ()))).why
    assert lines[0] == ("scale", "no scale serves all: 2^18 is needed")
    assert dict(lines)["underflow"].endswith("become zero at scale 1")
    assert "at 2^" not in dict(lines)["underflow"] + dict(lines)["norm lost"]


def test_no_needed_scale_says_none_needed():
    none = replace(SCALE, log2_scale=0, mode="none", reason="nothing that matters is lost at scale 1")
    lines = digest_of(replace(full(), advice=Advice("FP16", none, ()))).why
    assert lines[0] == ("scale", "none needed: nothing that matters is lost at scale 1")


def test_the_scale_is_said_with_its_window_and_what_sets_its_ends():
    lines = dict(digest_of(full()).why)
    assert lines["scale"] == "2^14 = 16,384, dynamic; window 2^11..2^14"
    assert lines["largest scale"] == "set by blocks.0.attn.qkv's activation gradient, the loss itself"
    assert lines["smallest scale"] == "set by blocks.3.mlp.fc2.weight's weight gradient"


def test_the_snippet_follows_its_line():
    lines = text(full()).splitlines()
    place = next(i for i, line in enumerate(lines) if line.strip() == "train with:")
    assert lines[place + 1].strip() == full().advice.loss_scale.snippet.splitlines()[0]


def test_small_shares_are_not_rounded_to_zero():
    small = replace(SCALE, underflow_before=1e-7, underflow_after=0.0)
    line = dict(digest_of(replace(full(), advice=Advice("FP16", small, ()))).why)["underflow"]
    assert line.startswith("<0.01\u202f% of the gradient elements become zero at scale 1, 0\u202f% at 2^14")


def test_findings_beyond_eight_are_counted():
    finding = Finding("MP101", "activation-overflow", "error", "fc", "too large", {}, "keep it")
    findings = tuple(replace(finding, subject=f"fc{i}") for i in range(11))
    parts = digest_of(replace(full(), advice=Advice("FP16", SCALE, findings)))
    assert len(parts.findings) == 8
    assert parts.more_findings == "3 more findings: see the page"
    assert not any("more finding" in line for line in parts.not_done)
    parts = digest_of(replace(full(), advice=Advice("FP16", SCALE, findings[:9])))
    assert (len(parts.findings), parts.more_findings) == (9, None)  # a line for the one, not a line that counts it
    assert digest_of(full()).more_findings is None


def test_a_remedy_is_said_once():
    finding = Finding("MP101", "activation-overflow", "error", "fc", "too large", {}, "keep it")
    steps = digest_of(replace(full(), advice=Advice("FP16", SCALE, (finding, finding)))).next_steps
    assert steps.count("MP101: keep it") == 1


# runs that broke


def test_nan_losses_of_fp16_are_said_in_words():
    shown = flat(text(on_a_laptop(losses=(2.0, math.nan))))
    assert "loss worse: not finite at step 2 of seed 2, while FP32 is" in shown
    assert " nan" not in shown


def test_a_failed_fp16_run_is_said_with_its_error():
    shown = flat(text(on_a_laptop(losses=(), steps=0, metric=None, error="no kernel for Half")))
    assert "loss worse: the run failed, see above" in shown
    assert shown.count("no kernel for Half") == 1, "in the verdict"


def test_what_the_verdict_says_of_an_error_is_not_said_again_under_not_done():
    made = on_a_laptop()
    seen, run = replace(made.capture, amp_error="no kernel"), replace(made.verification, reason="raises: no kernel")
    assert any("no kernel" in line for line in digest_of(replace(made, capture=seen)).not_done)
    assert not any("no kernel" in line for line in digest_of(replace(made, capture=seen, verification=run)).not_done)


def test_an_fp16_run_that_failed_after_some_steps_is_said_with_its_error():
    shown = flat(text(on_a_laptop(metric=None, error="evaluate(model) failed")))
    assert "loss worse: the run failed, see above" in shown
    assert shown.count("evaluate(model) failed") == 1, "in the verdict"


def test_a_comparison_without_a_difference_shows_its_reason():
    made = Comparison("loss", "mean", "fp32", "fp16", math.nan, 1.0, None, None, 0.0, 1, "inconclusive",
                      "the FP32 baseline is not finite")  # fmt: skip
    assert comparison_line(made) == ("loss", "inconclusive: the FP32 baseline is not finite")
