"""The configurations to paste: the exact text for each framework."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import report_samples as samples
from config_samples import DYNAMIC, MODES, changed, config, diagnosis, texts
from mpdiag.advice.configs import configs_for
from mpdiag.advice.loss_scale import _snippet
from mpdiag.diagnosis import Diagnosis
from mpdiag.loop import LoopFacts, OptimizerGroup, for_all_optimizers
from mpdiag.plan import IslandPlan, plan_snippet

# --- what they say


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


def test_names_that_were_not_tried_are_not_to_be_pasted():
    found = diagnosis(islands=("head",))
    untried = replace(found, advice=replace(found.advice, plan=None))
    assert not any("mpdiag.apply" in text for text in texts(untried).values())
