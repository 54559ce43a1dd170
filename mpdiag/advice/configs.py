"""Configurations to paste: the advised precision, its loss scale and the FP32 islands, in each framework's words.

They follow Diagnosis.train_in, the one choice of a format, as the code to paste does: FP16 with the advised scale, or
with the plan's modules in FP32, or BF16; TF32 is a setting of torch's; nothing where no format is shown to train like
FP32. tests/advice/test_configs_executed.py executes each text with its package.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, replace
from typing import Literal

from mpdiag.advice.loss_scale import DEFAULT_GROWTH_INTERVAL, WITHOUT_SCALE
from mpdiag.diagnosis import Diagnosis, LossScaleAdvice
from mpdiag.other_formats import BF16, FP16_ISLANDS, TF32
from mpdiag.plan import IslandPlan, plan_snippet

_Scale = LossScaleAdvice | IslandPlan  # a plan's own scale: with the islands out of the way it may be another

_COMMENT_COLUMNS = 88  # fits a code box of the page without scrolling
# measured on 0.19.8 and deepspeedai/DeepSpeed#8393: backward() scales for ZeRO's optimizers only, step() always divides
_ZERO = "The stage may be 1, 2 or 3, not 0: without ZeRO, DeepSpeed divides by a scale it has not multiplied with. "
_CONVERTED = (
    "It converts the whole model, also what autocast keeps in FP32 (norms, softmax, losses), so the scan foretells its"
    ' matrix products and convolutions only; DeepSpeed\'s block "torch_autocast" is autocast, as scanned.'
)


@dataclass(frozen=True)
class Config:
    """One configuration. note: what a reader has to know and the text cannot say itself; "" for nothing."""

    title: str
    language: Literal["python", "json"]
    text: str
    note: str


def configs_for(diagnosis: Diagnosis, plan_file: str = "plan.json") -> tuple[Config, ...]:
    """PyTorch, Lightning, transformers, Accelerate and DeepSpeed; of TF32 PyTorch alone.

    plan_file: where the plan of FP32 islands lies. Nothing where the diagnosis has no code to paste.
    """
    snippet, advice, chosen = diagnosis.snippet, diagnosis.advice, diagnosis.train_in
    if snippet is None:
        return ()
    if chosen == TF32:
        return (Config("PyTorch", "python", f"import torch\n\n{snippet.rstrip()}\n", ""),)
    wanted = _Wanted(None, None, plan_file)  # BF16 needs neither: its range is FP32's
    train = snippet
    if advice is not None and chosen == FP16_ISLANDS and advice.plan is not None:
        plan = advice.plan
        if plan.log2_scale is None:  # as it was trained: without a scaler
            plan = replace(plan, log2_scale=0, mode="none")
        wanted = _Wanted(plan, plan, plan_file)
        applied = plan_snippet(plan.keep_fp32, None, plan.modules)  # the head says it, with the file
        train = snippet.removeprefix(applied) or WITHOUT_SCALE  # older files have no loop where no scale is needed
    elif advice is not None and chosen != BF16:
        if advice.loss_scale.log2_scale is None:
            return ()
        wanted = _Wanted(advice.loss_scale, None, plan_file)
    frameworks = (
        _lightning(wanted),
        _transformers(wanted),
        _accelerate(wanted),
        _deepspeed_autocast(wanted, wanted.scale) if wanted.scale and wanted.islands else _deepspeed(wanted.scale),
    )
    plain = Config("PyTorch", "python", wanted.head("import torch") + train.rstrip() + "\n", "")
    loop = diagnosis.capture.loop if diagnosis.capture else None
    several = loop.optimizers if loop and len(loop.optimizers) > 1 else ()
    return (plain, *(_noted(config, several) for config in frameworks))


def _noted(config: Config, optimizers: tuple[str, ...]) -> Config:
    """What is written for one optimizer says so where the job has several."""
    if not optimizers:
        return config
    told = f"Written for one optimizer; this job has {len(optimizers)} ({', '.join(optimizers)}): for their turns see "
    return replace(config, note=f"{told}PyTorch's text. {config.note}".rstrip())


@dataclass(frozen=True)
class _Wanted:
    """What every text has to say. scale: FP16's, None for BF16; islands: the plan of modules in FP32, in plan_file."""

    scale: _Scale | None
    islands: IslandPlan | None
    plan_file: str

    def head(self, *imports: str) -> str:
        """The imports and, where there are islands, the line that makes them, before a framework has the model."""
        lines = sorted(
            {*imports, *(["import mpdiag"] if self.islands else [])}, key=lambda x: (x.startswith("from"), x)
        )
        if self.islands:
            names = ", ".join(repr(name)[1:-1] for name in self.islands.spoken)  # repr: no name ends the comment
            lines += ["", *_comment(f"the scanned model and the scan's plan: these stay in FP32: {names}")]
            lines += [f"mpdiag.apply(model, {json.dumps(self.plan_file, ensure_ascii=False)})"]
        return "\n".join([*lines, "", ""])


def _lightning(wanted: _Wanted) -> Config:
    if wanted.scale is None:
        text = wanted.head("import lightning as L") + 'trainer = L.Trainer(precision="bf16-mixed")\n'
        return Config("Lightning", "python", f"{text}trainer.fit(model, batches)\n", "")
    imports = ("import lightning as L", "import torch", "from lightning.pytorch.plugins import MixedPrecision")
    text = (
        f'{wanted.head(*imports)}scaler = torch.amp.GradScaler("cuda", {_arguments(wanted.scale)})\n'
        'trainer = L.Trainer(plugins=[MixedPrecision("16-mixed", device="cuda", scaler=scaler)])\n'
        "trainer.fit(model, batches)\n"
    )
    note = 'The plugin replaces precision="16-mixed", which would make its own scaler.'
    if wanted.islands:
        note += " Where the scanned model is a part of the LightningModule, apply the plan to that part."
    return Config("Lightning", "python", text, note)


def _transformers(wanted: _Wanted) -> Config:
    flag = "bf16" if wanted.scale is None else "fp16"
    text = (
        f"{wanted.head('from transformers import Trainer, TrainingArguments')}"
        f'args = TrainingArguments(output_dir="checkpoints", {flag}=True)\n'
        "trainer = Trainer(model=model, args=args, train_dataset=dataset)\n"
    )
    note = "Load the model with dtype=torch.float32: autocast wants FP32 weights, and a checkpoint may hold others."
    if wanted.scale is not None:
        text += "scaler = trainer.accelerator.scaler  # TrainingArguments has no field for the scale\n"
        text += _state(wanted.scale)
        note += " hyperparameter_search makes a new scaler for each trial, with the default scale."
        if wanted.scale.mode == "none":
            note += " fp16=True always makes a scaler; at 1 it scales nothing."
    return Config("transformers", "python", f"{text}trainer.train()\n", note)


def _accelerate(wanted: _Wanted) -> Config:
    imports, made = ["from accelerate import Accelerator"], 'accelerator = Accelerator(mixed_precision="bf16")\n'
    if wanted.scale is not None:
        imports.append("from accelerate.utils import GradScalerKwargs")
        made = (
            f"scaling = GradScalerKwargs({_arguments(wanted.scale)})\n"
            'accelerator = Accelerator(mixed_precision="fp16", kwargs_handlers=[scaling])\n'
        )
    text = (
        f"{wanted.head(*imports)}{made}"
        "model, optimizer, batches = accelerator.prepare(model, optimizer, batches)\n\n"
        "for batch in batches:\n    with accelerator.autocast():\n        loss = compute_loss(model, batch)\n"
        "    accelerator.backward(loss)\n    optimizer.step()\n    optimizer.zero_grad()\n"
    )
    return Config("Accelerate", "python", text, "")


def _deepspeed(scale: _Scale | None) -> Config:
    if scale is None:
        return Config("DeepSpeed", "json", _json({"bf16": {"enabled": True}}), _CONVERTED)
    log2, zero = scale.log2_scale or 0, {"zero_optimization": {"stage": 1}}
    if scale.mode == "dynamic" and log2 >= 0:
        block = {
            "enabled": True,
            "loss_scale": 0,  # dynamic
            "initial_scale_power": log2,
            "loss_scale_window": _interval(scale),
            "hysteresis": 1,  # halve at the first overflow, as GradScaler does; DeepSpeed's default waits for two
            "min_loss_scale": 1,
        }
        return Config("DeepSpeed", "json", _json({"fp16": block, **zero}), _ZERO + _CONVERTED)
    # 2**log2 is a whole number from 2^0 on; DeepSpeed's static scale may be a fraction, its dynamic one may not
    fixed = {"fp16": {"enabled": True, "loss_scale": 2**log2}}
    if scale.mode == "none":
        return Config("DeepSpeed", "json", _json(fixed), _CONVERTED)
    note = "The scale is static: a step that overflows is skipped and the scale stays. "
    if scale.mode == "dynamic":
        note = "The scale is static, since DeepSpeed's dynamic one cannot go below 1 (min_loss_scale is an integer). "
    return Config("DeepSpeed", "json", _json({**fixed, **zero}), note + _ZERO + _CONVERTED)


def _deepspeed_autocast(wanted: _Wanted, scale: _Scale) -> Config:
    """For islands: torch_autocast leaves the weights in FP32; the block fp16 converts them."""
    text = (
        f"{wanted.head('import deepspeed')}"
        'config["torch_autocast"] = {  # config: ds_config.json as a dict, without a block "fp16" or "bf16"\n'
        '    "enabled": True,\n    "dtype": "float16",\n'
        '    "lower_precision_safe_modules": [],  # ZeRO sends every gradient in FP32, the islands\' too\n}\n'
        "engine, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)\n"
        "# the block has no key for the scale; the engine has the scaler, with ZeRO its optimizer\n"
        "scaler = engine.torch_autocast_z0_gradscaler or engine.optimizer.torch_autocast_gradscaler\n"
    )
    note = 'The block "fp16" converts every parameter: with it no module can stay in FP32, so this is "torch_autocast".'
    return Config("DeepSpeed", "python", text + _state(scale), note)


def _arguments(scale: _Scale) -> str:
    """GradScaler's arguments, and accelerate's GradScalerKwargs', which are the same."""
    if scale.mode == "none":
        return "enabled=False"
    return f"init_scale=2.0**{scale.log2_scale}, growth_interval={_growth(scale)}"


def _state(scale: _Scale) -> str:
    """The line that sets a scaler made by somebody else; 2^0 that never grows is no scale."""
    values = f'"scale": 2.0**{scale.log2_scale}, "growth_interval": {_growth(scale)}'
    return f"scaler.load_state_dict(scaler.state_dict() | {{{values}}})\n"


def _growth(scale: _Scale) -> str:
    return str(_interval(scale)) if scale.mode == "dynamic" else "10**9"


def _interval(scale: _Scale) -> int:
    return scale.growth_interval or DEFAULT_GROWTH_INTERVAL


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COMMENT_COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _json(block: object) -> str:
    return json.dumps(block, indent=2) + "\n"
