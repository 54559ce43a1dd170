"""The stages of measuring costs: their order and budget, what fails or is cut, and nothing lost when one does."""

import time

import pytest
import torch

from mpdiag.costs.kernels import ArmKernels
from mpdiag.costs.ladder import NOT_COUNTED
from mpdiag.costs.largest_batch import LargestBatch
from mpdiag.costs.memory import MemoryUse
from mpdiag.errors import UserCodeError
from mpdiag.measure.fleet import ArmsTooLargeError
from mpdiag.target import load_job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.verify import cost_run
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_run import CostRun
from mpdiag.verify.costs_asked import CostsAsked
from mpdiag.verify.plan import Pace
from mpdiag.verify.warm_up import that_fit, warm_up_seconds

CPU = torch.device("cpu")
ARMS = (
    Arm("fp32", FP32_IEEE),
    Arm("fp16", Precision("FP16", torch.float16, log2_scale=4)),
    Arm("fp16-pure", Precision("FP16, pure", torch.float16, pure=True), control=True),
)
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr("mpdiag.measure.timing.BLOCK_SECONDS", 0.005)
    monkeypatch.setattr("mpdiag.measure.timing.MAX_ROUNDS", 3)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return CostRun(load_job(str(tmp_path / "model.py")), ARMS, CPU, 0, lambda: None)


def measured(run, seconds=20.0, asked=CostsAsked()):  # noqa: B008 # frozen
    run.asked = asked
    run.run(run.job.start(0, 2), seconds, lambda line: None)
    return run.record()


def test_on_a_cpu_only_time_is_measured_and_everything_else_says_why(run):
    costs = measured(run, seconds=60.0, asked=CostsAsked(largest_batch=True))
    assert [arm.arm for arm in costs.timing.arms] == ["fp32", "fp16", "tf32"]
    assert all(arm.step_time_ms is not None for arm in costs.timing.arms)
    assert {use.arm for use in costs.memory} == {"fp32", "fp16"}
    reasons = [use.reason for part in (costs.memory, costs.energy, costs.gpm, costs.kernels) for use in part]
    reasons += [use.reason for use in costs.largest_batch] + [costs.counters_reason or costs.counters[0].reason]
    assert all("GPU" in reason or "budget" in reason for reason in reasons)


def test_the_largest_batch_is_searched_only_if_asked_for(run):
    costs = measured(run)
    assert costs.largest_batch == ()
    assert "--largest-batch" in costs.largest_batch_reason


def test_the_largest_batch_has_its_time_also_where_nothing_of_the_budget_is_left(run, monkeypatch):
    given = []

    def find(job, precision, seed, device, seconds, limit, report, arm):
        given.append(seconds)
        return LargestBatch(arm, precision.name, batch=8)

    monkeypatch.setattr("mpdiag.verify.batch_stage.find_largest_batch", find)
    costs = measured(run, seconds=0.0, asked=CostsAsked(largest_batch=True))
    assert [found.arm for found in costs.largest_batch] == ["fp32", "fp16"]
    assert all(seconds >= 60.0 for seconds in given)


def test_the_seconds_of_the_largest_batch_are_told_apart(run, monkeypatch):
    def find(job, precision, seed, device, seconds, limit, report, arm):
        time.sleep(0.2)
        return LargestBatch(arm, precision.name, batch=8)

    monkeypatch.setattr("mpdiag.verify.batch_stage.find_largest_batch", find)
    costs = measured(run, seconds=0.0, asked=CostsAsked(largest_batch=True))
    assert costs.largest_batch_seconds >= 0.4
    assert costs.seconds < 0.2


def test_arms_that_take_too_long_to_warm_up_are_not_timed_the_least_needed_first():
    arms = dict.fromkeys(("fp32", "fp32-configured", "fp16", "bf16", "tf32"), FP32_IEEE)
    pace = Pace({"fp32": 0.1, "fp16": 0.1}, build_seconds=1.6, first_step_seconds=0.1, evaluate_seconds=50.0)
    assert warm_up_seconds(arms, pace) == pytest.approx(15.0)  # 13 steps of 0.1 s, 0.1 s and 1.6 s an arm
    assert that_fit(arms, pace, 40.0, 0.35) == (arms, [])
    kept, cut = that_fit(arms, pace, 25.0, 0.35)
    assert list(kept) == ["fp32", "fp16", "bf16"]
    assert cut == [
        "arm fp32-configured: not timed, warming up all arms takes about 15 s, the time budget had 25 s left",
        "arm tf32: not timed, warming up all arms takes about 12 s, the time budget had 25 s left",
    ]
    assert list(that_fit(arms, pace, 0.0, 0.35)[0]) == ["fp32", "fp16"]
    assert that_fit(arms, None, 0.0, 0.35) == (arms, [])


def test_a_budget_too_short_to_warm_up_two_arms_times_none_and_says_what_it_takes(run, monkeypatch):
    run._pace = Pace({"fp32": 1.0, "fp16": 1.0}, build_seconds=7.0)
    monkeypatch.setattr(cost_run, "open_fleet", None)
    costs = measured(run, seconds=25.0)
    assert costs.timing is None
    assert "it takes about 43 s, the time budget had" in costs.timing_reason


def test_without_time_nothing_is_measured_and_everything_cut_is_named(run):
    costs = measured(run, seconds=0.0)
    assert costs.timing is None
    for reason in (costs.timing_reason, costs.memory_reason, costs.energy_reason, costs.kernels_reason):
        assert "time budget" in reason
    assert {line.partition(":")[0] for line in run.cut} >= {"memory", "step time", "hardware counters"}


def test_an_arm_that_does_not_fit_halves_the_batch_of_all_and_says_so(run, monkeypatch):
    sizes = []
    real = cost_run.open_fleet

    def crowded(job, start, arms, device, report):
        sizes.append(len(start.batches[0][0]))
        if sizes[-1] > 2:
            raise ArmsTooLargeError("fp32")
        return real(job, start, arms, device, report)

    monkeypatch.setattr(cost_run, "open_fleet", crowded)
    costs = measured(run)
    assert sizes == [8, 4, 2]
    assert costs.timing.samples == 2
    told = [line for line in run.cut if "did not fit" in line]
    assert told == ["costs: measured on 1/4 of the batch for all arms, because arm fp32 did not fit"]


def test_a_batch_that_cannot_be_halved_any_more_leaves_a_reason(run, monkeypatch):
    def never(job, start, arms, device, report):
        raise ArmsTooLargeError("fp32")

    monkeypatch.setattr(cost_run, "open_fleet", never)
    costs = measured(run)
    assert costs.timing is None
    assert "at any batch size" in costs.timing_reason
    assert {costs.energy_reason, costs.gpm_reason, costs.kernels_reason, costs.ceilings_reason} == {costs.timing_reason}


def test_a_baseline_that_raises_while_it_is_timed_is_a_reason_and_ends_nothing_else(run, monkeypatch):
    def broken(job, start, arms, device, report):
        raise UserCodeError("user-code", "ValueError while computing the loss: third time is once too often", "", "")

    monkeypatch.setattr(cost_run, "open_fleet", broken)
    costs = measured(run)
    assert "third time" in costs.timing_reason
    assert {costs.energy_reason, costs.gpm_reason, costs.kernels_reason, costs.ceilings_reason} == {costs.timing_reason}


def test_what_fails_late_keeps_what_was_measured_and_gives_the_rest_its_reason(run, monkeypatch):
    def broken(self, report):
        raise UserCodeError("user-code", "RuntimeError while running backward: the driver went away", "", "")

    monkeypatch.setattr(CostRun, "_ceilings", broken)
    costs = measured(run)
    assert costs.timing is not None
    assert costs.timing_reason is None
    assert "driver went away" in costs.energy_reason
    assert "driver went away" in costs.kernels_reason


def test_memory_that_fails_leaves_time(run, monkeypatch):
    def fails(*given, **named):
        raise OSError("no more processes")

    monkeypatch.setattr("mpdiag.verify.memory_stage.memory_of_arms", fails)
    costs = measured(run, seconds=60.0)
    assert "no more processes" in costs.memory_reason
    assert costs.timing is not None


def test_memory_measured_beside_the_training_is_waited_for(run, monkeypatch):
    use = MemoryUse("fp32", "FP32", 2**30, 2**31)
    monkeypatch.setattr("mpdiag.verify.memory_stage.memory_of_arms", lambda *given, **named: {"fp32": use})
    run._memory.begin(run._told(), 8, 10.0, lambda line: None)
    assert measured(run).memory == (use,)


def test_compiling_is_left_out_of_a_short_budget_and_named(run):
    measured(run)
    assert any(line.startswith("arm fp16-compile: not timed") for line in run.cut)


def test_progress_is_reported_after_every_stage(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    seen = []
    run = CostRun(load_job(str(tmp_path / "model.py")), ARMS, CPU, 0, lambda: seen.append(run.record()))
    measured(run)
    assert len(seen) >= 4
    assert any(costs.timing is not None and not costs.energy for costs in seen)


def test_an_arm_that_was_not_counted_has_that_reason_in_its_evidence(run, monkeypatch):
    def trace(run, **given):
        return ArmKernels(run.session.precision.name, "FP16", None, reason="nothing was traced")

    monkeypatch.setattr(cost_run, "trace_arm", trace)
    costs = measured(run, seconds=60.0)
    texts = {each.arm: each.ladder.levels[0].text for each in costs.kernels}
    expected = costs.counters_reason or NOT_COUNTED.format(arms="fp16")
    assert texts["fp32"] == expected
    assert texts["fp32"] != "not measured"


def test_ceilings_take_at_most_eight_seconds_and_at_least_half_of_that(run, monkeypatch):
    given = []
    real = cost_run.measure_ceilings

    def noted(device, seconds, **more):
        given.append(seconds)
        return real(device, seconds, **more)

    monkeypatch.setattr(cost_run, "measure_ceilings", noted)
    measured(run, seconds=1000.0)
    measured(run.__class__(run.job, ARMS, CPU, 0, lambda: None), seconds=20.0)
    assert given[0] == 8.0
    assert given[1:] in ([], [4.0])


def test_the_control_is_measured_only_where_that_is_asked_for(run):
    assert [arm.arm for arm in measured(run).timing.arms] == ["fp32", "fp16", "tf32"]
    costs = measured(run.__class__(run.job, ARMS, CPU, 0, lambda: None), seconds=40.0, asked=CostsAsked(controls=True))
    assert [arm.arm for arm in costs.timing.arms] == ["fp32", "fp16", "tf32", "fp16-pure"]
    assert [use.arm for use in costs.memory] == ["fp32", "fp16", "fp16-pure"]
    assert [each.arm for each in costs.kernels] == ["fp32", "fp16"]


def test_energy_is_measured_before_any_trace(run, monkeypatch):
    """torch.profiler slows whatever its process launches afterwards."""
    order = []
    real = cost_run.windows_of_arms

    def windows(*given):
        order.append("energy")
        return real(*given)

    def trace(run, **given):
        order.append("trace")
        raise ValueError("the trace is no JSON")

    monkeypatch.setattr(cost_run, "windows_of_arms", windows)
    monkeypatch.setattr(cost_run, "trace_arm", trace)
    costs = measured(run, seconds=60.0)
    assert order == ["energy", "trace", "trace"]
    assert {each.reason for each in costs.kernels} == {"ValueError: the trace is no JSON"}
    assert costs.counters_reason or costs.counters  # what comes after a trace that failed is not lost
