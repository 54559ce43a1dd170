"""The time budget of a verification is kept within a fifth, whatever building, counting and stepping take.

Time here is a clock that only the job moves: what a model takes to build, a step to compute, the metric to evaluate.
"""

import math
import time

import pytest

import mpdiag
from mpdiag.report.time_needed import budget_for
from mpdiag.settings import MIN_VERIFY_STEPS, PREDICTION_SHARE
from mpdiag.verify.deadline import Deadline

MODEL = """
import time, torch
def took(seconds): time.perf_counter.now += seconds
def build_model():
    took({build})
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1))
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(4)]
CALLS = []
def compute_loss(model, batch):
    CALLS.append(1)
    took({step} * ({slower} if len(CALLS) > 100 else 1))
    return ((model(batch[0]) - batch[1]) ** 2).mean()
def evaluate(model):
    took({metric})
    return 1.0
"""


class Clock:
    """Stands in for time.perf_counter."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def scan(budget, build=0.0, step=0.0, metric=0.0, slower=1, **options):
        (tmp_path / "model.py").write_text(MODEL.format(build=build, step=step, metric=metric, slower=slower))
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", Clock())
            return mpdiag.scan("model.py", device="cpu", time_budget_seconds=budget, **options)

    return scan


def seconds_of(found):
    return sum(found.elapsed_seconds.get(stage, 0.0) for stage in ("prediction", "verify", "build", "evaluate"))


@pytest.mark.parametrize(
    ("build", "step", "metric"),
    [
        (0.0, 0.02, 0.0),
        (1.5, 0.05, 0.0),  # a GPT of 110 M parameters on an H100: its model takes longer than thirty of its steps
        (0.3, 0.2, 0.0),
        (0.1, 0.01, 1.0),
        (0.5, 0.001, 0.5),
    ],
)
@pytest.mark.parametrize("budget", [27.0, 60.0])
def test_the_whole_verification_stays_within_a_fifth_of_its_budget(scanned, budget, build, step, metric):
    found = scanned(budget, build, step, metric)
    assert seconds_of(found) <= 1.2 * budget
    assert found.elapsed_seconds["prediction"] <= 1.2 * PREDICTION_SHARE * budget
    arms = {trial.arm for trial in found.verification.trials}
    assert arms >= {"fp32", "fp16"}
    assert all(trial.steps >= MIN_VERIFY_STEPS for trial in found.verification.trials)


def test_a_job_that_becomes_slower_than_foreseen_is_cut_between_runs_and_every_seed_keeps_its_pair(scanned):
    found = scanned(27.0, build=0.1, step=0.05, slower=3, verify_steps=20, seeds=4)
    assert seconds_of(found) <= 1.2 * 27.0
    assert any(line.startswith("not run, the time budget was used up: ") for line in found.verification.cut)
    run = {(trial.arm, trial.seed) for trial in found.verification.trials}
    assert {seed for arm, seed in run if arm == "fp32"} == {seed for arm, seed in run if arm == "fp16"}
    assert {arm for arm, _ in run} > {"fp32", "fp16"}


def test_a_job_that_becomes_quicker_than_foreseen_has_the_seeds_that_were_asked_for(scanned):
    """As on a machine that was busy while the runs were planned."""
    slow = scanned(27.0, build=0.1, step=0.05, verify_steps=20, seeds=8).verification
    assert any(line.startswith("only 5 of 8 seeds were run") for line in slow.cut)
    quick = scanned(27.0, build=0.1, step=0.05, slower=0.1, verify_steps=20, seeds=8).verification
    assert len({trial.seed for trial in quick.trials}) == 8
    assert not any("seeds were run" in line or line.startswith("not run") for line in quick.cut)
    some = scanned(27.0, build=0.1, step=0.05, slower=0.7, verify_steps=20, seeds=8).verification
    count = len({trial.seed for trial in some.trials})
    assert 5 < count < 8
    assert [line.partition(":")[0] for line in some.cut if "seeds were run" in line] == [
        f"only {count} of 8 seeds were run"
    ]


def test_what_is_cut_is_told_by_the_budget_that_was_asked_for(scanned):
    found = scanned(27.0, build=1.5, step=0.05)
    told = next(line for line in found.verification.cut if "steps were trained" in line or "seeds were run" in line)
    assert "the time budget of 27 s had" in told
    assert "the prediction took" in told
    assert "trying out FP32 and FP16 and their first gradients took" in told


def test_building_and_evaluating_are_told_apart_from_the_steps(scanned):
    found = scanned(600.0, build=0.5, step=0.01, metric=2.0, verify_steps=10, seeds=2)
    runs = len(found.verification.trials)
    assert found.elapsed_seconds["evaluate"] == pytest.approx(2.0 * (runs + 1))  # FP32's rehearsal is evaluated too
    assert found.elapsed_seconds["build"] >= 0.5 * (runs + 2)  # ... and FP16's is built
    assert 0.01 * (10 * runs + 8) <= found.elapsed_seconds["verify"] < 2.0, "steps alone, by whatever is checked"


def test_the_budget_that_is_named_after_a_short_run_is_the_one_that_is_needed(scanned):
    short = scanned(1.0, step=0.01, metric=3.0, verify_steps=100, seeds=3)
    assert {trial.steps for trial in short.verification.trials} == {MIN_VERIFY_STEPS}
    needed = budget_for(short, 3)
    found = scanned(float(needed), step=0.01, metric=3.0, verify_steps=100, seeds=3)
    assert not [line for line in found.verification.cut if "time budget" in line]
    assert {trial.steps for trial in found.verification.trials} == {100}
    assert needed < 2 * seconds_of(found)


def test_a_slow_metric_is_not_taken_to_be_slower_where_the_steps_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = MODEL.format(build=0.0, step=0.0, metric=3.0, slower=1)
    slow = "took(0.01 if model(batch[0]).dtype == torch.float32 else 0.05)"
    (tmp_path / "model.py").write_text(model.replace("took(0.0 * (1 if len(CALLS) > 100 else 1))", slow))
    monkeypatch.setattr(time, "perf_counter", Clock())
    found = mpdiag.scan("model.py", device="cpu", time_budget_seconds=100.0, verify_steps=20, seeds=3)
    assert not [line for line in found.verification.cut if "time budget" in line]
    assert len({trial.seed for trial in found.verification.trials}) == 3


def test_a_prediction_that_is_cut_says_what_was_compared(scanned):
    found = scanned(27.0, build=1.2, step=0.05).verification
    assert {tensor.trained_steps for tensor in found.prediction.tensors} == {0}
    told = [line for line in found.cut if line.startswith("prediction:")]
    assert len(told) == 1
    assert "only the initial weights" in told[0]
    assert "of the time budget" in told[0]


def test_a_prediction_with_time_enough_is_whole(scanned):
    found = scanned(600.0, build=0.5, step=0.05, verify_steps=10).verification
    assert {tensor.trained_steps for tensor in found.prediction.tensors} == {0, 20}
    assert not any(line.startswith("prediction:") for line in found.cut)


def test_with_less_time_fewer_steps_are_trained_before_the_second_comparison(scanned):
    found = scanned(60.0, build=0.0, step=0.6, verify_steps=10).verification
    later = {tensor.trained_steps for tensor in found.prediction.tensors} - {0}
    assert len(later) == 1
    assert 0 < later.pop() < 20
    assert any("of 20 FP32 steps" in line for line in found.cut)


def test_a_prediction_for_which_no_time_is_gives_the_reason(scanned):
    found = scanned(10.0, build=2.0, step=0.9, verify_steps=10).verification
    assert found.prediction is None or not found.prediction.tensors
    assert found.prediction_reason.startswith("not measured: ")
    assert "time budget" in found.prediction_reason


def test_a_deadline_without_seconds_never_ends():
    assert Deadline().left == math.inf
    assert Deadline(0.0).left <= 0
