"""Arms that are built block by block: which of them fit into the time for timing, and what is not timed says why."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpdiag.arm_names import FP16_COMPILED
from mpdiag.measure import timing
from mpdiag.measure.fleet import Fleet, open_fleet
from mpdiag.measure.timing import ANEW, arms_left_out, time_arms
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE
from mpdiag.verify import cost_run
from mpdiag.verify.arms import Arm
from mpdiag.verify.cost_run import CostRun
from mpdiag.verify.warm_up import LEFT_OUT_FIRST

ORDER = (FP16_COMPILED, *LEFT_OUT_FIRST)
SEVEN = ("fp32", "fp32-configured", "fp16", "fp16-pure", "bf16", "tf32", "fp16-channels-last")
MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1)) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


def fleet(build: float = 12.0, step: float = 0.05, names: tuple[str, ...] = SEVEN, resident: bool = False) -> Any:
    """Arms that all take as long to build and to step."""
    ready = {} if resident else dict.fromkeys(names, build)
    return SimpleNamespace(
        usable=list(names), step_seconds=dict.fromkeys(names, step), ready_seconds=ready, resident=resident
    )


def left_out(seconds: float, most: float | None = None, **more: Any) -> tuple[list[str], str | None]:
    found, why = arms_left_out(fleet(**more), seconds, seconds if most is None else most, ORDER)
    return list(found), why


def test_arms_in_memory_are_all_timed_however_little_time_there_is():
    assert left_out(0.1, resident=True) == ([], None)


def test_with_time_for_three_rounds_of_all_none_is_left_out():
    # 8 blocks a round of 12 s and 6 steps of 0.05 s
    assert left_out(3 * 8 * 12.3) == ([], None)


def test_the_least_needed_go_first_until_three_rounds_of_the_others_fit():
    assert left_out(3 * 8 * 12.3 - 1) == (["fp16-pure"], None)
    assert left_out(3 * 5 * 12.3) == (["fp16-pure", "fp32-configured", "fp16-channels-last"], None)
    assert left_out(3 * 3 * 12.3) == (["fp16-pure", "fp32-configured", "fp16-channels-last", "tf32", "bf16"], None)


def test_torch_compile_which_compiles_for_every_block_goes_before_all_others():
    assert left_out(3 * 4 * 12.3, names=("fp32", "fp16", "bf16", "fp16-compile"))[0] == ["fp16-compile"]


def test_fp32_and_fp16_alone_may_take_all_that_is_left_of_the_budget():
    assert left_out(8.0, most=111.0)[1] is None
    assert len(left_out(8.0, most=111.0)[0]) == 5


def test_where_not_even_fp32_and_fp16_fit_nothing_is_timed_and_the_reason_has_both_times():
    found, why = left_out(8.0, most=23.0)
    assert found == []
    assert why == f"{ANEW}: 3 rounds of fp32 and fp16 take about 111 s, the time budget had 23 s left"


def test_an_arm_that_is_left_out_says_what_building_it_takes():
    found, _ = arms_left_out(fleet(), 3 * 8 * 12.3 - 1, 1e9, ORDER)
    assert found["fp16-pure"] == (
        "the arms do not fit in memory together, so each block builds its arm anew, this one in 12 s: left out, so "
        "that 3 rounds of the others fit into the time budget"
    )


@given(st.floats(0.1, 60.0), st.floats(0.001, 20.0), st.floats(1.0, 2000.0), st.integers(2, 7))
def test_whatever_is_kept_takes_no_longer_than_was_given(build, step, seconds, count):
    made = fleet(build, step, ("fp32", "fp16", *SEVEN[3:])[:count])
    cut, why = arms_left_out(made, seconds, seconds, ORDER)
    kept = [name for name in made.usable if name not in cut]
    assert kept[:2] == ["fp32", "fp16"]
    if why is None:
        lengths = {name: timing._block_steps(step) for name in kept}
        rounds = timing._rounds(lengths, made.step_seconds, "fp32", seconds, made.ready_seconds)
        took = rounds * sum(timing._round_seconds(lengths, made.step_seconds, "fp32", made.ready_seconds))
        assert rounds >= timing.MIN_ROUNDS
        assert took <= seconds * (1 + 1e-9)


@pytest.fixture
def job(tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    return load_job(str(tmp_path / "model.py"))


def test_what_is_left_out_has_its_reason_in_the_record_and_the_others_their_times(job):
    arms = {"fp32": FP32_IEEE, "bf16": FP32_IEEE, "fp16": FP16_AUTOCAST}
    with open_fleet(job, job.start(0, 2), arms, torch.device("cpu")) as opened:
        found = time_arms(opened, 0.1, {"bf16": "no time"})
    assert {arm.arm: arm.reason for arm in found.arms} == {"fp32": None, "bf16": "no time", "fp16": None}
    assert [arm.step_time_ms is None for arm in found.arms] == [False, True, False]
    assert all("bf16" not in turns for turns in found.order)


SECONDS = 19.0  # under those in which memory would be measured


def cost_run_of(job, monkeypatch, build: float) -> CostRun:
    """A cost run on the CPU whose arms do not fit together and take `build` seconds to build, as they say."""
    real = Fleet._one_by_one

    def one_by_one(self, report):
        real(self, report)
        self.ready_seconds = dict.fromkeys(self.ready_seconds, build)

    monkeypatch.setattr(Fleet, "_together", lambda self, stack, report: False)
    monkeypatch.setattr(Fleet, "_one_by_one", one_by_one)
    monkeypatch.setattr("mpdiag.measure.timing.BLOCK_SECONDS", 0.005)
    monkeypatch.setattr("mpdiag.measure.timing.MAX_ROUNDS", 3)
    monkeypatch.setattr(CostRun, "_left", lambda self: SECONDS)  # however busy this machine is
    arms = (Arm("fp32", FP32_IEEE), Arm("fp16", FP16_AUTOCAST))
    run = CostRun(job, arms, torch.device("cpu"), 0, lambda: None)
    run.run(job.start(0, 2), SECONDS, lambda line: None)
    return run


def test_a_cost_run_names_what_it_left_out_and_times_the_rest(job, monkeypatch):
    run = cost_run_of(job, monkeypatch, build=0.6)  # 3 rounds of 4 blocks of 0.6 s, in 35 % of 19 s
    assert [line.partition(":")[0] for line in run.cut if "builds its arm anew" in line] == ["arm tf32"]
    times = {arm.arm: arm.step_time_ms for arm in run.record().timing.arms}
    assert (times["tf32"], times["fp16"] is None) == (None, False)


def test_a_cost_run_whose_arms_take_too_long_to_build_has_no_step_time_and_says_why(job, monkeypatch):
    timed = []
    monkeypatch.setattr(cost_run, "time_arms", lambda *given: timed.append(given))
    run = cost_run_of(job, monkeypatch, build=12.0)
    assert timed == []
    costs = run.record()
    assert costs.timing is None
    told = "3 rounds of fp32 and fp16 take about 108 s, the time budget had 19 s left"
    assert costs.timing_reason.startswith(f"{ANEW}: {told}")
    assert f"step time: not measured, {costs.timing_reason}" in run.cut
