"""The configurations to paste: their exact texts, and each of them executed with its package where it is installed.

Where there is no CUDA device the executed text says "cpu" instead of "cuda"; nothing else in it is changed. What a
framework refuses to do on a CPU (a GradScaler of accelerate's, DeepSpeed's fp16) is let through, by name, in a fixture.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import report_samples as samples
from mpdiag.advice.configs import Config, configs_for
from mpdiag.advice.loss_scale import _snippet
from mpdiag.diagnosis import Diagnosis
from mpdiag.loop import LoopFacts, OptimizerGroup, for_all_optimizers
from mpdiag.plan import IslandPlan, plan_snippet
from mpdiag.report import configs as as_text
from mpdiag.report.html import render
from mpdiag.saved import to_json

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF, FULL = torch.float16, torch.float32
MODES = {
    "dynamic": ("dynamic", 14, 2000),
    "rare growth": ("dynamic", 11, 8000),
    "below one": ("dynamic", -3, 2000),
    "static": ("static", 12, None),
    "none": ("none", 0, None),
}


def diagnosis(
    mode: str = "dynamic",
    log2_scale: int | None = 14,
    interval: int | None = 2000,
    islands: tuple[str, ...] = (),
    train_with: str | None = "fp16",
) -> Diagnosis:
    whole = samples.full()
    assert whole.advice is not None
    assert whole.verification is not None
    scale = replace(
        whole.advice.loss_scale,
        mode=mode,
        log2_scale=log2_scale,
        growth_interval=interval,
        snippet=_snippet(log2_scale, mode, interval or 2000),
    )
    code = plan_snippet(islands, scale.snippet)
    plan = IslandPlan(islands, True, True, log2_scale, mode, interval, 1, 0.1, True, snippet=code) if islands else None
    return replace(
        whole,
        advice=replace(whole.advice, loss_scale=scale, keep_fp32=islands, plan=plan),
        verification=replace(whole.verification, train_with=train_with),
    )


def texts(found: Diagnosis) -> dict[str, str]:
    return {config.title: config.text for config in configs_for(found)}


def config(title: str, found: Diagnosis) -> Config:
    return next(each for each in configs_for(found) if each.title == title)


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, list[str]]:
    """The lines of each text that were not in it before."""
    return {
        title: [line for line in text.splitlines() if line not in before[title].splitlines()]
        for title, text in after.items()
    }


# --- what they say

DYNAMIC = {
    "PyTorch": """\
import torch

scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)

with torch.autocast("cuda", dtype=torch.float16):
    loss = compute_loss(model, batch)
scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()
optimizer.zero_grad()
""",
    "Lightning": """\
import lightning as L
import torch
from lightning.pytorch.plugins import MixedPrecision

scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14, growth_interval=2000)
trainer = L.Trainer(plugins=[MixedPrecision("16-mixed", device="cuda", scaler=scaler)])
trainer.fit(model, batches)
""",
    "transformers": """\
from transformers import Trainer, TrainingArguments

args = TrainingArguments(output_dir="checkpoints", fp16=True)
trainer = Trainer(model=model, args=args, train_dataset=dataset)
scaler = trainer.accelerator.scaler  # TrainingArguments has no field for the scale
scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**14, "growth_interval": 2000})
trainer.train()
""",
    "Accelerate": """\
from accelerate import Accelerator
from accelerate.utils import GradScalerKwargs

scaling = GradScalerKwargs(init_scale=2.0**14, growth_interval=2000)
accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[scaling])
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

for batch in batches:
    with accelerator.autocast():
        loss = compute_loss(model, batch)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
""",
    "DeepSpeed": """\
{
  "fp16": {
    "enabled": true,
    "loss_scale": 0,
    "initial_scale_power": 14,
    "loss_scale_window": 2000,
    "hysteresis": 1,
    "min_loss_scale": 1
  },
  "zero_optimization": {
    "stage": 1
  }
}
""",
}


def test_a_dynamic_scale_in_the_words_of_each_framework():
    assert texts(diagnosis()) == DYNAMIC


def test_a_static_scale_never_grows():
    assert changed(DYNAMIC, texts(diagnosis(*MODES["static"]))) == {
        "PyTorch": ['scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=10**9)'],
        "Lightning": ['scaler = torch.amp.GradScaler("cuda", init_scale=2.0**12, growth_interval=10**9)'],
        "transformers": ['scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**12, "growth_interval": 10**9})'],
        "Accelerate": ["scaling = GradScalerKwargs(init_scale=2.0**12, growth_interval=10**9)"],
        "DeepSpeed": ['    "loss_scale": 4096'],
    }


def test_without_a_scale_the_scaler_is_off():
    assert changed(DYNAMIC, texts(diagnosis(*MODES["none"]))) == {
        "PyTorch": ["loss.backward()", "optimizer.step()"],
        "Lightning": ['scaler = torch.amp.GradScaler("cuda", enabled=False)'],
        "transformers": ['scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**0, "growth_interval": 10**9})'],
        "Accelerate": ["scaling = GradScalerKwargs(enabled=False)"],
        "DeepSpeed": ['    "loss_scale": 1'],
    }
    assert "makes a scaler; at 1 it scales nothing" in config("transformers", diagnosis(*MODES["none"])).note


def test_a_narrow_window_says_how_rarely_the_scale_may_grow():
    assert changed(DYNAMIC, texts(diagnosis(*MODES["rare growth"])))["DeepSpeed"] == [
        '    "initial_scale_power": 11,',
        '    "loss_scale_window": 8000,',
    ]


def test_below_one_deepspeed_gets_a_static_scale_and_says_why():
    below = config("DeepSpeed", diagnosis(*MODES["below one"]))
    assert json.loads(below.text)["fp16"] == {"enabled": True, "loss_scale": 0.125}
    assert "cannot go below 1" in below.note


BF16 = {
    "PyTorch": """\
import torch

with torch.autocast("cuda", dtype=torch.bfloat16):
    loss = compute_loss(model, batch)
loss.backward()  # BF16 has FP32's range: no loss scale
optimizer.step()
optimizer.zero_grad()
""",
    "Lightning": """\
import lightning as L

trainer = L.Trainer(precision="bf16-mixed")
trainer.fit(model, batches)
""",
    "transformers": """\
from transformers import Trainer, TrainingArguments

args = TrainingArguments(output_dir="checkpoints", bf16=True)
trainer = Trainer(model=model, args=args, train_dataset=dataset)
trainer.train()
""",
    "Accelerate": """\
from accelerate import Accelerator

accelerator = Accelerator(mixed_precision="bf16")
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

for batch in batches:
    with accelerator.autocast():
        loss = compute_loss(model, batch)
    accelerator.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
""",
    "DeepSpeed": """\
{
  "bf16": {
    "enabled": true
  }
}
""",
}


@pytest.mark.parametrize("islands", [(), ("head",)])
def test_bf16_has_neither_a_scale_nor_islands(islands):
    assert texts(diagnosis(islands=islands, train_with="bf16")) == BF16


ISLAND = [
    "import mpdiag",
    "# the scanned model and the scan's plan: these stay in FP32: head",
    'mpdiag.apply(model, "plan.json")',
]


def test_islands_are_made_before_a_framework_has_the_model():
    found = changed(DYNAMIC, texts(diagnosis(islands=("head",))))
    assert {title: lines for title, lines in found.items() if title != "DeepSpeed"} == dict.fromkeys(
        ("PyTorch", "Lightning", "transformers", "Accelerate"), ISLAND
    )


def test_the_plan_is_applied_from_its_own_file():
    found = configs_for(diagnosis(islands=("head",)), "wider.plan.json")
    assert ['mpdiag.apply(model, "wider.plan.json")' in config.text for config in found] == [True] * 5


def test_several_optimizers_have_their_turns_in_the_plain_loop_and_the_others_say_so():
    one = diagnosis()
    groups = tuple(OptimizerGroup(name, "Adam", "float32", 4, "w") for name in ("d", "g"))
    loop = LoopFacts({"float32": 8}, groups, losses=("d", "g"))
    for train_with in ("fp16", "bf16"):
        whole = diagnosis(train_with=train_with)
        scale = whole.advice.loss_scale
        scale = replace(scale, snippet=for_all_optimizers(scale.snippet, loop))
        advice = replace(whole.advice, loss_scale=scale)
        plain, *others = configs_for(replace(whole, capture=replace(one.capture, loop=loop), advice=advice))
        assert 'for name in ("d", "g"):' in plain.text
        assert all(c.note.startswith("Written for one optimizer; this job has 2 (d, g)") for c in others)


def test_deepspeed_with_islands_is_autocast_since_its_fp16_block_has_none():
    found = config("DeepSpeed", diagnosis(islands=("head",)))
    assert found.language == "python"
    assert (
        found.text
        == """\
import deepspeed
import mpdiag

# the scanned model and the scan's plan: these stay in FP32: head
mpdiag.apply(model, "plan.json")

config["torch_autocast"] = {  # config: ds_config.json as a dict, without a block "fp16" or "bf16"
    "enabled": True,
    "dtype": "float16",
    "lower_precision_safe_modules": [],  # ZeRO sends every gradient in FP32, the islands' too
}
engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
# the block has no key for the scale; the engine has the scaler, with ZeRO its optimizer
scaler = engine.torch_autocast_z0_gradscaler or engine.optimizer.torch_autocast_gradscaler
scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**14, "growth_interval": 2000})
"""
    )
    assert 'The block "fp16" converts every parameter' in found.note


def planned(train_with: str | None = "fp16-plan") -> Diagnosis:
    """No scale serves all; with the head in FP32 2^9 does."""
    bare = diagnosis("none", None, None, islands=("head",), train_with=train_with)
    plan = IslandPlan(
        ("head",), True, True, 9, "dynamic", 2000, 12, 1.5, True,
        snippet=plan_snippet(("head",), _snippet(9, "dynamic", 2000)),
    )  # fmt: skip
    assert bare.advice is not None
    return replace(bare, advice=replace(bare.advice, plan=plan))


def test_a_plan_brings_its_own_scale_and_is_applied_once():
    found = texts(planned())
    assert [text.count("mpdiag.apply") for text in found.values()] == [1] * 5
    assert [text.count("2.0**9") for text in found.values()] == [1] * 5
    assert found["PyTorch"] == texts(diagnosis("dynamic", 9, 2000, islands=("head",)))["PyTorch"]


def test_a_long_list_of_islands_wraps_and_no_name_ends_its_comment():
    names = (*(f"blocks.{i}.mlp.down_proj" for i in range(12)), "odd\nimport os")
    text = texts(diagnosis(islands=names))["Lightning"]
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in names[:-1])
    assert "odd\\nimport os" in text.replace("\n# ", " ")
    assert "import os" not in text.splitlines()


def test_where_there_is_no_code_to_paste_there_is_no_configuration():
    for found in (diagnosis(train_with=None), diagnosis(log2_scale=None), samples.minimal()):
        assert found.snippet is None
        assert configs_for(found) == ()


def every_kind() -> Iterator[Any]:
    for name, mode in MODES.items():
        for islands in ((), ("head", "blocks.1")):
            yield pytest.param(diagnosis(*mode, islands=islands), id=f"{name}{' with islands' if islands else ''}")
    yield pytest.param(diagnosis(train_with="bf16"), id="bf16")
    yield pytest.param(planned(), id="plan")
    yield pytest.param(samples.full(), id="the sample")


@pytest.mark.parametrize("found", list(every_kind()))
def test_every_python_text_compiles_and_every_other_is_json(found):
    made = configs_for(found)
    assert [each.title for each in made] == ["PyTorch", "Lightning", "transformers", "Accelerate", "DeepSpeed"]
    for each in made:
        assert each.text.endswith("\n")
        assert json.loads(each.text) if each.language == "json" else ast.parse(each.text)


# --- where they are shown


def test_the_page_has_a_section_with_each_text_to_copy():
    made = configs_for(diagnosis(islands=("head",)))
    page = render(diagnosis(islands=("head",)), plotly="none", configs=made)
    section = page.partition('<section id="configs">')[2].partition("</section>")[0]
    assert section.count("<details>") == section.count('class="copy js-only"') == 5
    assert [f"<summary>{each.title}" in section for each in made] == [True] * 5
    assert 'href="#configs"' in page


def test_a_page_without_configurations_has_no_such_section():
    assert "#configs" not in render(diagnosis(), plotly="none")


def test_a_name_cannot_leave_its_code_on_the_page():
    found = diagnosis(islands=(samples.HOSTILE_NAME,))
    assert samples.HOSTILE_NAME not in render(found, plotly="none", configs=configs_for(found))


def test_as_text_each_is_under_its_title_as_it_is_pasted():
    printed = as_text.render(diagnosis(), configs_for(diagnosis()))
    assert printed.startswith(f"PyTorch\n=======\n\n{DYNAMIC['PyTorch']}\nLightning\n=========\n\n")
    assert all(text in printed for text in DYNAMIC.values())


def test_as_text_nothing_to_paste_says_why():
    assert as_text.render(diagnosis(train_with=None), ()).startswith("No code to paste: neither FP16 nor BF16")
    assert as_text.render(samples.minimal(), ()).startswith("No code to paste: ")


def test_the_command_prints_them_without_torch(tmp_path):
    run = tmp_path / "run.json"
    run.write_text(to_json(diagnosis()))
    code = (
        "import sys\nfrom mpdiag.cli.main import main\ntry: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, "report", str(run), "--format", "configs"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == as_text.render(diagnosis(), configs_for(diagnosis()))


def test_the_command_puts_them_on_the_page(tmp_path):
    run, page = tmp_path / "run.json", tmp_path / "run.html"
    run.write_text(to_json(diagnosis()))
    words = ["report", str(run), "--format", "html", "--plotly", "none", "--out", str(page)]
    subprocess.run([sys.executable, "-m", "mpdiag", *words], cwd=tmp_path, capture_output=True, check=True)
    assert page.read_text("utf-8").count("<summary>Lightning</summary>") == 1


# --- what they do: a scale of 2^7 that doubles after three clean steps, four steps, and a head that stays in FP32

SHORT = diagnosis("dynamic", 7, 3)
WITH_ISLAND = diagnosis("dynamic", 7, 3, islands=("head",))
STATIC = diagnosis("static", 7, None)
UNSCALED = diagnosis(*MODES["none"])
IN_BF16 = diagnosis(train_with="bf16")
STEPS = 4
RATE = 0.05


class Small(torch.nn.Module):
    """Two layers that remember the types they computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Linear(4, 8), torch.nn.Linear(8, 1)
        self.seen: tuple[torch.dtype, ...] = ()

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        hidden = self.body(x)
        out = self.head(hidden)
        self.seen = (hidden.dtype, out.dtype)
        return out if labels is None else {"loss": (out.float() - labels).square().mean()}


def small() -> Small:
    torch.manual_seed(1)
    return Small()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    return [(torch.randn(2, 4, device=DEVICE), torch.randn(2, 1, device=DEVICE)) for _ in range(STEPS)]


def compute_loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, y = batch
    return (model(x).float() - y).square().mean()


def learns(model: torch.nn.Module) -> bool:
    """Whether the first layer has moved as it does in FP32, but for a tenth: a lost or doubled scale is no tenth."""
    start, reference = small().body.weight, small().to(DEVICE)
    optimizer = torch.optim.SGD(reference.parameters(), lr=RATE)
    for batch in batches():
        compute_loss(reference, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = reference.body.weight.cpu() - start
    return bool((model.body.weight.float().cpu() - start - moved).abs().max() < 0.1 * moved.abs().max())


def executed(wanted: Config, **names: Any) -> dict[str, Any]:
    """The names a text leaves behind. Its device is the one there is."""
    exec(compile(wanted.text.replace('"cuda"', f'"{DEVICE}"'), wanted.title, "exec"), names)
    return names


@pytest.fixture(autouse=True)
def plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scan's plan, where a text looks for it."""
    monkeypatch.chdir(tmp_path)
    record = {"schema_version": 1, "format": "FP16", "keep_fp32": ["head"]}
    (tmp_path / "plan.json").write_text(json.dumps(record))


CASES = pytest.mark.parametrize(
    ("found", "scale", "interval", "seen"),
    [
        pytest.param(SHORT, 2.0**8, 3, (HALF, HALF), id="dynamic"),
        pytest.param(WITH_ISLAND, 2.0**8, 3, (HALF, FULL), id="with an island"),
        pytest.param(STATIC, 2.0**7, 10**9, (HALF, HALF), id="static"),
        pytest.param(UNSCALED, None, None, (HALF, HALF), id="no scale"),
        pytest.param(IN_BF16, None, None, (torch.bfloat16, torch.bfloat16), id="bf16"),
    ],
)


def scaled_as(scaler: Any, scale: float | None, interval: int | None) -> bool:
    """Whether a scaler has that scale after the steps and that growth interval; None: does not scale at all."""
    if scale is None:
        return scaler is None or not scaler.is_enabled()
    return (scaler.get_scale(), scaler.get_growth_interval()) == (scale, interval)


@CASES
def test_the_plain_loop_trains_at_the_scale(found, scale, interval, seen):
    text = config("PyTorch", found)
    setup, loop = text.text.partition("with torch.autocast")[::2]  # the loop's body is pasted once and runs each step
    model = small().to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    names = executed(replace(text, text=setup), model=model)
    for batch in batches():
        given = {"optimizer": optimizer, "batch": batch, "compute_loss": compute_loss}
        executed(replace(text, text=f"with torch.autocast{loop}"), **{**names, **given})
    assert scaled_as(names.get("scaler"), scale, interval)
    assert model.seen == seen
    assert learns(model)


@CASES
def test_lightning_trains_at_the_scale(monkeypatch, found, scale, interval, seen):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    monkeypatch.setattr(
        lightning, "Trainer", functools.partial(lightning.Trainer, accelerator=DEVICE, max_epochs=1, **quiet)
    )

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()
            self.head = self.net.head  # the plan's name, from the module that Lightning is given

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return compute_loss(self.net, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=RATE)

    module = Module()
    loader = torch.utils.data.DataLoader(batches(), batch_size=None)
    names = executed(config("Lightning", found), model=module, batches=loader)
    assert names["trainer"].global_step == STEPS
    assert scaled_as(names["trainer"].precision_plugin.scaler, scale, interval)
    assert module.net.seen == seen
    assert learns(module.net)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Diagnosis], None]]:
    """accelerate makes no GradScaler on a CPU: there it is told of a CUDA device until it has made one, for the CPU."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    import accelerate.accelerator as module
    from accelerate.state import AcceleratorState

    plain = module.Accelerator.device

    def prepare(found: Diagnosis) -> None:
        if DEVICE == "cpu" and found is not IN_BF16:
            pretended = property(lambda self: plain.fget(self) if hasattr(self, "step") else torch.device("cuda"))
            monkeypatch.setattr(module.Accelerator, "device", pretended)
            scaler = lambda kind=None, **arguments: torch.amp.GradScaler("cpu", **arguments)
            monkeypatch.setattr(module, "get_grad_scaler", scaler)

    AcceleratorState._reset_state(reset_partial_state=True)  # one for the process, with one precision
    yield prepare
    AcceleratorState._reset_state(reset_partial_state=True)


@CASES
def test_accelerate_trains_at_the_scale(accelerated, found, scale, interval, seen):
    accelerated(found)
    model = small()
    given = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=RATE),
        "batches": torch.utils.data.DataLoader(batches(), batch_size=None),
    }
    names = executed(config("Accelerate", found), compute_loss=compute_loss, **given)
    assert scaled_as(names["accelerator"].scaler, scale, interval)
    assert model.seen == seen
    assert learns(model)


@CASES
def test_the_trainer_of_transformers_trains_at_the_scale(accelerated, monkeypatch, found, scale, interval, seen):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    accelerated(found)
    short = {
        "max_steps": STEPS,
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": DEVICE == "cpu",
    }
    monkeypatch.setattr(transformers, "TrainingArguments", functools.partial(transformers.TrainingArguments, **short))
    dataset = [{"x": x[0].cpu(), "labels": y[0].cpu()} for x, y in batches() * 4]
    model = Small()
    trainer = executed(config("transformers", found), model=model, dataset=dataset)["trainer"]
    assert trainer.state.global_step == STEPS
    if found is UNSCALED:
        scale, interval = 1.0, 10**9  # fp16=True always makes a scaler
    assert scaled_as(trainer.accelerator.scaler, scale, interval)
    assert model.seen == seen


# DeepSpeed starts torch.distributed and leaves autocast's state in the process, so it gets one of its own. Its CPU
# accelerator refuses fp16 before it looks: there it is told that FP16 is supported, as torch's CPU operators are.
DEEPSPEED = f"""
import json, sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(samples.__file__).parent)]!r}
import torch, deepspeed
from deepspeed.accelerator import get_accelerator
from test_configs import RATE, batches, learns, small
kind, text, stage = json.loads(sys.argv[1])  # stage null: the text's own
if not torch.cuda.is_available():
    get_accelerator().is_fp16_supported = lambda: True
    deepspeed.init_distributed(dist_backend="gloo")
model = small().to(get_accelerator().device_name())
optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
config = {{"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 0.0,
          "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}}
if stage is not None:
    config["zero_optimization"] = {{"stage": stage}}
names = {{"model": model, "optimizer": optimizer, "config": config}}
if kind == "python":
    exec(text, names)
    engine = names["engine"]
else:
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=json.loads(text) | config)
weight = next(engine.module.parameters()).dtype
for x, y in batches():
    loss = (engine(x.to(weight)).float() - y).square().mean()
    engine.backward(loss)
    engine.step()
if kind == "python":
    told = [names["scaler"].get_scale(), names["scaler"].get_growth_interval()]
else:
    owner = engine.optimizer
    scaler = getattr(owner, "loss_scaler", None)
    told = [float(owner.loss_scale), getattr(scaler, "scale_window", None)]
with deepspeed.zero.GatheredParameters(list(model.parameters())):
    print("TOLD", json.dumps([told, [str(d) for d in model.seen], str(weight), learns(model)]))
"""


def with_deepspeed(wanted: Config, stage: int | None = None) -> list[Any]:
    """[[scale, window], types of the body's and the head's output, type of the weights, learns] after the steps."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    alone = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DEEPSPEED, json.dumps([wanted.language, wanted.text, stage])],
        env={**os.environ, **alone, **({"DS_ACCELERATOR": "cpu"} if DEVICE == "cpu" else {})},
        capture_output=True,
        text=True,
        timeout=300,  # the first start on a machine compiles DeepSpeed's communication
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD")).removeprefix("TOLD"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 2, 3])
def test_deepspeed_trains_with_the_fp16_block(stage):
    told = with_deepspeed(config("DeepSpeed", SHORT), stage)
    # no word on what was learned: DeepSpeed divides the step at which the scale grows by the grown scale already
    assert told[:3] == [[2.0**8, 3], ["torch.float16"] * 2, "torch.float16"]


@pytest.mark.slow
def test_deepspeed_learns_with_the_fp16_block():
    assert with_deepspeed(config("DeepSpeed", diagnosis("dynamic", 7, 2000)))[0::3] == [[2.0**7, 2000], True]


@pytest.mark.slow
def test_deepspeed_without_zero_loses_the_scale_as_the_note_says():
    found = config("DeepSpeed", diagnosis("dynamic", 7, 2000))
    assert "not 0" in found.note
    assert with_deepspeed(found, 0)[3] is False  # once this fails, the block needs no stage any more


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "scale"),
    [(STATIC, 2.0**7), (UNSCALED, 1.0), (diagnosis("dynamic", -3, 3), 0.125), (IN_BF16, 1.0)],
)
def test_deepspeed_trains_at_a_scale_that_stays(found, scale):
    (held, window), _, weight, learned = with_deepspeed(config("DeepSpeed", found))
    assert (held, window, learned) == (scale, None, True)
    assert weight == ("torch.bfloat16" if found is IN_BF16 else "torch.float16")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_deepspeed_trains_with_an_island_under_its_autocast(stage):
    told = with_deepspeed(config("DeepSpeed", WITH_ISLAND), stage)
    assert told == [[2.0**8, 3], ["torch.float16", "torch.float32"], "torch.float32", True]


def test_deepspeeds_own_classes_take_the_block():
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
    from deepspeed.runtime.precision_config import get_float16_config

    read = get_float16_config(json.loads(DYNAMIC["DeepSpeed"]))
    scaler = CreateLossScaler(HALF, read.loss_scale, read.loss_scale == 0, read.dynamic_loss_scale_args())
    assert (scaler.loss_scale, scaler.scale_window, scaler.delayed_shift, scaler.min_scale) == (2**14, 2000, 1, 1)


def test_names_that_were_not_tried_are_not_to_be_pasted():
    found = diagnosis(islands=("head",))
    untried = replace(found, advice=replace(found.advice, plan=None))
    assert not any("mpdiag.apply" in text for text in texts(untried).values())
