"""What a plan of FP32 islands leaves in FP16: its share of the products, and that nothing left is no plan."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from mpdiag.advice import advise
from mpdiag.advice.islands import described, in_forward_order
from mpdiag.capture.autocast_types import observe
from mpdiag.capture.loop_facts import observe_loop
from mpdiag.capture.run import Observation, observe_training
from mpdiag.diagnosis import Advice, Capture, SelfTest
from mpdiag.loop import Event, LoopEvent
from mpdiag.plan import LEAST_HALF_SHARE, NOTHING_LEFT, IslandPlan, plan_snippet
from mpdiag.target.job import ONLY, Job
from mpdiag.verify import island_gradients, products_left
from mpdiag.verify.arms import arms_for
from mpdiag.verify.island_gradients import with_live_gradients
from mpdiag.verify.island_search import search_islands, with_islands
from mpdiag.verify.island_trial import IslandTrials, plain_fp16
from mpdiag.verify.products_left import ProductFlops, count_products, half_share

CPU = torch.device("cpu")
SUM = lambda model, batch: model(batch).float().mean()


def job(build: Callable[[], nn.Module], batch: torch.Tensor, loss: Any = SUM) -> Job:
    def losses(model: nn.Module, given: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        yield ONLY, loss(model, given)

    return Job(
        "tiny", "tiny.py", build, lambda: [batch], losses,
        lambda model: {ONLY: torch.optim.SGD(model.parameters(), lr=0.0)},
    )  # fmt: skip


def captured(the_job: Job) -> tuple[Capture, Advice]:
    start = the_job.start(0, 1)
    seen = Observation(CPU, 0, SelfTest(None, 0, reason="not tested"))
    seen.types = observe(the_job, start, CPU)
    observe_training(the_job, start, seen, [range(1)])
    capture = replace(seen.record(), loop=observe_loop(the_job, start, CPU)[0])
    return capture, advise(capture)


def searched(the_job: Job) -> IslandPlan:
    return search_islands(the_job, the_job.start(0, 1), CPU, *captured(the_job), 1e6)


def filled(size_in: int, size_out: int, value: float) -> nn.Linear:
    layer = nn.Linear(size_in, size_out, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


class Scale(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.by


def hot_and_cool(cool: int) -> nn.Module:
    """Four by four, which overflows and comes back, and then four by `cool`."""
    return nn.Sequential(filled(4, 4, 22500.0), Scale(2.0**-16), filled(4, cool, 0.5))


ONES = torch.ones(2, 4)


# the count


def test_the_flops_of_each_layer_are_counted_forward_and_backward():
    the_job = job(lambda: hot_and_cool(8), ONES)
    capture, _ = captured(the_job)
    counted = count_products(the_job, the_job.start(0, 1), CPU, capture)
    # 2 x rows x in x out for a product; the first layer has no gradient of its input to compute
    assert dict(counted.by_module) == {"0": 2 * (2 * 2 * 4 * 4), "2": 3 * (2 * 2 * 4 * 8)}


@pytest.mark.parametrize(("names", "share"), [((), 1.0), (("2",), 0.25), (("0",), 0.75), (("0", "2"), 0.0)])
def test_the_share_is_that_of_the_modules_that_are_no_islands(names, share):
    capture, _ = captured(job(lambda: hot_and_cool(8), ONES))
    assert half_share(ProductFlops({"0": 100, "2": 300}), names, capture) == (share, None)


def test_an_island_covers_all_inside_it_and_no_neighbour_of_a_like_name():
    capture, _ = captured(job(lambda: hot_and_cool(8), ONES))
    products = ProductFlops({"block.1": 1, "block.1.fc": 2, "block.10": 4, "": 1})
    assert half_share(products, ("block.1",), capture) == (5 / 8, None)


class OwnRegion(nn.Module):
    """A layer that the job's own code keeps in FP32."""

    def __init__(self) -> None:
        super().__init__()
        self.hot, self.own = filled(4, 4, 22500.0), filled(4, 4, 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.hot(x) * 2.0**-16
        with torch.autocast("cuda", enabled=False):
            return self.own(y.float())


def test_what_the_job_keeps_in_fp32_itself_is_not_left_in_fp16():
    found = searched(job(OwnRegion, ONES))
    assert (found.enough, found.half_share, found.reason) == (False, 0.0, NOTHING_LEFT)


def test_what_is_not_known_has_its_reason(monkeypatch):
    the_job = job(lambda: hot_and_cool(8), ONES)
    capture, _ = captured(the_job)
    assert capture.loop is not None
    compiled = replace(capture, loop=replace(capture.loop, events=(Event(LoopEvent.COMPILED, "0"),)))
    start = the_job.start(0, 1)
    assert "compiled" in (count_products(the_job, start, CPU, compiled).reason or "")
    none = job(lambda: nn.LayerNorm(4), ONES)
    assert count_products(none, none.start(0, 1), CPU, captured(none)[0]).reason == "it multiplies no matrices"

    real = products_left.count_step
    monkeypatch.setattr(products_left, "count_step", lambda *a: replace(real(*a), uncounted=("mine.bmm",)))
    unknown = count_products(the_job, start, CPU, capture)
    assert unknown.reason == "no formula for the FLOPs of mine.bmm"
    assert half_share(unknown, ("0", "2"), capture) == (None, unknown.reason)


def test_a_job_that_cannot_be_counted_still_has_its_plan():
    calls = []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(torch.utils._python_dispatch._get_current_dispatch_mode())
        if type(calls[-1]).__name__ == "FlopCounter":
            raise ValueError("not under this mode")
        return SUM(model, batch)

    found = searched(job(lambda: hot_and_cool(8), ONES, loss))
    assert (found.keep_fp32, found.enough, found.half_share) == (("0",), True, None)
    assert "its products could not be counted: ValueError" in (found.half_share_reason or "")
    assert found.mostly_fp32 is False, "not known is not little"


# the search


def test_the_plan_tells_its_share():
    found = searched(job(lambda: hot_and_cool(8), ONES))
    assert (found.keep_fp32, found.enough) == (("0",), True)
    assert (found.half_share, found.half_share_reason) == (192 * 2 / (192 * 2 + 128), None)
    assert found.mostly_fp32 is False


def test_a_plan_with_less_than_half_of_the_products_left_says_so():
    found = searched(job(lambda: hot_and_cool(1), ONES))
    assert found.enough
    assert found.half_share is not None
    assert 0 < found.half_share < LEAST_HALF_SHARE
    assert found.mostly_fp32 is True


def prices() -> Job:
    """Every weight gradient is beyond FP16 without a scale: only FP32 everywhere 'cures' it."""
    target = torch.full((4, 1), 5e5)
    loss = lambda model, batch: nn.functional.mse_loss(model(batch).float(), target)
    torch.manual_seed(0)
    net = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return job(net, 2e4 * torch.randn(4, 4), loss)


def test_where_nothing_would_be_left_in_fp16_there_is_no_plan_and_no_arm():
    the_job = prices()
    capture, advice = captured(the_job)
    assert "MP203" in [f.code for f in advice.findings]
    found = with_islands(the_job, the_job.start(0, 1), CPU, capture, advice, 1e6, lambda line: None)
    plan = found.plan
    assert plan is not None
    assert (plan.enough, plan.minimal, plan.reason, plan.half_share) == (False, False, NOTHING_LEFT, 0.0)
    assert (plan.snippet, found.keep_fp32) == (None, advice.keep_fp32)
    arms, left_out = arms_for(advice.loss_scale, CPU, plan)
    assert "fp16-plan" not in [arm.name for arm in arms]
    assert any(line.endswith(f"no plan was found: {NOTHING_LEFT}") for line in left_out)


def test_a_search_ends_once_every_product_is_in_fp32():
    """Two layers that overflow, and a sum between modules that no island cures."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm = filled(4, 4, 22500.0), filled(4, 4, 22500.0), nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(self.a(x) * 2.0**-16) * 2.0**-16
            return self.norm(y).half() * 7e4

    tried = []
    the_job = job(Net, ONES, lambda model, batch: model(batch).float().sum())
    capture, advice = captured(the_job)
    found = search_islands(the_job, the_job.start(0, 1), CPU, capture, advice, 1e6, tried.append)
    assert (found.enough, found.reason, found.keep_fp32) == (False, NOTHING_LEFT, ("a", "b"))
    assert found.iterations == 1


def test_a_search_for_live_gradients_that_would_leave_nothing_keeps_the_earlier_plan(monkeypatch):
    the_job = job(lambda: nn.Sequential(filled(4, 4, 0.5), filled(4, 1, 0.5)), ONES)
    capture, advice = captured(the_job)
    whole = replace(plain_fp16(capture, advice), names=("0", "1"))

    def found(self: Any, names: tuple[str, ...]) -> None:
        self.enough = whole

    monkeypatch.setattr(island_gradients, "dead_gradients", lambda *_: {("weight_gradient", "0.weight"): 16})
    monkeypatch.setattr(island_gradients._Search, "run", found)
    start = the_job.start(0, 1)
    new = with_live_gradients(the_job, start, CPU, capture, advice, None, 1e6, print)
    assert new.plan is not None
    assert (new.plan.enough, new.plan.reason, new.plan.half_share) == (False, NOTHING_LEFT, 0.0)
    begun = replace(advice, plan=IslandPlan(("0",), True, True, 4, "dynamic", 2000, 1, 0.1, True))
    assert with_live_gradients(the_job, start, CPU, capture, begun, None, 1e6, print) is begun


def test_products_are_counted_once_a_search(monkeypatch):
    calls = []
    real = products_left.count_step
    monkeypatch.setattr(products_left, "count_step", lambda *a: calls.append(1) or real(*a))
    the_job = job(lambda: hot_and_cool(8), ONES)
    capture, advice = captured(the_job)
    trials = IslandTrials(
        the_job, the_job.start(0, 1), CPU, plain_fp16(capture, advice), 1.0, False, lambda line: None
    )  # fmt: skip
    assert [trials.half_share(trials.plain)[0], trials.leaves_nothing(trials.plain)] == [1.0, False]
    assert len(calls) == 1


# names and code


def test_islands_come_in_the_order_of_the_forward_pass_and_say_what_they_are():
    net = lambda: nn.ModuleList([filled(4, 4, 0.5), nn.ReLU(), nn.Conv1d(4, 6, 1, groups=2), nn.Linear(6, 1)])

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        y = model[2](model[1](model[0](batch))[..., None])
        return model[3](y[..., 0]).float().mean()

    capture, _ = captured(job(net, ONES, loss))
    assert in_forward_order(("3", "nowhere", "0", "2", "1"), capture) == ("0", "1", "2", "3", "nowhere")
    told = [described(name, capture) for name in ("0", "1", "2", "3", "nowhere")]
    assert told == ["Linear 4->4", "ReLU", "Conv1d 4->6", "Linear 6->1", ""]


def test_a_container_comes_where_its_first_child_is():
    net = lambda: nn.Sequential(nn.Sequential(filled(4, 4, 0.5)), filled(4, 4, 0.5))
    capture, _ = captured(job(net, ONES))
    assert in_forward_order(("1", "0"), capture) == ("0", "1")


PLAN = IslandPlan(
    ("0", "body.fc"), True, True, 4, "dynamic", 2000, 1, 0.1, True, modules=("Linear 4->8", "Linear 8->1")
)


def test_an_index_is_told_with_what_it_is_and_a_name_is_left_alone():
    assert PLAN.spoken == ('"0" (Linear 4->8)', "body.fc")
    assert replace(PLAN, modules=()).spoken == ("0", "body.fc"), "a file of before has no such field"


def test_the_plans_code_is_a_whole_loop_also_where_no_gradient_is_left_to_scale():
    class Frozen(nn.Module):
        """What stays in FP16 has no gradient: it is in front of all that is trained."""

        def __init__(self) -> None:
            super().__init__()
            self.front, self.hot = filled(4, 4, 0.25).requires_grad_(False), filled(4, 4, 22500.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.hot(self.front(x)) * 2.0**-16

    found = searched(job(Frozen, ONES))
    assert (found.keep_fp32, found.enough, found.log2_scale, found.mode) == (("hot",), True, 0, "none")
    assert found.snippet == (
        'import mpdiag\n\nmodel = mpdiag.apply(model, ["hot"])  # or the path of plan.json\n\n'
        'with torch.autocast("cuda", dtype=torch.float16):\n    loss = compute_loss(model, batch)\n'
        "loss.backward()\noptimizer.step()\noptimizer.zero_grad()\n"
    )
    assert arms_for(captured(job(Frozen, ONES))[1].loss_scale, CPU, found)[0][1].precision.log2_scale is None


def test_the_code_says_in_one_comment_what_bare_indices_are():
    code = plan_snippet(("0", 'odd"\nimport os'), "train()\n", ("Linear 4->8", "Linear 8->1"))
    assert code.splitlines()[2].startswith('# in FP32: "0" (Linear 4->8), ')
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.List)]
    assert [ast.literal_eval(item) for item in call.elts] == ["0", 'odd"\nimport os']
    assert "import os" not in code.splitlines()
