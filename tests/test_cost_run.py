"""The stages of measuring costs: their order and budget, what fails or is cut, and nothing lost when one does."""

import pytest
import torch

from mpdiag.costs.memory import MemoryUse
from mpdiag.errors import UserCodeError
from mpdiag.measure.fleet import ArmsTooLargeError
from mpdiag.target import load_job
from mpdiag.training.precision import FP32_IEEE, Precision
from mpdiag.verify import cost_run
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_run import CostRun, CostsAsked

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
    run.run(run.job.start(0, 2), seconds, lambda line: None, asked)
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

    monkeypatch.setattr(cost_run, "memory_of_arms", fails)
    costs = measured(run, seconds=60.0)
    assert "no more processes" in costs.memory_reason
    assert costs.timing is not None


def test_memory_measured_beside_the_training_is_waited_for(run, monkeypatch):
    use = MemoryUse("fp32", "FP32", 2**30, 2**31)
    monkeypatch.setattr(cost_run, "memory_of_arms", lambda *given, **named: {"fp32": use})
    run._begin_memory(8, 10.0, lambda line: None, None)
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
