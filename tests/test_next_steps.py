"""What to do next: each cause of an undecided verification asks for something else; a slower FP16 is said."""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # --import-mode=importlib adds no folder for neighbours

import report_samples as samples
from arm_samples import judged, trial

from mpdiag.accuracy import PairedTest
from mpdiag.diagnosis import Asked, Diagnosis
from mpdiag.report.next_steps import steps_from


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
