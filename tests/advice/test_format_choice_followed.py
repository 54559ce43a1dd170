"""The code, the configurations, the plan and the page all follow the one choice of a format."""

from dataclasses import replace

import pytest

import report_samples as samples
from format_choice_samples import MP101, PLAN, advice, forecast, machine, scale, verified
from mpdiag.advice.configs import configs_for
from mpdiag.advice.format_choice import with_format_choice
from mpdiag.diagnosis import NOT_ASKED_FOR
from mpdiag.foretold import Prediction, TensorForecast
from mpdiag.plan import plan_of, plan_snippet
from mpdiag.report import configs as as_text
from mpdiag.report import html
from mpdiag.report.digest import digest_of

# one choice for the page, the code, the configurations and the plan


def job_of(plan=None, run=None, gpu="H100", *findings, loss_scale=None):
    """A diagnosis whose format has been chosen."""
    scale_with_code = loss_scale or replace(scale(), snippet="scaled()\n")
    known = replace(
        samples.full(),
        environment=machine(gpu),
        advice=advice(*findings, loss_scale=scale_with_code, plan=plan),
        verification=run,
        reason=None if run else NOT_ASKED_FOR,
    )
    return with_format_choice(known)


CODED = replace(PLAN, snippet=plan_snippet(("fc",), "scaled()\n"))


EMPTY = replace(scale(None, "no scale serves all"), mode="none", snippet=None)


@pytest.mark.parametrize(
    ("made", "found", "code", "configured", "alternative"),
    [
        (job_of(), "FP16", "scaled()", "init_scale=2.0**14", None),
        (job_of(CODED, None, "H100", MP101), "BF16", "bfloat16", "bf16", "BF16"),
        (job_of(CODED, None, "H100", loss_scale=EMPTY), "BF16", "bfloat16", "bf16", "BF16"),
        (job_of(CODED, None, "V100", MP101), "FP16 with FP32 islands", "mpdiag.apply", "init_scale=2.0**12", None),
        (job_of(CODED, None, "P100", MP101), "FP32", None, None, "FP32"),
        (job_of(None, verified("bf16", bf16="equivalent", fp16="worse")), "BF16", "bfloat16", "bf16", None),
        (job_of(CODED, verified("bf16", bf16="equivalent", fp16="worse")), "BF16", "bfloat16", "bf16", "BF16"),
        (
            job_of(CODED, verified("fp16-plan", fp16_plan="equivalent", fp16="worse"), "H100", MP101),
            "FP16 with FP32 islands", "mpdiag.apply", "init_scale=2.0**12", None,
        ),
        (
            job_of(CODED, verified("fp16", fp16="equivalent", fp16_plan="equivalent"), "H100", MP101),
            "FP16 with FP32 islands", "mpdiag.apply", "init_scale=2.0**12", None,
        ),
        (
            job_of(CODED, verified("fp16", fp16="equivalent", fp16_plan="worse"), "H100", MP101),
            "FP16", "scaled()", "init_scale=2.0**14", "FP16",
        ),
    ],
)  # fmt: skip
def test_code_configurations_and_plan_follow_the_one_choice(made, found, code, configured, alternative):
    assert made.train_in == made.advice.format_choice.chosen == found
    texts = {each.title: each.text for each in configs_for(made)}
    assert (made.snippet is None) == (code is None) == (texts == {})
    if code is not None:
        assert code in made.snippet
        assert code in texts["PyTorch"] or "mpdiag.apply" in texts["PyTorch"]
        assert configured in texts["Lightning"]
        assert ("mpdiag.apply" in texts["Lightning"]) == (found == "FP16 with FP32 islands")
    assert (digest_of(made).snippet, dict(digest_of(made).why)["format"].split(":")[0]) == (made.snippet, found)
    plan = plan_of(made)
    assert (plan is not None) == (made.advice.plan is not None)
    assert plan is None or plan.alternative_to == alternative


def test_where_the_verification_lets_nothing_train_there_is_no_code_whatever_is_foretold():
    made = job_of(CODED, verified(None, fp16="worse", bf16="inconclusive"))
    assert made.advice.format_choice.chosen == "BF16"
    assert (made.train_in, made.snippet, configs_for(made)) == (None, None, ())


def test_tf32_is_a_line_of_torch():
    lossy = (forecast("TF32"), forecast("BF16", losing=3))
    made = replace(job_of(gpu="A100"), advice=advice(MP101, forecasts=lossy))
    made = with_format_choice(made)
    assert made.train_in == "TF32"
    assert "set_float32_matmul_precision" in made.snippet
    assert [each.title for each in configs_for(made)] == ["PyTorch"]


def test_what_fp16_would_need_is_the_labelled_alternative():
    made = job_of(CODED, None, "H100", MP101)
    steps = digest_of(replace(made, advice=replace(made.advice, keep_fp32=("fc",)))).next_steps
    assert steps[:2] == ("train with:", "or FP16 instead of BF16: keep in FP32: fc")
    assert "alternative" in dict(digest_of(made).why)
    page = html.render(replace(made, advice=replace(made.advice, keep_fp32=("fc",))), plotly="none")
    section = page[page.index('<section id="do-this">') :].split("</section>")[0]
    assert "Or FP16 instead of BF16: keep in FP32: <code>fc</code>" in section
    assert "bfloat16" in section
    assert "mpdiag.apply" not in section


def test_modules_that_did_not_cure_fp16_are_no_alternative_on_screen_or_page():
    made = job_of(CODED, None, "H100", MP101)
    failed = replace(made.advice, keep_fp32=("fc",), plan=replace(CODED, enough=False, keep_fp32=()))
    made = with_format_choice(replace(made, advice=failed))
    assert "or FP16 instead of BF16: MP101: keep fc in FP32" in digest_of(made).next_steps
    page = html.render(made, plotly="none")
    assert "keep in FP32" not in page[page.index('<section id="do-this">') :].split("</section>")[0]


def test_staying_in_fp32_is_said_where_code_would_be():
    made = job_of(CODED, None, "P100", MP101)
    page = html.render(made, plotly="none")
    said = "No code to paste: the advice is to stay in FP32: no tensor cores for FP16"
    assert said in page[page.index('<section id="do-this">') :].split("</section>")[0]
    assert as_text.render(made, ()) == f"{said}\n"


def test_an_error_of_the_runs_speaks_against_fp16_too():
    from mpdiag.advice.from_runs import with_late_findings

    dead = TensorForecast("fc", "activation_gradient", 0, 14, 9, 0.0, 1.0, 1.0, 0.0, 0.0)
    run = replace(verified(None, fp16="inconclusive"), prediction=Prediction((dead,), True))
    made = job_of(None, run)
    assert made.advice.format_choice.chosen == "FP16"
    assert with_late_findings(made).advice.format_choice.chosen == "BF16"
