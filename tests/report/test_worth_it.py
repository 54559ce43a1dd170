"""The next steps where FP16's gain is doubtful: TF32 alone, torch.compile as it was timed, and the largest batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.costs.record import Costs
from mpdiag.diagnosis import Comparison, Diagnosis
from mpdiag.report.memory_line import batches_of, memory_words, rates_words, sizes_words
from mpdiag.report.next_steps import SNIPPET_FOLLOWS, scans_to_come, steps_from

BATCHES = (
    LargestBatch("fp32", "FP32", 17456, samples_per_second=34162.9),
    LargestBatch("fp16", "FP16", 28784, samples_per_second=75253.1),
)


def ratio(quantity: str, value: float, verdict: str, arm: str = "fp16", base: str = "fp32", **more: Any) -> Comparison:
    made = Comparison(quantity, "", base, arm, 10.0, 10 * value, value, None, 0.03, 1, verdict, is_ratio=True)
    return replace(made, **more)


def measured(*ratios: Comparison, batches: tuple[LargestBatch, ...] = (), **more: Any) -> Diagnosis:
    """The sample, judged as before, with these ratios of costs."""
    made = samples.full()
    assert made.verification is not None
    kept = tuple(c for c in made.verification.comparisons if not c.is_ratio)
    changed = {"comparisons": (*kept, *ratios), "costs": Costs(largest_batch=batches)} | more
    return replace(made, verification=replace(made.verification, **changed))


def steps(*ratios: Comparison, batches: tuple[LargestBatch, ...] = (), **more: Any) -> str:
    return "\n".join(steps_from(measured(*ratios, batches=batches, **more)))


FASTER = ratio("step_time_ms", 0.4, "better")


def test_tf32_that_is_faster_is_named_before_the_code_with_what_fp16_gives_besides():
    made = measured(
        FASTER,
        ratio("step_time_ms", 1.28, "worse", base="tf32"),
        ratio("peak_memory_bytes", 0.7, "better"),
        ratio("energy_joules_per_sample", 0.28, "better"),
        batches=BATCHES,
    )
    told = steps_from(made)
    (line,) = [each for each in told if "TF32" in each]
    assert line == (
        'before FP16, try torch.set_float32_matmul_precision("high"): TF32 alone is faster: 10 ms a step to FP16\'s '
        "12.8, and it needs no loss scale; FP16 gives besides: x0.70 of FP32's peak memory, a largest batch of 28784 "
        "against 17456, at the largest batches x2.20 FP32's samples a second (75,250 against 34,160), x0.28 of IEEE "
        "FP32's energy a sample (TF32's was not measured)"
    )
    assert told.index(line) < told.index(SNIPPET_FOLLOWS)
    assert line in scans_to_come(made)


def test_where_nothing_else_was_shown_for_fp16_that_is_said():
    told = steps(FASTER, ratio("step_time_ms", 1.02, "equivalent", base="tf32"))
    assert "TF32 alone is as fast within 3 %" in told
    assert "; nothing else was shown for FP16" in told


def test_tf32_that_is_slower_or_was_not_timed_is_not_named():
    assert "TF32" not in steps(FASTER, ratio("step_time_ms", 0.8, "better", base="tf32"))
    assert "TF32" not in steps(FASTER)


@pytest.mark.parametrize(("verdict", "named"), [("inconclusive", True), ("go-with-changes", True), ("no-go", False)])
def test_tf32_is_named_beside_an_undecided_verdict_and_not_where_everything_failed(verdict, named):
    told = steps(FASTER, ratio("step_time_ms", 1.05, "inconclusive", base="tf32"), verdict=verdict)
    assert ("TF32 alone may be as fast, undecided" in told) is named


def test_the_larger_batch_that_comes_first_comes_with_what_it_gives(monkeypatch):
    monkeypatch.setattr("mpdiag.report.worth_it.launch_bound", lambda kernels, arm: "waits")
    slower = ratio("step_time_ms", 1.36, "worse")
    told = steps(slower, batches=BATCHES)
    assert (
        "FP16 saves no time on this job as it is (x1.36): a larger batch, torch.compile or CUDA graphs come first; "
        "with the largest batches that fit it trains x2.20 FP32's samples a second (75,250 against 34,160)"
    ) in told
    assert "samples a second" not in steps(slower)


COMPILED = ratio("step_time_ms", 1.156, "worse", "fp16-compile", interval=(1.105, 1.21))


def test_torch_compile_that_was_timed_and_is_faster_than_plain_fp16_is_told_with_its_time():
    slower = ratio("step_time_ms", 1.359, "worse", interval=(1.289, 1.443))
    assert (
        "(x1.36); torch.compile makes FP16's step faster: 11.56 ms, plain FP16 13.59, x1.16 of IEEE FP32's"
    ) in steps(slower, COMPILED)
    assert "torch.compile makes" not in steps(slower, replace(COMPILED, interval=(1.1, 1.3)))
    faster = ratio("step_time_ms", 0.5, "better", interval=(0.48, 0.52))
    quick = replace(COMPILED, difference=0.3, candidate_value=3.0, interval=(0.29, 0.31))
    assert "faster still, as timed: torch.compile makes FP16's step faster: 3 ms, plain FP16 5" in steps(faster, quick)
    assert "faster still" not in steps(faster, COMPILED)


# the largest batches


def test_the_terminals_memory_line_has_the_throughput_at_the_largest_batches():
    assert memory_words(Costs(largest_batch=BATCHES)) == (
        "largest batch 28784 (fp16) against 17456, there x2.20 FP32's samples a second (75,250 against 34,160)"
    )
    untimed = (replace(BATCHES[0], samples_per_second=None), BATCHES[1])
    assert memory_words(Costs(largest_batch=untimed)) == "largest batch 28784 (fp16) against 17456"


def test_a_bound_of_fp32s_batch_is_no_batch_that_fp16s_is_larger_than():
    fp32, fp16 = batches_of(BATCHES, "fp16")
    assert sizes_words(fp32, fp16) == "a largest batch of 28784 against 17456"
    assert sizes_words(replace(BATCHES[0], at_least=True), fp16) is None
    assert sizes_words(fp32, replace(BATCHES[1], batch=17456)) is None
    assert (sizes_words(None, fp16), rates_words(fp32, None)) == (None, None)


def test_an_arm_that_was_not_searched_borrows_nobodys_batch():
    assert batches_of(BATCHES, "bf16") == (BATCHES[0], None)


def test_the_page_says_what_the_larger_batch_gives():
    from mpdiag.report.html_largest_batch import batch_view

    view = batch_view(BATCHES)
    assert view is not None
    told = "with the largest batches that fit it trains x2.20 FP32's samples a second (75,250 against 34,160)"
    assert ("fp16", told) in view.remarks
    assert not any("samples a second" in text for _, text in batch_view(BATCHES[:1]).remarks)
