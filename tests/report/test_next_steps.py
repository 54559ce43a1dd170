"""What to do next: each cause of an undecided verification asks for something else; a slower FP16 is said."""

import math
from dataclasses import replace

import pytest

import report_samples as samples
from arm_samples import judged, trial
from mpdiag import settings
from mpdiag.accuracy import PairedTest
from mpdiag.costs.kernels import WhyNot
from mpdiag.diagnosis import Asked, Diagnosis, Finding
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
    # 24 steps and 8 of the rehearsal, 1 s each; 12 seeds of 10 steps in three arms, which have 0.75 of the budget
    assert budget_for(timed(32.0), 12) == 500
    assert "scan again with --seeds 12 --time-budget 500 (seconds, estimated" in text(timed(32.0))
    assert "--time-budget" not in text(timed(3.2))  # 50 s: the default is enough


def test_what_a_run_takes_besides_its_steps_is_not_counted_once_a_step():
    # six runs and the rehearsal's two; then 36 runs and two, of 1 s each to build, and a metric of 3 s in 37 of them
    assert budget_for(timed(32.0, build=8.0), 12) == 550  # (368 + 38) / 0.75
    assert budget_for(timed(32.0, evaluate=21.0), 12) == 640  # (368 + 111) / 0.75


def test_the_costs_and_the_search_of_islands_need_their_shares_of_the_budget_too():
    assert budget_for(timed(44.0, costs=12.0), 12) == 1300  # 0.4 of it is for training
    assert budget_for(timed(32.0, islands=1.0), 12) == 740


def test_the_estimate_shares_a_budget_as_the_verification_does():
    names = "TRAINING_SHARE", "PREDICTION_SHARE", "ISLANDS_SHARE"
    assert [getattr(time_needed, name) for name in names] == [getattr(settings, name) for name in names]
    assert time_needed.DEFAULT_SECONDS == settings.TIME_BUDGET_SECONDS


def test_the_estimate_counts_the_rehearsal_that_there_is():
    from mpdiag.verify.rehearsal import REHEARSAL_STEPS

    assert time_needed.REHEARSAL_STEPS == REHEARSAL_STEPS


def test_without_a_time_there_is_no_estimate():
    assert budget_for(timed(0.0), 12) is None
    assert budget_for(replace(timed(24.0), verification=None), 12) is None


def test_a_job_in_which_nothing_trains_is_to_be_mended_before_more_is_run():
    made = undecided(12)
    still = Finding("MP518", "nothing-trains", "warning", "lr", "no weight changed", {}, "set a rate above 0")
    found = text(replace(made, advice=replace(made.advice, findings=(still,))))
    assert "MP518: set a rate above 0" in found
    assert "--seeds" not in found


def test_where_fp32_does_not_repeat_itself_that_comes_first():
    made = undecided(12)
    told = "FP32 ends 0.6 from its first run: the GPU adds up in another order; scan from a trained state"
    found = text(replace(made, verification=replace(made.verification, strays="FP32 ends 0.6", reason=told)))
    assert "so that FP32 repeats itself: scan from a trained state" in found
    assert "--seeds" not in found


def test_no_number_of_seeds_is_asked_for_where_fp16_raised():
    made = undecided(89)
    broken = tuple(replace(t, error="boom") for t in made.verification.trials)
    assert "scan again" not in text(replace(made, verification=replace(made.verification, trials=broken)))


def fp32_of(made: Diagnosis, *trials) -> Diagnosis:
    return replace(made, verification=replace(made.verification, trials=(*made.verification.trials, *trials)))


def test_an_fp32_run_that_diverges_is_to_be_mended_before_anything_is_run_longer():
    diverged = replace(trial("fp32", 2), losses=(1.0, 2.0, math.nan, math.nan))
    made = replace(undecided(None), environment=samples.environment(None))
    found = text(fp32_of(made, trial("fp32", 1), diverged))
    assert "mend the FP32 job first: with seed 2 its loss is not finite at step 3" in found
    assert "scatter" not in found
    assert "CUDA GPU" not in found, "it diverges there too"
    recovered = replace(diverged, losses=(math.nan, 2.0, 1.0, 1.0))
    assert "mend the FP32 job" not in text(fp32_of(made, recovered)), "what is compared is finite"


@pytest.mark.parametrize(("metric", "said"), [({"auc": math.nan}, "gave nan for auc"), ({}, "gave no auc")])
def test_a_metric_that_fp32_does_not_give_is_to_be_mended_in_evaluate(metric, said):
    sound = replace(trial("fp32", 1), metric={"auc": 0.5})
    found = text(fp32_of(undecided(None), sound, replace(trial("fp32", 2), metric=metric)))
    assert f"mend evaluate(): it {said} in FP32 with seed 2" in found
    assert "scatter" not in found


def test_what_ended_the_scan_is_the_only_next_step():
    stopped = replace(samples.full(), verification=None, reason="loss-not-finite: inf", hint="mend the FP32 job first")
    stopped = replace(stopped, environment=samples.environment(None))
    assert steps_from(stopped) == ["mend the FP32 job first"]
    page = render(stopped, plotly="none")
    assert "<p>Mend the FP32 job first.</p>" in page
    assert "Train in" not in page
    assert "mpdiag verify RUN.json" not in page.partition('id="do-this"')[2].partition("</section>")[0]


def test_a_fault_of_ours_is_told_first_and_leaves_the_advice():
    stopped = replace(samples.full(), verification=None, reason="internal: KeyError in mpdiag", hint="please report it")
    found = steps_from(stopped)
    assert found[0] == "please report it"
    assert len(found) > 1


def test_a_verdict_that_was_reached_before_leaves_its_steps_after_the_hint():
    made = samples.on_gpu()
    stopped = replace(made, reason="user-code: ValueError", hint="mend f.py:3")
    assert steps_from(stopped) == ["mend f.py:3", *steps_from(made)]


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


def because(reason: str, quantity: str = "rank") -> str:
    """The steps where the loss is equal and a metric undecided for this reason."""
    made = undecided(None)
    test = PairedTest("a rule", noninferior=False)
    loss, metric = judged("fp16", "equivalent"), replace(judged("fp16", "inconclusive", quantity, reason), test=test)
    run = replace(made.verification, comparisons=(replace(loss, test=test), metric))
    return text(replace(made, verification=run))


def test_a_metric_of_unknown_direction_asks_for_it_and_not_for_longer_runs():
    said = because("its name does not say which way is better: set HIGHER_IS_BETTER")
    assert "which way rank is better, HIGHER_IS_BETTER = {'rank': True} or False" in said
    assert "scatter" not in said


def test_a_metric_that_lacks_a_seed_does_not_tell_that_seeds_are_alike():
    made = undecided(9)
    given = judged("fp16", "not-measured", "rank", test=PairedTest("a rule"))
    run = replace(made.verification, comparisons=(*made.verification.comparisons, replace(given, seeds=0)))
    assert text(replace(made, verification=run)) == text(made)


def test_one_step_asks_for_more_and_vast_values_for_another_unit():
    short = because("one step shows no training: its loss comes before the first update", "loss")
    assert "scan again with --verify-steps 20 or more" in short
    vast = because("values beyond 1e+150 cannot be judged")
    assert "give rank in another unit" in vast
    assert "scatter" not in short + vast


def test_an_evaluate_that_fails_in_fp16_is_a_step_though_it_is_no_error():
    made = undecided(9)
    found = Finding("MP609", "evaluation-fails", "warning", "evaluate()", "m", {}, "cast it to FP32")
    assert "MP609: cast it to FP32" in text(replace(made, advice=replace(made.advice, findings=(found,))))
    info = replace(found, severity="info")
    assert "MP609" not in text(replace(made, advice=replace(made.advice, findings=(info,))))


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


def test_torch_compile_is_not_proposed_where_it_was_timed_and_is_no_faster(monkeypatch):
    monkeypatch.setattr("mpdiag.report.worth_it.launch_bound", lambda kernels, arm: True)
    made = samples.on_gpu()
    slower = replace(judged("fp16", "worse", "step_time_ms", difference=1.31), is_ratio=True)
    kept = tuple(c for c in made.verification.comparisons if c.quantity != "step_time_ms")

    def told(*more):
        return text(replace(made, verification=replace(made.verification, comparisons=(*kept, slower, *more))))

    assert "a larger batch, torch.compile or CUDA graphs come first" in told()
    compiled = replace(slower, candidate="fp16-compile", difference=1.16)
    assert "a larger batch or CUDA graphs come first" in told(compiled)
    assert "torch.compile" in told(replace(compiled, difference=0.8))


def test_a_remedy_that_was_timed_and_is_faster_comes_among_the_next_steps():
    made = samples.on_gpu()
    faster = WhyNot("nchw-transposes", "layout changes", "model.to(memory_format=torch.channels_last)", 6.25, "arm")
    bound = replace(faster, gain_from="bound")
    fp16 = next(each for each in made.verification.costs.kernels if each.arm == "fp16")
    costs = replace(made.verification.costs, kernels=(replace(fp16, findings=(faster, bound)),))
    found = text(replace(made, verification=replace(made.verification, costs=costs)))
    assert found.count("faster still by 6.25 ms a step, as timed: model.to(memory_format=torch.channels_last)") == 1


def test_on_a_laptop_the_way_to_a_gpu_is_named():
    assert "mpdiag verify RUN.json" in text(replace(samples.full(), environment=samples.environment(None)))
    assert "mpdiag verify RUN.json" not in text(samples.on_gpu())
