"""Each configuration to paste is executed with its package where it is installed, and trains as it says.

Where there is no CUDA device the executed text says "cpu" instead of "cuda"; nothing else in it is changed. What a
framework refuses to do on a CPU (a GradScaler of accelerate's, DeepSpeed's fp16) is let through, by name, in a fixture.
"""

from __future__ import annotations

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

import config_samples
from config_samples import (
    DEVICE,
    DYNAMIC,
    FULL,
    HALF,
    MODES,
    RATE,
    STEPS,
    Small,
    batches,
    compute_loss,
    config,
    diagnosis,
    learns,
    small,
)
from mpdiag.advice.configs import Config
from mpdiag.diagnosis import Diagnosis

# --- what they do: a scale of 2^7 that doubles after three clean steps, four steps, and a head that stays in FP32

SHORT = diagnosis("dynamic", 7, 3)
WITH_ISLAND = diagnosis("dynamic", 7, 3, islands=("head",))
STATIC = diagnosis("static", 7, None)
UNSCALED = diagnosis(*MODES["none"])
IN_BF16 = diagnosis(train_with="bf16")


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
sys.path[:0] = {[str(Path(config_samples.__file__).parent)]!r}
import torch, deepspeed
from deepspeed.accelerator import get_accelerator
from config_samples import RATE, batches, learns, small
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
