"""Which format for this job on this GPU: what was trained here first, then what is foretold."""

import re
from dataclasses import replace

import pytest

import report_samples as samples
from mpdiag.accuracy import PairedTest
from mpdiag.advice.configs import configs_for
from mpdiag.advice.format_choice import choose_format, tensor_core_formats, with_format_choice
from mpdiag.diagnosis import NOT_ASKED_FOR, Advice, Environment, Finding, LossScaleAdvice, Verification
from mpdiag.draft import Draft
from mpdiag.foretold import Prediction, TensorForecast
from mpdiag.other_formats import FormatForecast
from mpdiag.plan import IslandPlan, plan_of, plan_snippet
from mpdiag.report import configs as as_text
from mpdiag.report import html
from mpdiag.report.digest import digest_of

GPUS = {
    "V100": ("Tesla V100-SXM2-16GB", "7.0"),
    "T4": ("Tesla T4", "7.5"),
    "GTX 1660": ("NVIDIA GeForce GTX 1660", "7.5"),
    "P100": ("Tesla P100-PCIE-16GB", "6.0"),
    "A100": ("NVIDIA A100-SXM4-40GB", "8.0"),
    "L4": ("NVIDIA L4", "8.9"),
    "H100": ("NVIDIA H100 80GB HBM3", "9.0"),
    "B200": ("NVIDIA B200", "10.0"),
    "RTX 5090": ("NVIDIA GeForce RTX 5090", "12.0"),
}
MP101 = Finding("MP101", "overflow", "error", "fc", "overflows", {}, "keep fc in FP32")
PLAN = IslandPlan(("fc",), True, True, 12, "dynamic", 2000, 3, 0.5, False)


def machine(known=None, **more):
    name, capability = GPUS[known] if known else (None, None)
    fields = {"gpu": name, "compute_capability": capability, "cuda": "13.0" if known else None, **more}
    return Environment(python="3.12", torch="2.11", mpdiag="0", platform="Linux", cpu_threads=2, **fields)


def scale(log2_scale=14, reason="window 2^4..2^18"):
    return LossScaleAdvice(log2_scale, "dynamic", 4, 18, {}, 0.1, 0.0, 0.0, 0.0, "", reason)


def forecast(name, part="forward", losing=0, overflow=0.0):
    return FormatForecast(name, part, "none", 9, 4, 0.0, 0.0, overflow, losing, None, 0.0, "")


FORECASTS = tuple(forecast(name) for name in ("TF32", "BF16", "E4M3", "E5M2", "MXFP8", "NVFP4"))


def advice(*findings, loss_scale=None, forecasts=FORECASTS, plan=None):
    return Advice("FP16", loss_scale or scale(), findings, other_formats=forecasts, plan=plan)


def verified(train_with, emulated=False, **verdicts):
    """A verification of arms by their loss's verdicts."""
    named = {arm.replace("_", "-"): verdict for arm, verdict in verdicts.items()}
    comparisons = tuple(samples.comparison(arm, verdict=verdict) for arm, verdict in named.items())
    trials = tuple(samples.run_of(arm, emulated=emulated) for arm in named)
    return Verification(trials, comparisons, None, "", train_with=train_with)


def chosen(gpu, **more):
    run = more.pop("run", None)
    return choose_format(machine(gpu), advice(**more), run)


def why(choice, fmt):
    return {option.format: option.why for option in choice.options}[fmt]


@pytest.mark.parametrize(
    ("gpu", "formats"),
    [
        ("P100", set()),
        ("GTX 1660", set()),
        ("V100", {"FP16"}),
        ("T4", {"FP16"}),
        ("A100", {"FP16", "BF16", "TF32"}),
        ("L4", {"FP16", "BF16", "TF32", "FP8"}),
        ("H100", {"FP16", "BF16", "TF32", "FP8"}),
        ("B200", {"FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"}),
        ("RTX 5090", {"FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"}),
    ],
)
def test_tensor_cores_by_compute_capability(gpu, formats):
    assert tensor_core_formats(machine(gpu)) == formats


@pytest.mark.parametrize("more", [{}, {"gpu": "AMD Instinct MI300X", "compute_capability": "9.4", "cuda": None}])
def test_without_an_nvidia_gpu_nothing_is_said_of_its_tensor_cores(more):
    assert tensor_core_formats(machine(None, **more)) is None
    options = choose_format(machine(None, **more), advice(), None).options
    assert {option.on_this_gpu for option in options} == {None}


def test_a_cpu_is_told_from_which_gpu_on():
    choice = chosen(None)
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert (
        why(choice, "FP8")
        == "its range is foretold to fit, not trained here (NVIDIA tensor cores from compute capability 8.9 on)"
    )


# foretold


def test_fp16_where_nothing_speaks_against_it():
    choice = chosen("V100")
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert choice.reason == "foretold to fit on this Tesla V100-SXM2-16GB, loss scale 2^14, not trained here"


def test_what_the_gpu_has_beyond_is_named_but_never_as_trained():
    assert chosen("H100").reason.endswith("not trained here; the range of FP8 is foretold to fit, not trained here")
    assert chosen("B200").reason.endswith("; the range of FP8 and MXFP8 and NVFP4 is foretold to fit, not trained here")
    assert "FP8" not in chosen("A100").reason


@pytest.mark.parametrize(("gpu", "found"), [("H100", "BF16"), ("A100", "BF16"), (None, "BF16"), ("V100", "FP32")])
def test_an_empty_window_leads_to_bf16_where_there_is_any(gpu, found):
    empty = scale(None, "no scale serves all: 2^20 or more is needed, 2^4 or less is possible")
    choice = chosen(gpu, loss_scale=empty)
    assert choice.chosen == found
    assert choice.reason.startswith("FP16: no scale serves all: 2^20 or more")


def test_an_overflow_leads_to_bf16_or_where_there_is_none_to_the_plan():
    on_h100 = choose_format(machine("H100"), advice(MP101, plan=PLAN), None)
    on_v100 = choose_format(machine("V100"), advice(MP101, plan=PLAN), None)
    assert on_h100.chosen == "BF16"
    assert on_v100.chosen == "FP16 with FP32 islands"
    assert on_h100.reason.startswith("FP16 needs changes: MP101; BF16 has FP32's range")


def test_a_plan_that_is_not_enough_is_none():
    bad = replace(PLAN, enough=False)
    assert choose_format(machine("V100"), advice(MP101, plan=bad), None).chosen == "FP32"


def test_tf32_where_bf16_is_foretold_to_lose_too_much():
    lossy = (forecast("TF32"), forecast("BF16", losing=3))
    choice = choose_format(machine("A100"), advice(MP101, forecasts=lossy), None)
    assert choice.chosen == "TF32"
    assert why(choice, "BF16") == "foretold: forward, 3 of 9 tensors lose too much"


@pytest.mark.parametrize("gpu", ["P100", "GTX 1660"])
def test_fp32_where_there_are_no_tensor_cores(gpu):
    assert (chosen(gpu).chosen, chosen(gpu).reason) == ("FP32", "no tensor cores for FP16")


def test_fp32_where_autocast_has_nothing_in_16_bits():
    choice = chosen("H100", forecasts=())
    assert (choice.chosen, choice.reason) == ("FP32", "no tensor that autocast has in 16 bits was seen")
    assert why(choice, "MXFP8").startswith("no tensor cores for it: needs compute capability 10.0, this is 9.0")


def test_fp8_needs_both_halves_of_the_step():
    half = (*FORECASTS[:3], forecast("E5M2", "backward", losing=2))
    choice = chosen("H100", forecasts=half)
    assert "FP8" not in choice.reason
    assert why(choice, "FP8") == "foretold: backward, 2 of 9 tensors lose too much"


def test_overflow_is_no_fit():
    choice = chosen("H100", forecasts=(forecast("TF32"), forecast("BF16", overflow=0.1)))
    assert why(choice, "BF16") == "foretold: overflows"


def test_consumer_blackwell_is_told_that_the_library_lags():
    assert "10.x" in why(chosen("RTX 5090"), "MXFP8")
    assert "10.x" not in why(chosen("B200"), "MXFP8")


def test_how_precise_a_format_is_stands_beside_its_range():
    noisy = tuple(
        replace(each, noise_db=db) for each, db in zip(FORECASTS, (74, 56, 31.6, 25.7, 31.9, 19.6), strict=True)
    )
    choice = choose_format(machine("B200"), advice(forecasts=noisy), None)
    assert "NVFP4 (rounding noise about 20 dB below the signal)" in choice.reason
    assert why(choice, "FP8").startswith("its range is foretold to fit (rounding noise about 26 dB below the signal)")
    assert "dB" not in why(choice, "BF16")


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


# trained


@pytest.mark.parametrize(
    ("train_with", "found"), [("fp16", "FP16"), ("fp16-plan", "FP16 with FP32 islands"), ("bf16", "BF16")]
)
def test_what_was_trained_comes_before_what_is_foretold(train_with, found):
    run = verified(train_with, **{train_with.replace("-", "_"): "equivalent"})
    # the forecasts say otherwise, and do not count
    choice = choose_format(machine("A100"), advice(forecasts=(forecast("BF16", losing=9),)), run)
    assert (choice.chosen, choice.verified) == (found, True)
    assert choice.reason == "trained here and keeps up with FP32"


def test_emulated_training_says_so():
    run = verified("fp16", emulated=True, fp16="equivalent")
    assert chosen(None, run=run).reason == "trained here, emulated, and keeps up with FP32"


def test_fp16_that_trains_but_has_an_error_says_what_to_mend():
    run = verified("fp16", fp16="equivalent")
    choice = choose_format(machine("A100"), advice(MP101), run)
    assert choice.reason == "trained here and keeps up with FP32; MP101 to be mended first"


def test_bf16_without_tensor_cores_saves_memory_alone():
    run = verified("bf16", bf16="equivalent", fp16="worse")
    reason = chosen("V100", run=run).reason
    assert "Tesla V100-SXM2-16GB has no tensor cores for it, so it saves memory, not time" in reason


def test_what_fell_behind_is_not_chosen_though_foretold_to_fit():
    run = verified(None, fp16="worse", bf16="inconclusive")
    choice = chosen("A100", run=run)
    assert (choice.chosen, choice.verified) == ("BF16", False)
    assert choice.reason.startswith("FP16 falls behind FP32 here; BF16")
    assert choice.reason.endswith(", here undecided")
    assert why(choice, "FP16") == "trained here, falls behind FP32"
    assert why(choice, "BF16") == "trained here, undecided"


def test_where_everything_fell_behind_tf32_is_left():
    assert chosen("A100", run=verified(None, fp16="worse", bf16="worse")).chosen == "TF32"
    assert chosen("V100", run=verified(None, fp16="worse", bf16="worse")).chosen == "FP32"


def test_an_undecided_run_leaves_the_forecast():
    choice = chosen("A100", run=verified(None, fp16="inconclusive"))
    assert (choice.chosen, choice.verified) == ("FP16", False)
    assert choice.reason.endswith("loss scale 2^14, here undecided")


def test_an_undecided_bf16_says_nothing_of_an_fp16_that_was_not_trained():
    assert chosen("A100", run=verified(None, bf16="inconclusive")).reason.endswith("loss scale 2^14, not trained here")


def test_fp16_that_keeps_up_where_nothing_trains_was_trained_here():
    assert chosen("A100", run=verified(None, fp16="equivalent")).reason.endswith("2^14, keeps up with FP32 here")


def test_shown_not_to_be_worse_is_enough():
    inconclusive = samples.comparison("fp16", verdict="inconclusive", test=PairedTest("m", noninferior=True))
    run = Verification((), (inconclusive,), None, "", train_with="fp16")
    assert why(chosen("A100", run=run), "FP16") == "trained here, keeps up with FP32"


def test_what_was_not_measured_was_not_trained():
    run = verified(None, bf16="not-measured")
    assert why(chosen("A100", run=run), "BF16") == "its range is foretold to fit, not trained here"


# where it is said


def test_every_stage_of_a_scan_chooses_anew():
    draft = Draft(replace(samples.full(), advice=None, verification=None), lambda diagnosis: None)
    draft.update(advice=advice())
    first = draft.diagnosis.advice.format_choice
    draft.update(verification=verified("bf16", bf16="equivalent", fp16="worse"))
    assert (first.chosen, first.verified) == ("FP16", False)
    second = draft.diagnosis.advice.format_choice
    assert (second.chosen, second.verified) == ("BF16", True)


def test_without_advice_there_is_nothing_to_choose():
    bare = replace(samples.minimal(), advice=None)
    assert with_format_choice(bare) is bare


def test_the_screen_has_one_line():
    diagnosis = with_format_choice(samples.full())
    lines = [text for topic, text in digest_of(diagnosis).why if topic == "format"]
    choice = diagnosis.advice.format_choice
    assert lines == [f"{choice.chosen}: {choice.reason}"]
    assert [t for t, _ in digest_of(samples.full()).why if t == "format"] == []


def test_the_page_says_which_and_why_not_the_others():
    diagnosis = samples.full()
    hostile = replace(advice(), format_choice=replace(chosen("H100"), reason="because <b>"))
    page = html.render(replace(diagnosis, advice=hostile), plotly="none")
    section = page[page.index('<section id="other-formats">') :].split("</section>")[0]
    assert "<b>FP16</b>: because &lt;b&gt;." in section
    assert re.findall(r"<dt>(\w+)</dt>", section) == ["FP16", "BF16", "TF32", "FP8", "MXFP8", "NVFP4"]


def test_a_page_without_forecasts_or_choice_has_no_such_section():
    assert 'id="other-formats"' not in html.render(samples.minimal(), plotly="none")
