"""The code to paste with a plan of FP32 islands: one whole loop for the page, the plan and the configurations."""

from __future__ import annotations

import ast
from dataclasses import replace

import pytest

import report_samples as samples
from mpdiag.advice.configs import configs_for
from mpdiag.advice.loss_scale import WITHOUT_SCALE, _snippet
from mpdiag.diagnosis import Diagnosis
from mpdiag.other_formats import FormatChoice
from mpdiag.plan import IslandPlan, plan_snippet
from mpdiag.report import configs as as_text

NAMES, WHAT = ("0", "2"), ("Linear 24->64", "Linear 64->64")


def planned(log2_scale: int | None, mode: str, train: str | None) -> Diagnosis:
    whole = samples.full()
    assert whole.advice is not None
    assert whole.verification is not None
    code = plan_snippet(NAMES, train, WHAT)
    plan = IslandPlan(NAMES, True, True, log2_scale, mode, 2000, 1, 0.1, True, snippet=code, modules=WHAT)
    advice = replace(whole.advice, plan=plan, keep_fp32=NAMES, format_choice=None)
    return replace(whole, advice=advice, verification=replace(whole.verification, train_with="fp16-plan"))


def loops() -> list[Diagnosis]:
    return [planned(0, "none", WITHOUT_SCALE), planned(None, "none", WITHOUT_SCALE),
            planned(9, "dynamic", _snippet(9, "dynamic", 2000))]  # fmt: skip


@pytest.mark.parametrize("found", loops(), ids=["no scale needed", "no scale", "dynamic"])
def test_the_pages_code_and_the_plain_configuration_are_one_loop_applied_once(found):
    code = found.snippet or ""
    plain = configs_for(found)[0]
    assert [text.count("mpdiag.apply(") for text in (code, plain.text)] == [1, 1]
    loop = code.partition("# or the path of plan.json\n\n")[2]
    assert "torch.autocast" in loop
    assert "optimizer" in loop
    assert plain.text.endswith(loop)
    assert '# in FP32: "0" (Linear 24->64), "2" (Linear 64->64)' in code.splitlines()
    assert 'these stay in FP32: "0" (Linear 24->64), "2" (Linear 64->64)' in plain.text.replace("\n# ", " ")
    ast.parse(code)
    ast.parse(plain.text)


@pytest.mark.parametrize("found", loops()[:2])
def test_without_a_scale_every_framework_has_its_text_with_the_scaler_off(found):
    made = configs_for(found)
    assert [each.title for each in made] == ["PyTorch", "Lightning", "transformers", "Accelerate", "DeepSpeed"]
    assert "GradScaler" not in made[0].text
    assert "enabled=False" in made[1].text
    assert "enabled=False" in made[3].text


def test_a_plan_of_an_older_file_without_a_loop_gets_one():
    plain = configs_for(planned(None, "none", None))[0]
    assert plain.text.endswith(WITHOUT_SCALE)


def test_a_window_is_no_reason_for_there_being_no_code():
    whole = samples.full()
    assert whole.advice is not None
    scale = replace(whole.advice.loss_scale, log2_scale=None, snippet=None, reason="no scale serves all: 2^4 or more")
    choice = FormatChoice("FP16", False, "foretold to fit")
    found = replace(whole, verification=None, advice=replace(whole.advice, loss_scale=scale, format_choice=choice))
    assert configs_for(found) == ()
    told = as_text.render(found, ())
    assert told == "No code to paste: no loss scale is known for FP16: no scale serves all: 2^4 or more\n"
