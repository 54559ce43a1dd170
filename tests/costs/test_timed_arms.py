"""MP405 beside what else was timed: TF32 alone, and FP16 through torch.compile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mpdiag.advice.checks import BY_CODE
from mpdiag.costs.timed_arms import as_fast_in_tf32, compiled_step, compiled_words, step_ratio, tf32_words
from mpdiag.diagnosis import Comparison, Diagnosis, Environment, Finding, Verification

FP32_MS = 76.2
Timed = tuple[str, str, float, tuple[float, float] | None, str]


def run_of(*timed: Timed, base_ms: float = FP32_MS) -> Verification:
    """A verification whose arms were timed: (arm, baseline, ratio, interval, verdict)."""
    made = tuple(
        Comparison("step_time_ms", "ms", base, arm, base_ms, base_ms * ratio, ratio, between, 0.03, 1, verdict, None,
                   True)
        for arm, base, ratio, between, verdict in timed
    )  # fmt: skip
    return Verification((), made, "go", "r")


def told(run: Verification) -> Finding:
    (found,) = BY_CODE["MP405"].find(Diagnosis("c", "m", Environment("3", "2", "0", "p", 1), None, verification=run))
    return found


SLOW: Timed = ("fp16", "fp32", 0.95, (0.93, 0.97), "better")  # 1.05 times as fast: MP405 speaks


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("worse", "TF32 alone is faster: 76.2 ms a step to FP16's 97.5, and it needs no loss scale"),
        ("inconclusive", "TF32 alone may be as fast, undecided: 76.2 ms a step to FP16's 97.5, and it needs no loss"),
        ("equivalent", "TF32 alone is as fast within 3 %: 76.2 ms a step to FP16's 97.5"),
        ("better", None),
        ("not-measured", None),
    ],
)
def test_mp405_says_that_tf32_does_as_well(verdict, said):
    found = told(run_of(SLOW, ("fp16", "tf32", 1.28, (1.18, 1.39), verdict)))
    assert (said is None) == ("TF32" not in found.message)
    assert said is None or f"; {said}" in found.message
    assert found.evidence["over_tf32"] == (None if said is None else 1.28)


def test_where_fp32_itself_is_faster_tf32_is_no_news():
    slower: Timed = ("fp16", "fp32", 1.36, (1.29, 1.44), "worse")
    run = run_of(slower, ("fp16", "tf32", 1.34, (1.27, 1.42), "worse"))
    assert as_fast_in_tf32(run, "fp16") is None
    assert "TF32" not in told(run).message


def test_bf16_needs_no_loss_scale_either():
    bf16: tuple[Timed, ...] = (("bf16", "fp32", 0.47, None, "better"), ("bf16", "tf32", 1.16, (1.1, 1.2), "worse"))
    found = as_fast_in_tf32(run_of(*bf16), "bf16")
    assert found is not None
    assert tf32_words(found) == "TF32 alone is faster: 76.2 ms a step to bf16's 88.4"


def compiled(ratio: float, between: tuple[float, float] | None, verdict: str = "worse") -> Verification:
    plain: Timed = ("fp16", "fp32", 1.359, (1.289, 1.443), "worse")
    return run_of(plain, ("fp16-compile", "fp32", ratio, between, verdict), base_ms=8.585)


def test_what_torch_compile_gave_stands_where_it_would_be_proposed():
    found = told(compiled(1.156, (1.105, 1.21)))
    assert "torch.compile makes FP16's step faster: 9.924 ms, plain FP16 11.67, x1.16 of IEEE FP32's" in found.message
    assert found.remedy == "give the GPU more at a time: torch.compile, then a larger batch, CUDA graphs"
    assert found.snippet.startswith("model = torch.compile(model)  #"), "the mode that was timed"
    assert found.evidence["compiled_over_fp32"] == 1.156


@pytest.mark.parametrize(
    ("ratio", "between", "said"),
    [
        (1.30, (1.2, 1.4), "torch.compile is not told apart from plain FP16: 11.16 ms, plain FP16 11.67"),
        (1.60, (1.5, 1.7), "torch.compile makes FP16's step longer: 13.74 ms"),
        (1.00, None, "torch.compile is not told apart from plain FP16"),
    ],
)
def test_torch_compile_that_was_timed_and_is_no_faster_is_not_proposed(ratio, between, said):
    found = told(compiled(ratio, between))
    assert said in found.message
    assert found.remedy == "give the GPU more at a time: a larger batch, CUDA graphs"
    assert found.snippet.startswith('model = torch.compile(model, mode="reduce-overhead")')


def test_torch_compile_that_was_not_timed_is_proposed_in_the_mode_that_a_scan_times():
    found = told(run_of(SLOW))
    assert found.remedy.endswith("a larger batch, torch.compile, CUDA graphs")
    assert found.snippet.startswith("model = torch.compile(model)  #")
    assert compiled_step(run_of(SLOW)) is None


def test_the_arm_is_compiled_in_the_default_mode_as_the_code_says(monkeypatch):
    import torch

    from mpdiag.training.precision import Precision
    from mpdiag.training.session import Session

    asked = []
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: asked.append((args, kwargs)))
    model = torch.nn.Linear(1, 1)
    Session(None, model, None, Precision("x", compiled=True), torch.device("cpu"), None)  # type: ignore[arg-type] # only the model and the precision are read
    assert asked == [((model,), {})]


def test_a_ratio_that_is_not_there_is_none():
    assert step_ratio(None, "fp16") is None
    assert step_ratio(run_of(), "fp16") is None
    nothing = replace(run_of(SLOW).comparisons[0], difference=None, candidate_value=None, verdict="not-measured")
    assert step_ratio(Verification((), (nothing,), "go", "r"), "fp16") is None


def test_the_words_of_torch_compile_name_both_times_and_fp32s():
    step = compiled_step(compiled(0.5, (0.4, 0.6), "better"))
    assert step is not None
    assert (step.faster, step.slower, step.over_fp32) == (True, False, 0.5)
    assert compiled_words(step).endswith("4.293 ms, plain FP16 11.67, x0.50 of IEEE FP32's")
