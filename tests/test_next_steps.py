"""What to do next: each cause of an undecided verification asks for something else; a slower FP16 is said."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # --import-mode=importlib adds no folder for neighbours

import report_samples as samples
from arm_samples import judged, trial

from mpdiag import settings
from mpdiag.accuracy import PairedTest
from mpdiag.diagnosis import Asked, Diagnosis
from mpdiag.report import time_needed
from mpdiag.report.html import render
from mpdiag.report.next_steps import scans_to_come, steps_from
from mpdiag.report.time_needed import budget_for


def undecided(needed: int | None, seeds: int = 3, pairs: int = 3, cut: tuple[str, ...] = (), **target) -> Diagnosis:
    made = samples.on_gpu()
    test = PairedTest("r", False, 0.75, 2.8, 2.0, needed, 1.0)
    comparison = replace(judged("fp16", "inconclusive"), test=test, seeds=pairs)
    trials = tuple(trial("fp16", seed) for seed in range(seeds))
    run = replace(made.verification, verdict="inconclusive", comparisons=(comparison,), trials=trials, cut=cut)
    return replace(made, verification=run, target=replace(made.target, **target))


def text(diagnosis: Diagnosis) -> str:
    return "\n".join(steps_from(diagnosis))


def test_a_number_of_seeds_that_one_can_run_is_named():
    assert "scan again with --seeds 12" in text(undecided(12))


def test_more_seeds_than_the_budget_had_time_for_need_a_longer_one_too():
    cut = ("only 2 of 3 seeds were run: the time budget was too short",)
    unknown = replace(undecided(12, cut=cut), elapsed_seconds={})
    assert "scan again with --seeds 12 and a longer --time-budget" in text(unknown)
    other = replace(undecided(12, cut=("energy: the time budget had 5 s left",)), elapsed_seconds={})
    assert "--time-budget" not in text(other)


def timed(seconds: float, costs: float = 0.0, **spent: float) -> Diagnosis:
    """Three seeds of two arms at four steps each: 24 steps."""
    made = undecided(12, cut=("arm bf16: not run, the time budget is 60 s",))
    run = made.verification
    pairs = (*run.trials, *(replace(t, arm="fp32") for t in run.trials))
    run = replace(run, trials=pairs, costs=replace(run.costs, seconds=costs))
    return replace(made, verification=run, elapsed_seconds={"verify": seconds, **spent}, asked=Asked(10, 3))


def test_the_budget_for_more_seeds_is_estimated_from_the_runs():
    # 1 s a step; 12 seeds of 10 steps in three arms, which have 0.75 of the budget
    assert budget_for(timed(24.0), 12) == 480
    assert "scan again with --seeds 12 --time-budget 480 (seconds, estimated" in text(timed(24.0))
    assert "--time-budget" not in text(timed(2.4))  # 48 s: the default is enough


def test_the_costs_and_the_search_of_islands_need_their_shares_of_the_budget_too():
    assert budget_for(timed(36.0, costs=12.0), 12) == 1200  # 0.4 of it is for training
    assert budget_for(timed(24.0, islands=1.0), 12) == 720


def test_the_estimate_shares_a_budget_as_the_verification_does():
    names = "TRAINING_SHARE", "PREDICTION_SHARE", "ISLANDS_SHARE"
    assert [getattr(time_needed, name) for name in names] == [getattr(settings, name) for name in names]
    assert time_needed.DEFAULT_SECONDS == settings.TIME_BUDGET_SECONDS


def test_without_a_time_there_is_no_estimate():
    assert budget_for(timed(0.0), 12) is None
    assert budget_for(replace(timed(24.0), verification=None), 12) is None


def test_no_number_of_seeds_is_asked_for_where_fp16_raised():
    made = undecided(89)
    broken = tuple(replace(t, error="boom") for t in made.verification.trials)
    assert "scan again" not in text(replace(made, verification=replace(made.verification, trials=broken)))


def test_do_this_and_the_terminal_name_the_same_scans():
    made = undecided(12)
    assert scans_to_come(made) == [step for step in steps_from(made) if "scan again" in step or "CUDA GPU" in step]
    assert "<b>Next:</b> scan again with" in render(made, plotly="none")


def test_more_seeds_than_anyone_runs_become_a_later_stage_of_training():
    assert "--start-from CHECKPOINT" in text(undecided(89))
    assert "--seeds" not in text(undecided(89))
    assert "--start-from" not in text(undecided(89, start_from="late.pt"))


def test_a_metric_that_is_too_coarse_asks_for_more_samples_and_not_for_seeds():
    made = undecided(None)
    test = PairedTest("r", False, 0.01, 0.0, 0.01, None, 0.005, 0.01)
    metric = replace(judged("fp16", "inconclusive", "top_5"), test=test, seeds=3)
    loss = replace(judged("fp16", "equivalent"), test=PairedTest("r", True), seeds=3)
    found = text(replace(made, verification=replace(made.verification, comparisons=(loss, metric))))
    assert "validate on more samples: top 5 moves in steps that are too coarse" in found
    assert "scatter" not in found
    scattered = replace(loss, verdict="inconclusive", test=PairedTest("r", False, 0.75, 2.8, 2.0, 9, 1.0))
    both = replace(made, verification=replace(made.verification, comparisons=(scattered, metric)))
    assert "scan again with --seeds 9" in text(both)


def test_seeds_that_change_nothing_ask_for_a_shuffle():
    found = text(undecided(None, seeds=3, pairs=1))
    assert "every seed gave the same FP32 run" in found
    assert "torch.randperm" in found


def test_a_budget_that_ended_before_the_second_seed_asks_for_a_longer_one():
    found = text(undecided(None, seeds=1, pairs=1, cut=("not run, the time budget was used up: fp32 with seed 1",)))
    assert "longer --time-budget" in found
    assert "scatter" not in found


def test_one_seed_that_was_asked_for_asks_for_three():
    one = replace(undecided(None, seeds=1, pairs=1, cut=("memory: not measured, the time budget had 3 s left",)))
    found = text(replace(one, asked=Asked(100, 1)))
    assert "scan again with --seeds 3: one seed" in found
    assert "--verify-steps" not in found
    assert "--time-budget" not in found
    assert "--seeds 3" not in text(replace(one, asked=Asked(100, 5)))


def test_fp16_that_takes_longer_is_said_before_the_code():
    made = samples.on_gpu()
    slower = replace(judged("fp16", "worse", "step_time_ms", difference=1.31), is_ratio=True)
    kept = tuple(c for c in made.verification.comparisons if c.quantity != "step_time_ms")
    run = replace(made.verification, verdict="go", comparisons=(*kept, slower))
    assert "FP16 saves no time on this job as it is (x1.31)" in text(replace(made, verification=run))
    assert "saves no time" not in text(made)


def test_on_a_laptop_the_way_to_a_gpu_is_named():
    assert "mpdiag verify RUN.json" in text(replace(samples.full(), environment=samples.environment(None)))
    assert "mpdiag verify RUN.json" not in text(samples.on_gpu())
