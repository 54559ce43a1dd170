"""MP5xx: the training loop. Both sides of every threshold, and that what is FP32 is never told off."""

from __future__ import annotations

import contextlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from capture_samples import WEIGHT_GRADIENT, capture, table
from mpdiag.advice.checks import BY_CODE
from mpdiag.advice.loss_scale import recommend
from mpdiag.api import scan
from mpdiag.capture.loop_facts import observe_loop
from mpdiag.capture.loop_watch import LoopWatch
from mpdiag.diagnosis import Finding, TensorKind
from mpdiag.histogram import ExponentHistogram
from mpdiag.loop import Event, Layer, LoopEvent, LoopFacts, OptimizerGroup
from mpdiag.target.job import Job
from planted_faults import CLASSES, WIDTH, classify, features, job

CPU = torch.device("cpu")
CODES = tuple(f"MP5{number:02}" for number in range(1, 21))
ADAMW = OptimizerGroup(
    "loss", "AdamW", "float16", 100, "fc.weight", lr=1e-3, eps=1e-8, betas=(0.9, 0.999), weight_decay=0.01,
    decoupled=True, state={"exp_avg": "float16", "exp_avg_sq": "float16"},
)  # fmt: skip
LINE = "model.py:7"


def found(code: str, facts: LoopFacts, *tables: Any, **more: Any) -> list[Finding]:
    seen = replace(capture(*tables, **more), loop=facts)
    return list(BY_CODE[code].find(seen, recommend(seen)))


def groups(**changes: Any) -> LoopFacts:
    return LoopFacts({"float16": 100}, (replace(ADAMW, **changes),))


def event(what: LoopEvent, name: str, **more: Any) -> LoopFacts:
    return LoopFacts({"float32": 100}, events=(Event(what, name, LINE, **more),))


def severities(findings: list[Finding]) -> list[str]:
    return [finding.severity for finding in findings]


# what is silent


@pytest.mark.parametrize("code", CODES)
def test_a_loop_that_was_not_observed_has_no_finding(code):
    assert found(code, None) == []


@pytest.mark.parametrize("code", CODES)
def test_an_fp32_job_has_no_finding(code):
    state = {"exp_avg": "float32", "exp_avg_sq": "float32"}
    facts = LoopFacts(
        {"float32": 100}, (replace(ADAMW, dtype="float32", state=state),), (Layer("fc", "Linear", 8, 8, 8),)
    )
    assert found(code, facts, table("fc.weight", WEIGHT_GRADIENT, {-20: 10})) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_fp32_job_that_opens_its_own_region_has_no_finding(dtype):
    facts = event(LoopEvent.AUTOCAST, "cuda", dtype=str(dtype).removeprefix("torch."))
    assert [f for code in CODES for f in found(code, facts)] == []


# MP501 no-master-weights


@pytest.mark.parametrize(("dtype", "severity"), [("float16", "error"), ("bfloat16", "warning")])
def test_mp501_weights_in_16_bits_without_a_copy(dtype, severity):
    (f,) = found("MP501", groups(dtype=dtype))
    assert (f.severity, f.subject, f.evidence["elements"]) == (severity, "fc.weight", 100)
    name = {"float16": "FP16", "bfloat16": "BF16"}[dtype]
    assert f.message == f"AdamW steps 100 weights in {name} (fc.weight and so on) and keeps no FP32 copy"


def test_mp501_an_fp32_copy_in_the_optimizer_is_enough():
    assert found("MP501", groups(whole_updates=True)) == []


# MP502 half-and-autocast


def test_mp502_fp16_weights_and_a_region():
    facts = replace(event(LoopEvent.AUTOCAST, "cuda", dtype="float16"), trainable={"float32": 5, "float16": 7})
    (f,) = found("MP502", facts)
    assert (f.severity, f.subject, f.source) == ("error", "the model", LINE)
    assert f.message.startswith("7 trainable weights are FP16, and the job uses an autocast region")


def test_mp502_fp16_weights_whose_gradients_need_a_scale():
    tables = (table("fc.weight", WEIGHT_GRADIENT, {-26: 500, -12: 500}),)
    (f,) = found("MP502", LoopFacts({"float16": 7}), *tables)
    assert "FP16 gradients need a loss scale" in f.message


def test_mp502_fp16_weights_alone_may_train_without_a_scaler():
    assert found("MP502", LoopFacts({"float16": 7})) == []


def test_mp502_bfloat16_weights_are_no_matter():
    assert found("MP502", replace(event(LoopEvent.AUTOCAST, "cuda", dtype="bfloat16"), trainable={"bfloat16": 7})) == []


# MP503 batch-norm-in-half


def test_mp503_names_the_first_and_counts_the_others():
    (f,) = found("MP503", LoopFacts({}, half_norms=("bn1", "bn2", "bn3")))
    assert (f.severity, f.subject) == ("warning", "bn1")
    assert f.message == "bn1 keeps its weights or running statistics in 16 bits, and so do 2 more"


# MP504 decay-lost


@pytest.mark.parametrize(
    ("dtype", "decay", "says"),
    [
        ("float16", 2.0**-12, True),
        ("float16", 2.0**-11.9, False),
        ("bfloat16", 2.0**-9, True),
        ("bfloat16", 2.0**-8.9, False),
        ("float16", 0.0, False),
    ],
)
def test_mp504_a_decay_that_rounds_to_one(dtype, decay, says):
    assert bool(found("MP504", groups(dtype=dtype, lr=1.0, weight_decay=decay))) is says


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 2.0**-12), (torch.bfloat16, 2.0**-9)])
def test_mp504_torch_rounds_there_too(dtype, limit):
    # the weights at which half a unit in the last place is smallest beside the weight: just below a power of two
    weights = torch.linspace(1.0, 1.99, 64).to(dtype)
    assert torch.equal(weights * (1 - limit), weights)
    assert not torch.equal(weights * (1 - 2.1 * limit), weights)


@pytest.mark.parametrize("exempt", [{"fused": True}, {"decoupled": False}, {"whole_updates": True}])
def test_mp504_what_rounds_otherwise_is_no_matter(exempt):
    assert found("MP504", groups(**exempt)) == []


# MP505 average-in-half


@pytest.mark.parametrize(
    ("dtype", "step", "says"),
    [
        ("float16", 1e-4, True),
        ("float16", 2.0**-11, False),
        ("bfloat16", 1e-3, True),
        ("bfloat16", 2.0**-8, False),
        ("float16", 1e-3, False),
    ],
)
def test_mp505_an_average_whose_steps_vanish(dtype, step, says):
    findings = found("MP505", event(LoopEvent.AVERAGE, "ema.weight", dtype=dtype, value=step))
    assert bool(findings) is says
    assert all((f.severity, f.subject, f.source) == ("warning", "ema.weight", LINE) for f in findings)


@pytest.mark.parametrize(("dtype", "decay"), [(torch.float16, 0.9999), (torch.bfloat16, 0.999)])
def test_mp505_such_an_average_really_stays(dtype, decay):
    average = torch.linspace(1.0, 1.9, 10).to(dtype)
    moved = average.clone()
    for _ in range(10):
        moved.mul_(decay).add_((average + 0.5).to(dtype), alpha=1 - decay)
    assert torch.equal(moved, average)


# MP506 optimizer-eps-is-zero


@pytest.mark.parametrize(("eps", "says"), [(1e-8, True), (2.0**-25, True), (2.0**-24.9, False), (1e-4, False)])
def test_mp506_an_eps_that_is_zero_in_fp16(eps, says):
    assert severities(found("MP506", groups(eps=eps))) == ["error"] * says


IN_BFLOAT16 = {"dtype": "bfloat16", "state": {"exp_avg_sq": "bfloat16"}}


@pytest.mark.parametrize(
    "exempt", [{"fused": True}, {"state": {"exp_avg": "float32"}}, {"state": None}, {"eps": None}, IN_BFLOAT16]
)
def test_mp506_state_that_holds_the_eps_is_no_matter(exempt):
    assert found("MP506", groups(**exempt)) == []


def test_mp506_adam_in_fp16_really_gives_nan_for_a_gradient_of_zero():
    weight = nn.Parameter(torch.ones(1, dtype=torch.float16))
    weight.grad = torch.zeros_like(weight)
    torch.optim.Adam([weight]).step()
    assert weight.isnan().all()


# MP507 second-moment-underflow


def half_gradient(bins: dict[int, int]) -> Any:
    return table("fc.weight", WEIGHT_GRADIENT, bins, dtype="float16")


def test_mp507_gradients_too_small_for_the_second_moment():
    # |g| <= 5.46e-3 = 2^-7.5 for a beta2 of 0.999: bins up to -9 are below it whole
    (f,) = found("MP507", groups(), half_gradient({-9: 6, -8: 94}))
    assert (f.severity, f.subject) == ("error", "fc.weight")
    assert f.evidence["share"] == 0.06
    assert f.evidence["limit"] == pytest.approx(5.46e-3, rel=1e-3)


def test_mp507_a_twentieth_is_left_alone():
    assert found("MP507", groups(), half_gradient({-9: 5, -8: 95})) == []


def test_mp507_a_beta2_of_095_holds_smaller_gradients():
    assert found("MP507", groups(betas=(0.9, 0.95)), half_gradient({-10: 100})) == []
    assert severities(found("MP507", groups(betas=(0.9, 0.95)), half_gradient({-12: 100}))) == ["error"]


@pytest.mark.parametrize("exempt", [{"fused": True}, {"state": {"exp_avg_sq": "float32"}}, {"betas": None}])
def test_mp507_a_second_moment_in_fp32_is_no_matter(exempt):
    assert found("MP507", groups(**exempt), half_gradient({-20: 100})) == []


def test_mp507_fp32_gradients_are_not_counted():
    assert found("MP507", groups(), table("fc.weight", WEIGHT_GRADIENT, {-20: 100})) == []


# MP508 beta-rounds-to-one


@pytest.mark.parametrize(
    ("betas", "dtype", "says"),
    [((0.8984375, 1.0), "bfloat16", True), ((0.9, 0.999), "bfloat16", False), ((0.9, 1.0), None, False)],
)
def test_mp508_a_beta_of_one_in_16_bits(betas, dtype, says):
    assert severities(found("MP508", groups(betas=betas, betas_dtype=dtype))) == ["warning"] * says


def test_mp508_bfloat16_really_makes_it_one():
    assert float(torch.tensor(0.999, dtype=torch.bfloat16)) == 1.0


# MP509 counter-in-half


@pytest.mark.parametrize(("dtype", "stalls"), [("float16", 2048), ("bfloat16", 256)])
def test_mp509_says_where_a_count_stands_still(dtype, stalls):
    (f,) = found("MP509", event(LoopEvent.COUNTER, "seen", dtype=dtype))
    assert (f.severity, f.subject, f.evidence["limit"], f.source) == ("warning", "seen", stalls, LINE)
    held = torch.tensor(float(stalls), dtype=getattr(torch, dtype))
    assert held + 1 == held
    assert held != held - 1


# MP510 to MP517


@pytest.mark.parametrize(("error", "severity"), [(None, "info"), ("mat1 and mat2 must have the same dtype", "warning")])
def test_mp510_a_function_is_information_until_fp16_fails(error, severity):
    assert severities(found("MP510", event(LoopEvent.FUNCTION, "Swish"), amp_error=error)) == [severity]


def test_mp510_a_function_called_twice_is_told_once():
    twice = tuple(Event(LoopEvent.FUNCTION, "Swish", f"model.py:{line}") for line in (7, 9))
    assert [f.source for f in found("MP510", LoopFacts({}, events=twice))] == [LINE]


def test_mp511_names_the_operator_and_its_plain_form():
    (f,) = found("MP511", event(LoopEvent.IN_PLACE, "exp_"))
    assert (f.severity, f.message) == ("info", "exp_ in model.py:7 is not cast by autocast, as exp would be")


def test_mp512_and_mp513_a_penalty_in_a_region_is_information_and_a_backward_a_warning():
    penalty = Event(LoopEvent.PENALTY, "torch.autograd.grad", LINE)
    inside = Event(LoopEvent.BACKWARD_INSIDE, "torch.autograd.grad", LINE)
    assert severities(found("MP512", LoopFacts({}, events=(penalty, inside)))) == ["info"]
    assert severities(found("MP513", LoopFacts({}, events=(penalty, inside)))) == ["info"]
    assert severities(found("MP513", LoopFacts({}, events=(inside,)))) == ["warning"]


def test_mp514_a_compiled_model():
    assert severities(found("MP514", event(LoopEvent.COMPILED, "the model"))) == ["info"]


@pytest.mark.parametrize(
    ("dtypes", "says"), [(["bfloat16"], True), (["float16"], False), (["float16", "bfloat16"], False), ([], False)]
)
def test_mp515_a_scaler_is_needless_where_all_regions_are_bfloat16(dtypes, says):
    regions = [Event(LoopEvent.AUTOCAST, "cuda", f"model.py:{i}", dtype) for i, dtype in enumerate(dtypes)]
    facts = LoopFacts({}, events=(Event(LoopEvent.SCALER, "GradScaler", LINE, value=65536.0), *regions))
    assert severities(found("MP515", facts)) == ["info"] * says


def test_mp516_a_loss_that_comes_scaled():
    (f,) = found("MP516", event(LoopEvent.SCALER, "GradScaler", value=65536.0))
    assert (f.severity, f.message) == ("warning", "the loss is scaled by 65,536 at model.py:7, before mpdiag sees it")


@pytest.mark.parametrize(
    ("dtype", "repeats", "says"),
    [("bfloat16", 257.0, True), ("bfloat16", 256.0, False), ("float16", 2049.0, True), ("float16", 2048.0, False)],
)
def test_mp517_a_row_that_is_looked_up_too_often(dtype, repeats, says):
    facts = event(LoopEvent.REPEATS, "rows.weight", dtype=dtype, value=repeats)
    assert severities(found("MP517", facts)) == ["warning"] * says
    seen = replace(capture(), loop=facts, device="cuda")
    assert severities(list(BY_CODE["MP517"].find(seen, recommend(seen)))) == ["info"] * says


def test_mp517_an_embedding_in_bfloat16_really_stalls():
    rows = nn.Embedding(1, 1, dtype=torch.bfloat16)
    rows(torch.zeros(600, dtype=torch.long)).sum().backward()
    assert float(rows.weight.grad) == 256.0


# the facts


def facts(the_job: Job) -> tuple[LoopFacts, float | None]:
    return observe_loop(the_job, the_job.start(0, 1), CPU)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, CLASSES))


def test_the_facts_of_a_plain_job():
    seen, largest = facts(job(net))
    assert seen.trainable == {"float32": WIDTH * 6 + 6 + 6 * CLASSES + CLASSES}
    assert seen.layers == (Layer("0", "Linear", WIDTH, 6, WIDTH), Layer("2", "Linear", 6, CLASSES, 6))
    (group,) = seen.groups
    assert group == OptimizerGroup(
        "loss", "AdamW", "float32", 82, "0.weight", 1e-3, 1e-8, (0.9, 0.999), None, 0.01, True, False,
        {"exp_avg": "float32", "exp_avg_sq": "float32"}, False,
    )  # fmt: skip
    assert (seen.half_norms, seen.events, seen.events_reason) == ((), (), None)
    assert 2.0 < largest < 6.0


def test_a_convolutions_dimensions_are_those_of_one_group():
    seen, _ = facts(
        job(
            lambda: nn.Sequential(nn.Conv2d(4, 8, (3, 5), groups=2), nn.Flatten(), nn.Linear(8 * 6 * 4, CLASSES)),
            lambda: features(1.0, 4, 8, 8),
        )
    )
    assert seen.layers[0] == Layer("0", "Conv2d", 2, 4, 2 * 15)


def in_bfloat16() -> tuple[torch.Tensor, ...]:
    return tuple(t.bfloat16() if t.is_floating_point() else t for t in features())


def test_stochastic_rounding_is_taken_for_whole_updates():
    class Stochastic(torch.optim.SGD):
        bf16_stochastic_round = True

    loss = lambda model, batch: F.cross_entropy(model(batch[0]).float(), batch[1])
    seen = {
        kind: facts(job(lambda: net().bfloat16(), in_bfloat16, loss, kind))[0] for kind in (Stochastic, torch.optim.SGD)
    }
    assert seen[Stochastic].groups[0].whole_updates
    assert not seen[torch.optim.SGD].groups[0].whole_updates


@pytest.mark.parametrize(
    ("batch", "loss", "largest"),
    [
        (lambda: (torch.full((4, WIDTH), -300.0), torch.full((4,), 9e9)), lambda m, b: m(b[0]).pow(2).mean(), 300.0),
        (lambda: (torch.full((4, WIDTH), 300.0), 0), lambda m, b: m(b[0] / 100).pow(2).mean(), 3.0),
        (lambda: (torch.full((4, WIDTH), 7, dtype=torch.uint8), 0), lambda m, b: m(b[0].float()).pow(2).mean(), 7.0),
        (lambda: (torch.full((4, WIDTH), 7.0), 0), lambda m, b: m(b[0].fill_diagonal_(torch.inf)).mean(), 7.0),
        (lambda: (torch.full((4, WIDTH), 7.0), 0), lambda m, b: m(torch.ones(4, WIDTH)).mean() + b[0].mean(), None),
    ],
    ids=["a target", "divided on the way", "bytes", "an infinity", "never given to the model"],
)
def test_an_input_is_measured_where_weights_multiply_it(batch, loss, largest):
    assert facts(job(net, batch, loss))[1] == largest


@pytest.mark.parametrize("by", ["__matmul__", "einsum"])
def test_an_input_that_a_parameter_multiplies_is_measured(by):
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.basis = nn.Parameter(torch.ones(WIDTH, CLASSES)), torch.eye(WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x @ self.basis / 10  # a fixed basis is no weight
            return x @ self.weight if by == "__matmul__" else torch.einsum("bi,io->bo", x, self.weight)

    assert facts(job(ByHand, lambda: (torch.full((4, WIDTH), 70.0), torch.zeros(4, dtype=torch.long))))[1] == 7.0


def test_what_follows_the_first_layer_is_no_input():
    def build() -> nn.Module:
        model = net()
        nn.init.constant_(model[0].weight, 1e5)
        return model.requires_grad_(False).append(nn.Linear(CLASSES, CLASSES))  # frozen: nothing requires a gradient

    assert facts(job(build, lambda: (torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.long))))[1] == 1.0


def test_an_attention_mask_is_no_input():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.head(F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1), mask).mean(1))

    batch = lambda: (torch.ones(4, 6, WIDTH), torch.full((6, 6), -1e9).triu(1), torch.zeros(4, dtype=torch.long))
    assert facts(job(Net, batch))[1] == 1.0


def test_a_job_that_fails_while_it_is_watched_still_has_its_settings():
    def hostile(model: nn.Module, batch: Any) -> torch.Tensor:
        assert not torch.overrides._get_current_function_mode_stack()
        return classify(model, batch)

    seen, largest = facts(job(net, loss=hostile))
    assert seen.events_reason.startswith("the watched iteration failed: ")
    assert (seen.groups[0].lr, seen.groups[0].state, largest) == (1e-3, None, None)


def test_nothing_stays_stood_in_for():
    before = [torch.autocast.__enter__, torch.amp.GradScaler.scale, torch.autograd.Function.__dict__["apply"]]
    facts(job(net))
    assert [torch.autocast.__enter__, torch.amp.GradScaler.scale, torch.autograd.Function.__dict__["apply"]] == before


def test_a_step_of_the_optimizer_is_nobodys_line():
    assert facts(job(lambda: net().bfloat16(), in_bfloat16))[0].events == ()


# MP518 nothing-trains


def updates(*bins: dict[int, int]) -> tuple[Any, ...]:
    return tuple(
        replace(table(f"fc{i}.weight", TensorKind.WEIGHT_UPDATE, {0: 4}), histogram=ExponentHistogram.from_bins(b, 4))
        for i, b in enumerate(bins)
    )


def test_mp518_updates_that_are_all_zero():
    (f,) = found("MP518", groups(lr=0.0), *updates({}, {}))
    assert (f.severity, f.subject, f.evidence) == (
        "warning",
        "the optimizer",
        {"steps": 20, "weights": 2, "changed": 0, "limit": 0, "lr": 0.0},
    )
    assert f.message.startswith("no weight changed in 20 FP32 steps, for the learning rate is 0: ")


def test_mp518_another_cause_than_the_learning_rate_is_not_guessed():
    (f,) = found("MP518", groups(lr=0.5), *updates({}))
    assert "learning rate" not in f.message
    assert f.evidence["lr"] is None


def test_mp518_one_weight_that_moves_once_is_enough():
    assert found("MP518", groups(lr=0.0), *updates({}, {-140: 1})) == []


def test_mp518_a_weight_that_becomes_nan_has_changed():
    (nan,) = updates({})
    assert found("MP518", groups(), replace(nan, histogram=ExponentHistogram.from_bins({}, 3, nans=1))) == []


def test_mp518_weights_that_were_not_observed_say_nothing():
    assert found("MP518", groups(lr=0.0)) == []


def test_mp518_a_scan_of_a_job_with_a_learning_rate_of_zero_is_inconclusive(tmp_path):
    path = tmp_path / "job.py"
    path.write_text(
        "import torch\n"
        "def build_model():\n    return torch.nn.Linear(4, 1)\n"
        "def train_batches():\n    return [torch.randn(8, 4) for _ in range(4)]\n"
        "def compute_loss(model, batch):\n    return model(batch).pow(2).mean()\n"
        "def build_optimizer(model):\n    return torch.optim.SGD(model.parameters(), lr=0.0)\n"
    )
    seen = scan(str(path), device="cpu", steps=3, verify_steps=10, seeds=3)
    assert "MP518" in {f.code for f in seen.advice.findings}
    assert (seen.verification.verdict, seen.verification.reason[:36]) == (
        "inconclusive",
        "no weight changed in 3 FP32 steps, f",
    )


# MP519 clipped-while-scaled, MP520 mixed-scales: on loops of the job's own


def own_loop(
    step: Any, model: nn.Module, optimizer: torch.optim.Optimizer | None, iterations: int = 2
) -> set[LoopEvent]:
    with LoopWatch(model, [optimizer] if optimizer else []) as watch:
        for _ in range(iterations):
            step()
    return {what for what, _, _ in watch.events} & {LoopEvent.CLIPPED_SCALED, LoopEvent.MIXED_SCALES}


@pytest.mark.parametrize("name", ["accumulation", "clipping", "scaler", "scaler_clipped", "scaler_fused"])
def test_mp519_and_mp520_a_loop_in_order_is_silent(name):
    path = Path(__file__).parents[1] / "loops" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loop, numbers = module.build(CPU), iter(range(9))
    assert own_loop(lambda: module.step(loop, next(numbers)), loop.model, loop.optimizers[0], 4) == set()


@pytest.mark.parametrize(
    ("order", "seen"),
    [
        ("scale scale unscale clip step zero", set()),
        ("scale scale clip step zero", {LoopEvent.CLIPPED_SCALED}),
        ("scale scale clip unscale step zero", {LoopEvent.CLIPPED_SCALED}),
        ("scale unscale scale step zero", {LoopEvent.MIXED_SCALES}),
        ("scale unscale update scale unscale clip step zero", {LoopEvent.MIXED_SCALES}),
        ("scale unscale zero scale step zero", set()),  # a step that the job itself leaves out
        ("scale step zero scale divide unscale clip step zero", set()),
        ("plain clip", set()),
        ("scale step zero plain clip", set()),  # as a critic that takes turns with what the scaler trains
        ("scale step zero plain clip scale clip step zero", {LoopEvent.CLIPPED_SCALED}),
    ],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_mp519_and_mp520_what_is_called_in_which_order(order, seen, enabled):
    model = nn.Linear(WIDTH, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=enabled)

    def stepped() -> None:
        scaler.step(optimizer)
        scaler.update()

    loss = lambda: model(torch.ones(3, WIDTH)).pow(2).mean()
    calls = {
        "scale": lambda: scaler.scale(loss()).backward(),
        "plain": lambda: loss().backward(),
        "unscale": lambda: scaler.unscale_(optimizer),
        "update": scaler.update,
        "clip": lambda: nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=False),
        "divide": lambda: [p.grad.div_(2) for p in model.parameters()],
        "step": stepped,
        "zero": lambda: optimizer.zero_grad(set_to_none=False),
    }
    assert own_loop(lambda: [calls[call]() for call in order.split()], model, optimizer) == (seen if enabled else set())


def test_mp519_a_clamp_by_keywords_alone_is_let_through():
    x = torch.tensor([-1.0, 1.0])
    assert own_loop(lambda: torch.clamp_(input=x, min=0.0), nn.Linear(1, 1), None) == set()
    assert x.tolist() == [0.0, 1.0]


def test_mp519_a_watched_step_trains_as_an_unwatched_one():
    losses = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(WIDTH, CLASSES)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
        with LoopWatch(model, [optimizer]) if watched else contextlib.nullcontext():
            scaler.scale(model(torch.ones(3, WIDTH)).pow(2).mean()).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
        losses.append(model.weight.detach().clone())
    assert torch.equal(*losses)
