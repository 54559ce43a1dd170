"""Step times on a real GPU: equal arms are not called different, clocks and company are noted, fused skips are seen."""

import math

import pytest
import torch

from mpdiag.costs.record import Costs
from mpdiag.measure.fleet import open_fleet
from mpdiag.measure.steady import skips_watched
from mpdiag.measure.timing import time_arms
from mpdiag.target import load_job
from mpdiag.training.precision import FP16_AUTOCAST, FP32_IEEE
from mpdiag.verify.cost_ratios import STEP_TIME, cost_comparisons

pytestmark = pytest.mark.gpu

MODEL = """
import torch
def build_model():
    return torch.nn.Sequential(*(torch.nn.Linear({width}, {width}) for _ in range({layers})))
def train_batches():
    return [(torch.randn({samples}, {width}), torch.randn({samples}, {width})) for _ in range(2)]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""
SIZES = {"compute bound": (4096, 4, 4096), "launch bound": (32, 20, 8)}


def timed(tmp_path, gpu, arms, width, layers, samples):
    (tmp_path / "model.py").write_text(MODEL.format(width=width, layers=layers, samples=samples))
    job = load_job(str(tmp_path / "model.py"))
    with open_fleet(job, job.start(0, 2), arms, gpu) as fleet:
        return time_arms(fleet, 15.0)


@pytest.mark.parametrize("size", SIZES)
def test_arms_that_are_built_apart_and_compute_the_same_are_not_called_different(tmp_path, gpu, size):
    arms = {"fp32": FP32_IEEE} | {f"twin {i}": FP32_IEEE for i in range(4)}
    timing = timed(tmp_path, gpu, arms, *SIZES[size])
    found = [c for c in cost_comparisons(Costs(timing=timing), "fp32", list(arms)) if c.quantity == STEP_TIME]
    for each in found:
        print(size, each.candidate, each.difference, each.interval, each.verdict, each.reason)
    assert len(found) == 5
    assert not {"better", "worse"} & {c.verdict for c in found}
    for each in found:
        assert each.candidate_value / each.baseline_value == pytest.approx(each.difference)


def test_a_faster_arm_is_found_with_its_clock_and_the_company_it_had(tmp_path, gpu):
    timing = timed(tmp_path, gpu, {"fp32": FP32_IEEE, "fp16": FP16_AUTOCAST}, *SIZES["compute bound"])
    found = {c.candidate: c for c in cost_comparisons(Costs(timing=timing), "fp32", ["fp16"])}
    print(timing.sharing, timing.others, [(a.arm, a.clocks_mhz, a.temperatures_c, a.limited_by) for a in timing.arms])
    assert found["again"].quantity == STEP_TIME
    assert timing.shared is None
    low, high = timing.arms[0].clocks_mhz
    assert 200 < low <= high < 4000
    assert timing.arms[1].step_time_ms < timing.arms[0].step_time_ms


@pytest.mark.parametrize("fused", [False, True])
def test_a_skip_is_seen_though_a_fused_optimizer_is_called_for_it(gpu, fused):
    weight = torch.nn.Parameter(torch.ones(8, device=gpu))
    optimizer = torch.optim.AdamW([weight], fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0, growth_interval=2)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    with skips_watched(scaler) as skipped:
        for _ in range(5):
            step(1.0)
        assert not skipped()
    with skips_watched(scaler) as skipped:
        for factor in (1.0, 1.0, math.inf):
            step(factor)
        assert skipped()
