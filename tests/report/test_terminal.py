"""The text reports: terminal (golden files), Markdown and CSV, parsed back.

`MPDIAG_UPDATE_GOLDEN=1 pytest tests/report/test_terminal.py` writes tests/golden/terminal_*.txt anew; read the diff.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import report_samples as samples
from mpdiag.costs.kernels import WhyNot
from mpdiag.diagnosis import NOT_ASKED_FOR, Advice, Comparison, Diagnosis, Finding, LossScaleAdvice, Trial, Verification
from mpdiag.formats import BF16, FP16
from mpdiag.report import markdown, table, terminal
from mpdiag.report.digest import comparison_line, digest_of
from mpdiag.verify.compare import compare_arms
from mpdiag.verify.verdict import decide

GOLDEN = Path(__file__).parents[1] / "golden"
UPDATE = "MPDIAG_UPDATE_GOLDEN"
COSTS = ("step_time_ms", "peak_memory_bytes", "energy_joules_per_sample")


def full() -> Diagnosis:
    """The whole sample; its costs are ratios."""
    diagnosis = samples.full()
    assert diagnosis.verification is not None
    comparisons = tuple(replace(c, is_ratio=c.quantity in COSTS) for c in diagnosis.verification.comparisons)
    return replace(diagnosis, verification=replace(diagnosis.verification, comparisons=comparisons))


def trial(arm: str, seed: int, losses: tuple[float, ...], **more: Any) -> Trial:
    reasons = dict.fromkeys(("peak_memory_bytes", "step_time_ms", "tensor_core", "energy_joules_per_sample"), NO_GPU)
    fields = {"metric": {"accuracy": 0.9 + seed / 100}, "not_measured": reasons} | more
    return Trial(arm, arm.upper(), arm != "fp32", seed, len(losses), losses, **fields)


NO_GPU = "needs a CUDA GPU; this run was on the CPU"


def on_a_laptop(**fp16: Any) -> Diagnosis:
    """Verified on a CPU with three seeds; `fp16` changes that arm's last trial."""
    trials = [trial("fp32", s, (2.0, 1.0 + s / 10)) for s in range(3)]
    hits = [{"accuracy": 0.9 + s / 100 + (0.001 if s == 1 else 0.0)} for s in range(3)]
    trials += [trial("fp16", s, (2.0, 1.001 + s / 10), skipped_steps=1, metric=hits[s]) for s in range(3)]
    trials[-1] = replace(trials[-1], **fp16)
    diagnosis = replace(full(), environment=samples.environment(gpu=None), target=samples.minimal().target)
    comparisons = compare_arms(trials, True)
    made = Verification(tuple(trials), comparisons, *decide(diagnosis.advice, trials, comparisons), train_with="fp16")
    return replace(diagnosis, verification=made)


SAMPLES: dict[str, Callable[[], Diagnosis]] = {
    "full": full,
    "minimal": samples.minimal,
    "laptop": on_a_laptop,
    "gpu": samples.on_gpu,
}


def text(diagnosis: Diagnosis, width: int = 100) -> str:
    return terminal.render(diagnosis, width=width)


def flat(rendered: str) -> str:
    """Rendered text without its line breaks."""
    return " ".join(rendered.split())


# golden


@pytest.mark.parametrize("name", SAMPLES)
def test_the_terminal_text_is_the_golden_one(name):
    path, shown = GOLDEN / f"terminal_{name}.txt", text(SAMPLES[name]())
    if os.environ.get(UPDATE) == "1":
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8"), f"{UPDATE}=1 rewrites {path}"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_text_ends_with_one_newline(name):
    assert text(SAMPLES[name]()).endswith("\n")
    assert not text(SAMPLES[name]()).endswith("\n\n")


# the terminal


def topics(diagnosis: Diagnosis) -> list[str]:
    return [topic for topic, _ in digest_of(diagnosis).why]


def test_the_why_has_a_topic_a_line():
    scale = ["scale", "largest scale", "smallest scale", "underflow", "norm lost"]
    assert topics(full()) == [*scale, "loss", "accuracy", "gradient", "time", "memory", "skips", "controls"]
    gains = ["time", "memory", "tensor", "energy"]
    assert topics(samples.on_gpu()) == [*scale, "loss", "accuracy", "gradient", *gains, "skips", "controls"]
    assert topics(on_a_laptop()) == [*scale, "loss", "accuracy", "skips", "controls"]
    assert topics(samples.minimal()) == []


@pytest.mark.parametrize("width", [60, 100])
def test_the_texts_of_the_why_stand_in_a_column_of_their_own(width):
    lines = text(full(), width).splitlines()
    why = lines[next(i for i, line in enumerate(lines) if line.startswith("WHY")) :]
    why = why[: why.index("")]
    column = 10 + max(map(len, topics(full()))) + 1
    assert [line[10:column].strip() for line in why if line[10:column].strip()] == topics(full())
    assert all(line[column - 1] == " " != line[column] for line in why)
    assert flat(" ".join(line[column:] for line in why)) == flat(" ".join(words for _, words in digest_of(full()).why))


@pytest.mark.parametrize("width", [60, 100])
def test_a_long_metric_name_is_folded_and_takes_no_text_away(width):
    name = "".join(f"accuracy{i}." for i in range(7))
    made = Comparison(name, "metric", "fp32", "fp16", 0.9, 0.91, 0.01, (0.0, 0.02), 0.05, 3, "equivalent")
    diagnosis = full()
    shown = text(replace(diagnosis, verification=replace(diagnosis.verification, comparisons=(made,))), width)
    assert max(map(len, shown.splitlines())) <= width
    why = shown[shown.index("WHY") : shown.index("FINDINGS")]
    assert re.findall(r"accuracy\d", why) == re.findall(r"accuracy\d", name)
    assert "2^14 = 16,384, dynamic; window 2^11..2^14" in flat(why)


def test_a_scan_of_which_nothing_was_left_out_has_no_not_done():
    diagnosis = full()
    assert diagnosis.capture is not None
    assert diagnosis.target is not None
    assert diagnosis.verification is not None
    whole = replace(
        diagnosis,
        capture=replace(diagnosis.capture, not_seen=()),
        target=replace(diagnosis.target, notes=()),
        verification=replace(diagnosis.verification, cut=()),
    )
    assert digest_of(whole).not_done == ()
    assert "NOT DONE" not in text(whole)


@pytest.mark.parametrize("width", [40, 60, 100, 110])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_is_wider_than_asked(name, width):
    assert max(map(len, text(SAMPLES[name](), width).splitlines())) <= width


def test_the_sections_come_in_order():
    labels = [line[:9].strip() for line in text(full()).splitlines()]
    assert [label for label in labels if label] == ["SCAN", "VERDICT", "WHY", "FINDINGS", "NEXT", "NOT DONE"]


def test_a_section_without_a_line_is_left_out():
    labels = [line[:9].strip() for line in text(samples.minimal()).splitlines()]
    assert [label for label in labels if label] == ["SCAN", "VERDICT", "NOT DONE"]


@pytest.mark.parametrize("width", [60, 100])
def test_a_long_tensor_name_is_folded_and_no_character_of_it_is_lost(width):
    name = "".join(f"layers{i}." for i in range(60))
    diagnosis = full()
    shown = text(replace(diagnosis, advice=replace(diagnosis.advice, keep_fp32=(name,))), width)
    assert max(map(len, shown.splitlines())) <= width
    assert name in "".join(line.strip() for line in shown.splitlines())


@pytest.mark.parametrize("name", ["[bold]fc[/bold]", "[/]", "[link=x]", ":smile:", "{0}", "%s", "\\[x]"])
def test_markup_in_a_tensors_name_stays_text(name):
    diagnosis = full()
    finding = replace(diagnosis.advice.findings[1], message=f"the output of {name} is large", remedy=f"mend {name}")
    target = replace(diagnosis.target, source=name)
    shown = flat(text(replace(diagnosis, target=target, advice=Advice("FP16", SCALE, (finding,), (name,)))))
    assert f"error MP101 the output of {name} is large" in shown
    assert f"keep in FP32: {name}" in shown
    assert f"mend {name}" in shown
    assert f"SCAN {name} · " in shown


SCALE = samples.full().advice.loss_scale


@pytest.mark.parametrize("name", SAMPLES)
def test_without_color_there_is_no_escape_code(name):
    assert "\x1b" not in text(SAMPLES[name]())


def test_with_color_the_words_are_the_same():
    colored = terminal.render(full(), color=True, width=100)
    assert "\x1b[1;33mgo-with-changes\x1b[0m" in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert flat(plain) == flat(text(full()))


def test_a_scan_without_anything_still_renders():
    bare = Diagnosis("2026-01-01T00:00:00+00:00", "mpdiag scan x.py", samples.environment(gpu=None), None)
    assert "VERDICT none: not verified: the scan was stopped before the verification" in flat(text(bare))


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


# comparisons in a line


def test_a_loss_is_shown_with_its_interval_and_margin():
    made = Comparison("loss", "mean", "fp32", "fp16", 1.93, 1.934, 0.004, (-0.011, 0.019), 0.05, 3, "equivalent")
    assert comparison_line(made) == (
        "loss",
        "1.93 -> 1.934, difference +0.004 (90 % within -0.011..+0.019, margin ±0.05): equivalent",
    )


def test_a_difference_of_zero_is_none():
    made = Comparison("accuracy", "metric", "fp32", "fp16", 0.9, 0.9, 0.0, (0.0, 0.0), 0.005, 3, "equivalent")
    shown = comparison_line(made)[1]
    assert shown.startswith("0.9 -> 0.9, no difference")
    assert "+0 " not in shown.replace("(", " ").split("90 %")[0]


# costs


def why(diagnosis: Diagnosis, **verification: Any) -> dict[str, str]:
    changed = replace(diagnosis, verification=replace(diagnosis.verification, **verification))
    return dict(digest_of(changed).why)


def cost(quantity: str, ratio: float, verdict: str = "better", **more: Any) -> Comparison:
    made = Comparison(quantity, "", "fp32", "fp16", 4.0, 4 * ratio, ratio, None, 0.03, 1, verdict, is_ratio=True)
    return replace(made, **more)


def told(quantity: str, ratio: float, verdict: str = "better", **more: Any) -> str:
    topic = {"step_time_ms": "time", "peak_memory_bytes": "memory"}.get(quantity, "energy")
    return why(full(), comparisons=(cost(quantity, ratio, verdict, **more),))[topic]


def test_a_step_time_is_told_with_its_interval_and_what_it_is_held_against():
    shown = told("step_time_ms", 0.5, interval=(0.4, 0.8))
    assert shown == "4 -> 2 ms a step: 2.00 times as fast as IEEE FP32 (95 % within 1.25..2.50)"


def test_a_slower_arm_is_told_as_longer():
    shown = told("step_time_ms", 1.5, "worse", interval=(1.4, 1.6))
    assert shown == "4 -> 6 ms a step: 1.50 times as long as IEEE FP32 (95 % within 1.40..1.60)"


def test_an_equal_time_is_told_as_equal():
    assert told("step_time_ms", 1.0, "equivalent") == "4 -> 4 ms a step: as fast as IEEE FP32 within 3 %"


def test_a_time_that_decides_nothing_says_why():
    shown = told("step_time_ms", 1.25, "inconclusive", reason="too noisy")
    assert shown == "4 -> 5 ms a step: undecided against IEEE FP32, x1.25 its time; too noisy"


@pytest.mark.parametrize(
    ("references", "words"),
    [
        (("fp32-configured", "tf32"), "2.00 times as fast as IEEE FP32, 1.25 times as fast as your present settings"),
        (("tf32",), "2.00 times as fast as IEEE FP32, 1.25 times as fast as TF32"),
    ],
)
def test_a_time_is_also_told_against_the_present_settings_or_tf32(references, words):
    others = [cost("step_time_ms", 0.8, baseline=name) for name in references]
    shown = why(full(), comparisons=(cost("step_time_ms", 0.5), *others))["time"]
    assert shown == f"4 -> 2 ms a step: {words}"


def test_the_costs_told_are_those_of_the_arm_to_train_with():
    both = (cost("step_time_ms", 0.5), cost("step_time_ms", 0.8, candidate="bf16"))
    assert why(full(), comparisons=both, train_with="bf16")["time"].startswith("bf16: 4 -> 3.2 ms a step: 1.25 times")
    assert why(full(), comparisons=both, train_with=None)["time"].startswith("4 -> 2 ms a step: 2.00 times")


def test_bf16_that_raised_is_not_said_to_be_worse():
    crash = "the run failed: RuntimeError: no BF16 here"
    raised = [
        Comparison(name, "loss", "fp32", "bf16", 1.0, None, None, None, 0.01, 3, "worse", crash)
        for name in ("loss", "accuracy")
    ]
    assert why(full(), comparisons=tuple(raised))["bf16"] == crash


def test_a_launch_bound_step_says_so():
    gpu = samples.on_gpu()
    fp32, fp16, *others = gpu.verification.costs.kernels
    slow = replace(
        fp16, time=replace(fp16.time, busy_share=0.15), findings=(WhyNot("launch-bound", "", "", None, "formula"),)
    )
    costs = replace(gpu.verification.costs, kernels=(fp32, slow, *others))
    assert why(gpu, costs=costs)["time"].endswith("; launch bound, the GPU is busy 15.0\u202f% of the step")
    assert "launch bound" not in why(gpu)["time"]
    waits = replace(slow, findings=(WhyNot("gpu-waits", "", "", None, "formula"),))
    costs = replace(costs, kernels=(fp32, waits, *others))
    assert why(gpu, costs=costs)["time"].endswith("; the GPU waits for the host, it is busy 15.0\u202f% of the step")


def test_an_arm_without_a_split_has_its_memory_as_a_ratio():
    shown = told("peak_memory_bytes", 0.5, baseline_value=2.0**33, candidate_value=2.0**32)
    assert shown == "8.0\u202fGiB -> 4.0\u202fGiB, x0.50"


def test_energy_is_told_with_its_interval_and_why_it_decides_nothing():
    assert told("energy_joules_per_sample", 0.5, interval=(0.4, 0.6)) == (
        "4 -> 2 J a sample, x0.50 of IEEE FP32's (95 % within 0.40..0.60)"
    )
    one = told("energy_joules_per_sample", 0.5, "inconclusive", reason="one window an arm gives no interval")
    assert one == "4 -> 2 J a sample, x0.50 of IEEE FP32's; one window an arm gives no interval"


def test_energy_that_an_idle_gpu_draws_too_is_named():
    gpu = samples.on_gpu()
    fp32, fp16, *others = gpu.verification.costs.energy
    costs = replace(gpu.verification.costs, energy=(fp32, replace(fp16, idle_share=0.93), *others))
    assert why(gpu, costs=costs)["energy"].endswith("; 93.0\u202f% of it is drawn by an idle GPU too")
    assert "idle" not in why(gpu)["energy"]


def test_the_gains_on_a_gpu_are_four_lines_and_on_a_cpu_none():
    gains = {"time", "memory", "tensor", "energy"}
    assert gains <= set(why(samples.on_gpu()))
    assert not gains & set(why(on_a_laptop()))


def test_the_tensor_line_is_the_ladders_claim():
    assert why(samples.on_gpu())["tensor"].startswith("fp16: 2.7 TFLOP of FP16, 0.4 TFLOP of TF32")
    gpu = samples.on_gpu()
    bare = tuple(replace(each, ladder=None) for each in gpu.verification.costs.kernels)
    costs = replace(gpu.verification.costs, kernels=bare)
    assert why(gpu, costs=costs)["tensor"].startswith("GPU kernel time on tensor cores: fp32 0\u202f%")


def test_a_cost_that_later_seeds_do_not_have_is_not_told_as_missing():
    diagnosis = on_a_laptop()
    once = "costs are measured once an arm, with the first seed"
    trials = tuple(
        replace(t, not_measured=dict.fromkeys(t.not_measured, once)) if t.seed else t
        for t in diagnosis.verification.trials
    )
    shown = flat(text(replace(diagnosis, verification=replace(diagnosis.verification, trials=trials))))
    assert once not in shown
    assert shown.count(NO_GPU) == 1


# Markdown, as a reader of CommonMark with tables sees it


def blocks(source: str) -> list[tuple[str, str]]:
    """(element, text) of each block; inline markup that came out of the text is marked in the element's name."""
    found, stack = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(source):
        if token.type == "inline":
            inside = {t.type for t in token.children or ()} - {"text", "softbreak"}
            words = "".join(t.content for t in token.children or () if t.type in ("text", "code_inline"))
            found.append((" ".join([stack[-1], *sorted(inside)]), words))
        elif token.nesting == 1 and token.tag not in ("p", "tr", "thead", "tbody"):
            stack.append(token.tag)
        elif token.nesting == -1 and token.tag not in ("p", "tr", "thead", "tbody"):
            stack.pop()
        elif token.type == "fence":
            found.append(("code", token.content))
        elif token.type in ("html_block", "hr", "code_block"):
            found.append((token.type, token.content))
        if not stack:
            stack.append("")
    return found


def with_text(words: str) -> Diagnosis:
    """A diagnosis whose first finding says `words` and whose first metric is called so."""
    diagnosis = full()
    finding = replace(diagnosis.advice.findings[0], message=words)
    target = replace(diagnosis.target, name=words, notes=(words,))
    return replace(diagnosis, target=target, advice=Advice("FP16", SCALE, (finding,), ()))


def test_markdown_has_a_heading_a_verdict_lists_and_a_table():
    found = blocks(markdown.render(full()))
    assert found[0] == ("h1", "mpdiag: gpt_tiny")
    assert [words for element, words in found if element == "h2"] == ["Why", "Findings", "Next", "Not done"]
    cells = [words for element, words in found if element in ("th", "td")]
    assert cells[:3] == ["severity", "code", "finding"]
    assert cells[6:9] == ["error", "MP101", full().advice.findings[1].message]


def test_markdowns_snippet_is_the_advices():
    code = next(words for element, words in blocks(markdown.render(full())) if element == "code")
    assert code.rstrip() == full().advice.loss_scale.snippet.rstrip()


HOSTILE = [
    "a | b",
    "<b>evil</b>",
    "</script>",
    "<!-- x -->",
    "`code`",
    "*a* **b**",
    "_a_ __b__",
    "[a](http://x)",
    "![a](x)",
    "\\| back\\",
    "a\n\nb",
    "a\n# b",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_the_user_stays_text_in_markdown(words):
    found, shown = blocks(markdown.render(with_text(words))), " ".join(words.split())
    assert found[0] == ("h1", f"mpdiag: {shown}")
    assert ("td", shown) in found
    assert ("li", shown) in found


@pytest.mark.parametrize("words", ["&lt;b&gt;", "&amp;", "AT&T &copy; 2026"])
def test_an_entity_in_a_name_stays_as_it_is_written_in_markdown(words):
    assert ("td", words) in blocks(markdown.render(with_text(words)))


@pytest.mark.parametrize("words", ["# tokens", "- a", "+ a", "> a", "1. a", "1) a", "---", "===", "~~~"])
def test_text_that_begins_like_a_block_stays_text_in_a_markdown_list(words):
    assert ("li", words) in blocks(markdown.render(with_text(words)))


@settings(max_examples=60, deadline=None)
@given(st.text("|<>`*_[]()!\\ab .", min_size=1, max_size=12).map(lambda s: f"x {s} y"))
def test_any_text_inside_a_finding_comes_back_from_markdown(words):
    assert ("td", " ".join(words.split())) in blocks(markdown.render(with_text(words)))


def test_markdown_shows_what_the_terminal_shows():
    found = [words for _, words in blocks(markdown.render(on_a_laptop()))]
    parts = digest_of(on_a_laptop())
    why = [f"{topic}: {words}" for topic, words in parts.why]
    assert [line for line in (*parts.heading, *why, *parts.not_done) if flat(line) not in found] == []
    assert len(why) > 5


# CSV


def rows(diagnosis: Diagnosis) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(table.render(diagnosis))))


def test_the_csvs_header_is_its_columns():
    assert table.render(full()).splitlines()[0].split(",") == list(table.COLUMNS)


def test_the_csv_has_a_row_a_tensor_in_order():
    seen = full().capture.tables
    assert [(r["name"], r["kind"]) for r in rows(full())] == [(t.name, str(t.kind)) for t in seen]


def test_a_diagnosis_without_a_capture_is_a_header_alone():
    assert table.render(replace(full(), capture=None)) == ",".join(table.COLUMNS) + "\n"


def test_every_number_comes_back_from_the_csv_through_pandas():
    frame = pd.read_csv(io.StringIO(table.render(full())), keep_default_na=False, na_values=[""])
    for (_, row), t in zip(frame.iterrows(), full().capture.tables, strict=True):
        half, brain = t.histogram.usage(FP16), t.histogram.usage(BF16)
        assert (row["elements"], row["steps"], row["zeros"], row["infs"], row["nans"]) == (
            t.elements,
            t.steps,
            t.histogram.zeros,
            t.histogram.infs,
            t.histogram.nans,
        )
        shares = half.underflow, half.subnormal, half.overflow, brain.underflow
        read = row["fp16_underflow"], row["fp16_subnormal"], row["fp16_overflow"], row["bf16_underflow"]
        assert read == pytest.approx(shares, rel=1e-15)
        assert row["noise_level"] == t.noise_level
        for column, value in (("abs_max", t.abs_max), ("abs_min", t.abs_min)):
            assert math.isnan(row[column]) if value is None else row[column] == pytest.approx(value, rel=1e-15)


def test_what_does_not_apply_is_empty_in_the_csv_and_never_zero():
    mask = next(r for r in rows(full()) if r["name"] == "mask")
    assert (mask["abs_max"], mask["abs_min"], mask["amp_dtype"], mask["stagnant_fp16"]) == ("", "", "", "")
    assert mask["zeros"] == "1280"


def test_a_shares_absence_and_a_share_of_zero_differ_in_the_csv():
    found = {r["kind"]: r["stagnant_fp16"] for r in rows(full()) if r["name"] == "blocks.0.attn.qkv.weight"}
    assert found == {"weight": "", "weight_gradient": "", "weight_update": "0.05"}


@pytest.mark.parametrize("name", ['a,b"c"', "line\nbreak", "</script>", "=1+1", "ü\u202f"])
def test_any_name_comes_back_from_the_csv(name):
    diagnosis = full()
    tables = (replace(diagnosis.capture.tables[0], name=name, source=name),)
    read = rows(replace(diagnosis, capture=replace(diagnosis.capture, tables=tables)))
    assert [(r["name"], r["source"]) for r in read] == [(name, name)]


def test_the_data_frame_holds_what_the_csv_does():
    import io

    import pandas

    import mpdiag

    made = mpdiag.frame(full())
    assert list(made.columns) == list(table.COLUMNS)
    assert made["name"].tolist() == [t.name for t in samples.tables()]
    read_back = pandas.read_csv(io.StringIO(table.render(full())))
    assert made["fp16_underflow"].tolist() == read_back["fp16_underflow"].tolist()


def test_bf16_weights_have_no_share_stagnant_in_fp16_in_the_csv():
    diagnosis = full()
    assert diagnosis.capture is not None
    tables = (replace(diagnosis.capture.tables[0], stagnant={"BF16": 0.5}),)
    (read,) = rows(replace(diagnosis, capture=replace(diagnosis.capture, tables=tables)))
    assert read["stagnant_fp16"] == ""


def test_what_fp8_would_do_stays_on_the_page() -> None:
    made = samples.full()
    assert made.advice is not None
    fp8 = replace(made.advice.findings[0], code="MP702", severity="info", message="FP8 would clip it")
    both = replace(made, advice=replace(made.advice, findings=(*made.advice.findings, fp8, fp8)))
    text = terminal.render(both)
    assert "FP8 would clip it" not in text
    assert "2 more findings" in text
    assert markdown.render(both).count("FP8 would clip it") == 2  # a pull request has no page beside it
