"""FP32 islands under CUDA's own autocast, found, trained and timed."""

from pathlib import Path

import pytest
import torch

import mpdiag

pytestmark = pytest.mark.gpu

WIDE = str(Path(__file__).resolve().parents[1] / "islands" / "t5_wide.py")


@pytest.fixture(scope="module")
def wide():
    return mpdiag.scan(WIDE, device="cuda", steps=10, verify_steps=30, seeds=2, time_budget_seconds=120.0)


def test_the_plan_trains_where_fp16_overflows(wide):
    plan = wide.advice.plan
    assert (plan.keep_fp32, plan.enough, plan.minimal, plan.emulated) == (("encoder.1.1.wo",), True, True, False)
    final = {t.arm: t.losses[-1] for t in wide.verification.trials if t.seed == 0 and t.losses}
    assert final["fp16"] != final["fp16"]
    assert abs(final["fp16-plan"] - final["fp32"]) < 0.05 * final["fp32"]


def test_the_speed_lost_has_no_measure_where_plain_fp16_skips_every_step(wide):
    plan = wide.advice.plan
    assert (plan.step_time_ratio, plan.step_time_reference, plan.step_time_interval) == (None, None, None)
    assert plan.step_time_reason.startswith("fp16: the GradScaler skipped steps in all ")
    times = {each.arm: each.step_time_ms for each in wide.verification.costs.timing.arms}
    assert times["fp16-plan"] is not None


def test_the_plan_knows_what_it_leaves_in_fp16_and_what_it_keeps(wide):
    plan = wide.advice.plan
    assert (plan.half_share_reason, plan.mostly_fp32) == (None, False)
    assert 0.5 < plan.half_share < 1
    assert len(plan.modules) == 1
    assert plan.modules[0].startswith("Linear ")


def test_plain_fp16s_first_overflow_is_found_by_a_second_look(wide):
    (found, *_) = [t.overflow for t in wide.verification.trials if t.arm == "fp16"]
    assert (found.step, found.module, found.reason) == (1, "encoder.1.1.wo", None)
    assert found.abs_max_fp32 > 65504
    assert [t.overflow for t in wide.verification.trials if t.arm in ("fp32", "fp16-plan")] == [None] * 4
    (told,) = [f for f in wide.advice.findings if f.code == "MP606"]
    assert (told.severity, told.evidence["module"]) == ("warning", "encoder.1.1.wo")


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_an_island_under_cuda_autocast_is_fp32_also_compiled(gpu, backend):
    model = mpdiag.apply(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)).to(gpu), ["1"])
    run = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(8, 64, device=gpu)
    with torch.autocast("cuda", dtype=torch.float16):
        assert run(x).dtype == model(x).dtype == torch.float32
        assert model[0](x).dtype == torch.float16
        loss = run(x).sum()
    loss.backward()
    assert model[1].weight.grad.dtype == torch.float32
