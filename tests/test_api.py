"""`mpdiag.scan` and `mpdiag.load`: what a Diagnosis holds, what options change, what is left after a failure."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mpdiag
from mpdiag import Diagnosis, ScanOptions
from mpdiag.errors import InterruptedScanError, MpdiagError, UsageError, UserCodeError
from mpdiag.saved import to_json

TARGETS = Path(__file__).parent / "targets"
SMALL = ScanOptions(device="cpu", steps=3, verify_steps=5, seeds=1)
CAPTURE_ONLY = dataclasses.replace(SMALL, verify=False)

JOB = """
import random

import numpy as np
import torch
from torch import nn

def build_model():
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

def train_batches():
    while True:
        yield torch.randn(8, 3) + random.random() + np.random.rand()

def compute_loss(model, batch):
    return model(batch).pow(2).mean()
"""
METRIC = "def evaluate(model):\n    return {'error': 0.25, 'score': 3}\nHIGHER_IS_BETTER = False\n"
FAILING = JOB.replace(
    "    return model(batch)", "    CALLS[0] += 1\n    if CALLS[0] == AT:\n        WHAT\n    return model(batch)"
)
# the calls of the loss: 1 to 6 are the self-test's, 7 is the FP16 iteration's, then the capture's three

KINDS = {"activation", "activation_gradient", "weight", "weight_gradient", "weight_update"}
KEYS = {
    "": "schema_version created command environment target capture advice verification reason elapsed_seconds",
    "environment": "python torch cuda driver gpu compute_capability mpdiag",
    "target": "name source parameters synthetic_data",
    "capture": "precision steps seed unchanged tables reason",
    "capture.tables.*": "name module_type kind dtype amp_dtype elements steps abs_max source histogram",
    "capture.tables.*.histogram": "lowest counts zeros infs nans",
    "advice": "loss_scale findings keep_fp32",
    "advice.loss_scale": "log2_scale mode lower_log2 upper_log2 limited_by underflow_before underflow_after snippet",
    "advice.findings.*": "code name severity subject message evidence remedy snippet",
    "verification": "verdict reason trials comparisons prediction",
    "verification.trials.*": "arm precision emulated seed losses metric skipped_steps final_log2_scale "
    "peak_memory_bytes step_time_ms tensor_core energy_joules_per_sample",
    "verification.comparisons.*": "quantity unit baseline candidate interval verdict",
}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a target file and gives its path; what importing it changes is undone."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def writing(text: str, name: str = "job.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    yield writing
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def failing(at: int, what: str) -> str:
    return FAILING.replace("AT:", f"{at}:").replace("WHAT", what).replace("def build", "CALLS = [0]\n\ndef build", 1)


def at(record: Any, path: str) -> list[Any]:
    """The records at a dotted path; `*` stands for every item of a list."""
    found = [record]
    for step in path.split(".") if path else []:
        found = [inner for outer in found for inner in (outer if step == "*" else [outer[step]])]
    return found


# what a diagnosis holds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    path = tmp_path_factory.mktemp("whole") / "job.py"
    path.write_text(JOB + METRIC, encoding="utf-8")
    return mpdiag.scan(str(path), SMALL)


@pytest.mark.parametrize("path", KEYS)
def test_every_promised_key_is_in_the_json(whole, path):
    records = at(json.loads(to_json(whole)), path)
    assert records or path == "advice.findings.*"
    for record in records:
        assert set(KEYS[path].split()) <= record.keys()


def test_a_trials_nulls_have_their_reasons(whole):
    for trial in json.loads(to_json(whole))["verification"]["trials"]:
        for key in KEYS["verification.trials.*"].split():
            if trial[key] is None:
                assert trial["not_measured"].get(key), (trial["arm"], key)


def test_a_comparisons_nulls_have_their_reason(whole):
    for comparison in json.loads(to_json(whole))["verification"]["comparisons"]:
        if comparison["interval"] is None:
            assert comparison["reason"], comparison
        assert comparison["verdict"] in ("equivalent", "better", "worse", "inconclusive", "not-measured")


def test_a_part_that_was_not_done_is_null_with_a_reason(write):
    record = json.loads(to_json(mpdiag.scan(write(JOB), CAPTURE_ONLY)))
    assert record["verification"] is None
    assert record["reason"], "verification is null, and nothing says why"


def test_a_prediction_that_is_null_says_why(whole):
    record = json.loads(to_json(whole))["verification"]
    assert record["prediction"] is not None or record["prediction_reason"]


def test_a_gpus_keys_are_null_on_a_cpu(whole):
    environment = whole.environment
    assert (environment.gpu, environment.driver, environment.compute_capability) == (None, None, None)
    assert environment.mpdiag == mpdiag.__version__
    assert environment.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_the_target_is_described(whole):
    target = whole.target
    assert target is not None
    assert (target.name, target.parameters, target.samples_per_step) == ("job", 3 * 4 + 4 + 4 + 1, 8)
    assert target.source.endswith("job.py")
    assert target.optimizer == "AdamW(lr=0.001)"
    assert any("AdamW" in note for note in target.notes)
    assert (target.synthetic_data, target.higher_is_better) == (False, False)


def test_the_capture_sees_every_kind_of_every_layer(whole):
    capture = whole.capture
    assert capture is not None
    assert (capture.steps, len(capture.losses), capture.seed, capture.device) == (3, 3, 0, "cpu")
    assert capture.unchanged is True
    assert {str(t.kind) for t in capture.tables} == KINDS
    seen = {(t.name, str(t.kind)): t for t in capture.tables}
    weight = seen["0.weight", "weight_gradient"]
    assert (weight.elements, weight.steps, weight.module_type, weight.dtype) == (12, 3, "Linear", "float32")
    assert weight.histogram.total == 36
    activation = seen["0", "activation"]
    assert (activation.elements, activation.amp_dtype) == (8 * 4, "float16")
    assert activation.source is not None
    assert activation.source.rpartition(":")[0].endswith("job.py")


def test_shares_are_fractions_and_exponents_are_integers(whole):
    assert whole.advice is not None
    scale = whole.advice.loss_scale
    for share in (scale.underflow_before, scale.underflow_after):
        assert share is None or 0 <= share <= 1
    for exponent in (scale.lower_log2, scale.upper_log2):
        assert isinstance(exponent, int)


def test_both_arms_and_their_controls_are_run(whole):
    assert whole.verification is not None
    trials = {t.arm: t for t in whole.verification.trials}
    assert {"fp32", "fp16", "bf16", "fp16-pure"} <= trials.keys()
    assert not trials["fp32"].emulated
    assert trials["fp16"].emulated
    assert all(len(t.losses) == 5 for t in trials.values() if t.error is None)


def test_a_metric_dict_is_kept_by_name_and_compared(whole):
    assert whole.verification is not None
    for trial in whole.verification.trials:
        if trial.error is None:
            assert trial.metric == {"error": 0.25, "score": 3.0}
    quantities = {c.quantity for c in whole.verification.comparisons if c.candidate == "fp16"}
    assert {"loss", "error", "score"} <= quantities


def test_each_stages_time_is_kept(whole):
    assert {"load", "selftest", "capture", "verify"} <= whole.elapsed_seconds.keys()
    assert all(seconds >= 0 for seconds in whole.elapsed_seconds.values())


# options


def seen(diagnosis: Diagnosis) -> tuple[Any, Any]:
    """What a seed decides: the counts and the losses, without paths and clocks."""
    assert diagnosis.capture is not None
    return diagnosis.capture.tables, diagnosis.capture.losses


def trained(diagnosis: Diagnosis) -> dict[tuple[str, int], tuple[float, ...]]:
    assert diagnosis.verification is not None
    return {(t.arm, t.seed): t.losses for t in diagnosis.verification.trials}


def test_the_same_seed_gives_the_same_bits(write):
    path = write(JOB)
    one, other = mpdiag.scan(path, SMALL), mpdiag.scan(path, SMALL)
    assert seen(one) == seen(other)
    assert one.advice == other.advice
    assert trained(one) == trained(other)


def test_another_seed_gives_another_run(write):
    path = write(JOB)
    one, other = (mpdiag.scan(path, dataclasses.replace(CAPTURE_ONLY, seed=seed)) for seed in (0, 1))
    assert one.capture is not None
    assert other.capture is not None
    assert one.capture.losses != other.capture.losses
    assert seen(one)[0] != seen(other)[0]
    assert other.capture.seed == 1


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_as_many_steps_are_observed_as_were_asked_for(write, steps):
    capture = mpdiag.scan(write(JOB), dataclasses.replace(CAPTURE_ONLY, steps=steps)).capture
    assert capture is not None
    assert (capture.steps, len(capture.losses)) == (steps, steps)
    assert {t.steps for t in capture.tables} == {steps}


def test_the_capture_trains_as_the_fp32_arm_does(write):
    diagnosis = mpdiag.scan(write(JOB), SMALL)
    assert diagnosis.capture is not None
    assert trained(diagnosis)["fp32", 0][:3] == diagnosis.capture.losses


def test_the_capture_does_not_depend_on_whether_it_is_verified(write):
    path = write(JOB)
    assert seen(mpdiag.scan(path, SMALL)) == seen(mpdiag.scan(path, CAPTURE_ONLY))


def test_several_seeds_are_paired_and_all_different(write):
    diagnosis = mpdiag.scan(write(JOB), dataclasses.replace(SMALL, seed=5, seeds=3, time_budget_seconds=600))
    losses = trained(diagnosis)
    assert {seed for _, seed in losses} == {5, 6, 7}
    assert len({losses["fp32", seed] for seed in (5, 6, 7)}) == 3
    assert diagnosis.verification is not None
    loss = next(c for c in diagnosis.verification.comparisons if (c.candidate, c.quantity) == ("fp16", "loss"))
    assert loss.seeds == 3
    assert loss.interval is not None
    assert loss.interval[0] <= loss.interval[1]


def test_a_seed_trains_the_same_wherever_it_stands_among_others(write):
    path = write(JOB)
    several = trained(mpdiag.scan(path, dataclasses.replace(SMALL, seed=0, seeds=2, time_budget_seconds=600)))
    alone = trained(mpdiag.scan(path, dataclasses.replace(SMALL, seed=1)))
    assert several["fp32", 1] == alone["fp32", 1]


def test_a_small_time_budget_is_kept_and_what_is_cut_is_named(write):
    slow = JOB.replace("    return model(batch)", "    import time\n    time.sleep(0.005)\n    return model(batch)")
    options = dataclasses.replace(SMALL, verify_steps=1000, seeds=5, time_budget_seconds=0.5)
    diagnosis = mpdiag.scan(write(slow), options)
    assert diagnosis.verification is not None
    assert diagnosis.verification.cut
    assert any("time budget" in sentence for sentence in diagnosis.verification.cut)
    assert diagnosis.elapsed_seconds["verify"] < 5


def test_include_and_exclude_are_honoured(write):
    options = dataclasses.replace(CAPTURE_ONLY, include=("0*", "2*"), exclude=("*.bias",))
    capture = mpdiag.scan(write(JOB), options).capture
    assert capture is not None
    assert {t.name for t in capture.tables} == {"0", "2", "0.weight", "2.weight"}


def test_a_scan_leaves_the_callers_settings_as_they_were(write):
    import torch

    torch.manual_seed(3)
    state = torch.get_rng_state()
    path = list(sys.path)
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    mpdiag.scan(write(JOB), SMALL)
    assert (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()) == (grad, dtype, threads)
    assert not torch.is_autocast_enabled("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    assert len(sys.path) <= len(path) + 1
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state was changed"


def test_several_optimizers_are_each_stepped():
    diagnosis = mpdiag.scan(str(TARGETS / "gan.py"), dataclasses.replace(SMALL, verify_steps=3))
    assert diagnosis.target is not None
    assert diagnosis.target.optimizer.count("Adam(lr=0.0002)") == 2
    assert diagnosis.capture is not None
    assert diagnosis.capture.unchanged is True
    moved = {t.name.split(".")[0] for t in diagnosis.capture.tables if t.kind == "weight_update"}
    assert moved == {"generator", "discriminator"}
    assert all(len(losses) == 3 for (arm, _), losses in trained(diagnosis).items() if arm in ("fp32", "fp16", "bf16"))


# what is said on the way


def test_a_checkpoint_comes_after_each_stage_and_only_grows(write):
    kept: list[Diagnosis] = []
    last = mpdiag.scan(write(JOB), SMALL, checkpoint=kept.append)
    parts = [
        tuple(getattr(d, part) is not None for part in ("target", "capture", "advice", "verification")) for d in kept
    ]
    assert parts == [
        (True, False, False, False),
        (True, True, False, False),
        (True, True, True, False),
        (True, True, True, True),
    ]
    assert kept[-1].verification == last.verification


def test_each_stage_is_reported_in_one_line(write):
    lines: list[str] = []
    mpdiag.scan(write(JOB), SMALL, report=lines.append)
    assert lines[0].startswith("load ")
    assert any("capture 3 FP32 steps" in line for line in lines)
    assert any(line.startswith("verify fp16") for line in lines)
    assert not any("\n" in line for line in lines)


def test_the_command_is_kept_and_has_a_default(write):
    path = write(JOB)
    told = "device='cpu', verify=False, verify_steps=5, seeds=1"
    assert mpdiag.scan(path, CAPTURE_ONLY, steps=2).command == f"mpdiag.scan({path!r}, steps=2, {told})"
    assert mpdiag.scan(path, CAPTURE_ONLY, command="mine").command == "mine"


# failures


def test_what_was_seen_before_a_failure_is_with_the_error(write):
    with pytest.raises(UserCodeError) as caught:
        mpdiag.scan(write(failing(10, "raise ValueError('mine')")), SMALL)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert (diagnosis.capture.steps, diagnosis.capture.reason) == (1, "the capture ended early")
    assert diagnosis.advice is not None
    assert diagnosis.verification is None
    assert diagnosis.reason is not None
    assert "ValueError" in diagnosis.reason
    assert isinstance(caught.value.__cause__, ValueError)
    assert json.loads(to_json(diagnosis))["capture"]["steps"] == 1


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_caller_without_gradients_gets_the_same_scan_and_keeps_its_mode(write, mode):
    import torch

    path = write(JOB)
    with getattr(torch, mode)():
        diagnosis = mpdiag.scan(path, SMALL)
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() == (mode == "inference_mode")
        with pytest.raises(MpdiagError):
            mpdiag.scan(write("import nothing_of_this_name\n"), SMALL)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert diagnosis.capture is not None
    assert diagnosis.verification is not None
    assert diagnosis.capture == mpdiag.scan(write(JOB), SMALL).capture


def test_ctrl_c_is_an_error_that_holds_what_was_seen(write):
    with pytest.raises(InterruptedScanError) as caught:
        mpdiag.scan(write(failing(11, "raise KeyboardInterrupt")), SMALL)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 2


def test_ctrl_c_in_the_verification_keeps_the_trials_that_ended(write):
    lines: list[str] = []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line.startswith("verify bf16"):
            raise KeyboardInterrupt

    with pytest.raises(InterruptedScanError) as caught:
        mpdiag.scan(write(JOB), SMALL, report=interrupt)
    diagnosis = caught.value.diagnosis
    assert diagnosis is not None
    assert diagnosis.verification is not None
    assert diagnosis.verification.verdict == "inconclusive"
    assert {"fp32", "fp16"} <= {t.arm for t in diagnosis.verification.trials}
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


def test_what_fails_before_there_is_a_target_holds_nothing(write, tmp_path):
    for path in (str(tmp_path / "nowhere.py"), write("import nothing_of_this_name\n")):
        with pytest.raises(MpdiagError) as caught:
            mpdiag.scan(path, SMALL)
        assert caught.value.diagnosis is None


def test_an_optimizer_function_that_raises_is_the_users_error(write):
    text = JOB + "def build_optimizer(model):\n    raise ValueError('mine')\n"
    with pytest.raises(UserCodeError) as caught:
        mpdiag.scan(write(text), SMALL)
    assert "mine" in caught.value.traceback


def test_a_failure_of_mpdiag_itself_still_leaves_what_was_seen(write, monkeypatch):
    import mpdiag.verify.run

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(mpdiag.verify.run.VerificationRun, "run", broken)
    with pytest.raises(MpdiagError) as caught:
        mpdiag.scan(write(JOB), SMALL)
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.capture is not None
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"steps": -3}, {"seed": -1}, {"seeds": 0}, {"verify_steps": 0}, {"time_budget_seconds": 0.0},
     {"time_budget_seconds": float("nan")}, {"device": "tpu"}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(write, bad):
    with pytest.raises(UsageError):
        mpdiag.scan(write(JOB), dataclasses.replace(SMALL, **bad))


# jobs that are not what they seem


def outcome(path: str, options: ScanOptions) -> tuple[Diagnosis | None, str]:
    """The diagnosis, whole or partial, and what the error said, if there was one; only MpdiagError may be raised."""
    try:
        return mpdiag.scan(path, options), ""
    except MpdiagError as error:
        return error.diagnosis, f"{error.slug}: {error.message} {error.hint}"


def test_a_metric_that_fails_in_fp32_too_is_no_verdict_on_fp16(write):
    diagnosis, _ = outcome(write(JOB + "def evaluate(model):\n    raise ValueError('mine')\n"), SMALL)
    assert diagnosis is not None
    assert diagnosis.capture is not None
    assert diagnosis.verification is None or diagnosis.verification.verdict in (None, "inconclusive")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_model_that_is_not_fp32_is_not_called_fp32(write, dtype):
    text = JOB.replace("nn.Linear(4, 1))", f"nn.Linear(4, 1)).to(torch.{dtype})")
    text = text.replace("    return model(batch)", f"    batch = batch.to(torch.{dtype})\n    return model(batch)")
    diagnosis, said = outcome(write(text), CAPTURE_ONLY)
    if diagnosis is not None and diagnosis.capture is not None and diagnosis.target is not None:
        assert {t.dtype for t in diagnosis.capture.tables if t.kind == "weight"} == {dtype}
        findings = diagnosis.advice.findings if diagnosis.advice else ()
        said += " ".join([diagnosis.capture.precision, *diagnosis.target.notes, *(f.message for f in findings)])
    assert dtype in said  # refusing it by name is an answer too


def test_an_optimizer_that_moves_nothing_of_the_model_is_not_a_go(write):
    text = JOB + "OTHER = nn.Linear(1, 1)\n\n"
    text += "def build_optimizer(model):\n    return torch.optim.SGD(OTHER.parameters(), 0.1)\n"
    options = dataclasses.replace(SMALL, seeds=3, verify_steps=10, time_budget_seconds=600)
    diagnosis, said = outcome(write(text), options)
    if diagnosis is not None and diagnosis.verification is not None:
        assert diagnosis.verification.verdict != "go", "nothing was trained"
    else:
        assert "optimizer" in said


def test_a_module_run_in_inference_mode_inside_the_job_is_no_error(write):
    inside = "    with torch.inference_mode():\n        model[0](batch)\n    return model(batch)"
    diagnosis = mpdiag.scan(write(JOB.replace("    return model(batch)", inside)), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


def test_a_loss_that_writes_into_its_numpy_batch_does_not_change_the_next_run(write):
    text = JOB.replace("yield torch.randn(8, 3) + random.random() + np.random.rand()", "yield np.random.rand(8, 3)")
    text = text.replace("return model(batch)", "batch *= 1.5\n    return model(torch.from_numpy(batch).float())")
    diagnosis = mpdiag.scan(write(text), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.selftest.control == 0.0
    assert diagnosis.capture.unchanged is True


HOLDS_ITSELF = """
class Output:
    def __init__(self, value):
        self.value, self.all = value, [self]

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build_inner()

    def forward(self, x):
        return Output(self.inner(x))

def build_model():
    return Wrapped()
"""


def test_a_module_that_returns_an_object_which_holds_itself_is_no_error(write):
    text = JOB.replace("build_model", "build_inner").replace("model(batch)", "model(batch).value") + HOLDS_ITSELF
    diagnosis = mpdiag.scan(write(text), CAPTURE_ONLY)
    assert diagnosis.capture is not None
    assert diagnosis.capture.steps == 3


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_scripted_model_is_scanned_or_refused_by_name(write):
    text = (
        JOB.replace("build_model", "build_inner") + "def build_model():\n    return torch.jit.script(build_inner())\n"
    )
    diagnosis, said = outcome(write(text), CAPTURE_ONLY)
    assert "script" in said.lower() or (diagnosis is not None and diagnosis.capture is not None)


# saved and read back


def test_a_saved_diagnosis_is_read_back_as_it_was(whole, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(to_json(whole), encoding="utf-8")
    for asked in (path, str(path)):
        assert mpdiag.load(asked) == whole


def test_a_diagnosis_that_was_read_is_saved_to_the_same_bytes(tmp_path, write):
    overflowing = JOB.replace("np.random.rand()", "1e6")
    text = to_json(mpdiag.scan(write(overflowing), SMALL))
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    assert json.loads(text)["advice"]["findings"]
    assert to_json(mpdiag.load(path)) == text


@pytest.mark.parametrize(
    ("text", "slug"),
    [("", "not-a-diagnosis"), ("{}", "not-a-diagnosis"), ('{"schema_version": 2}', "schema-version")],
)
def test_what_is_no_diagnosis_is_refused(tmp_path, text, slug):
    path = tmp_path / "run.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        mpdiag.load(path)
    assert caught.value.slug == slug


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError) as caught:
        mpdiag.load(tmp_path / "nowhere.json")
    assert caught.value.slug == "no-such-file"


# what Python is given


def test_an_option_that_is_none_gets_the_one_meant(write):
    for call in (mpdiag.scan, mpdiag.verify_saved):
        subject = write(JOB) if call is mpdiag.scan else mpdiag.scan(write(JOB), CAPTURE_ONLY)
        with pytest.raises(UsageError) as caught:
            call(subject, stepz=3)
        assert (caught.value.slug, caught.value.message) == ("bad-option", "there is no option stepz")
        assert caught.value.hint.startswith("did you mean steps? they are steps, seed, device,")


def test_a_diagnosis_shows_itself_in_a_line_and_a_notebook(write):
    path = write(JOB)
    captured = mpdiag.scan(path, CAPTURE_ONLY)
    assert repr(captured) == f"<Diagnosis of {path}: not verified, train in {captured.train_in}>"
    full = dataclasses.replace(captured, reason="a < b")
    page = full._repr_html_()
    assert f"<b>Diagnosis of {path}: not verified" in page
    assert "<p>a &lt; b</p>" in page
    assert "backward()" in page


def test_a_diagnosis_is_saved_and_printed_from_python(write, tmp_path):
    whole = mpdiag.scan(write(JOB), CAPTURE_ONLY)
    mpdiag.save(whole, tmp_path / "run.json")
    mpdiag.save(whole, tmp_path / "run.html")
    assert mpdiag.load(tmp_path / "run.json") == whole
    assert "<html" in (tmp_path / "run.html").read_text()
    assert "VERDICT" in mpdiag.text(whole)
    assert mpdiag.text(tmp_path / "run.json") == mpdiag.text(whole)
    assert len(mpdiag.frame(tmp_path / "run.json")) == len(whole.capture.tables)


# the namespace


def test_the_namespace_is_lazy():
    code = """
        import sys
        import mpdiag
        assert 'torch' not in sys.modules and 'mpdiag.api' not in sys.modules
        assert mpdiag.__version__ and set(mpdiag.__all__) >= {'scan', 'load', 'ScanOptions', 'Diagnosis'}
        mpdiag.Diagnosis, mpdiag.load, mpdiag.scan, mpdiag.ScanOptions()
        from mpdiag import *
        assert 'torch' not in sys.modules, 'a name brought torch in'
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_here"):
        mpdiag.nothing_here  # noqa: B018 # asking is the test


def test_every_public_name_is_there():
    for name in mpdiag.__all__:
        assert getattr(mpdiag, name) is not None


# what the target changes for all


def test_a_default_dtype_that_a_run_sets_is_noted_and_does_not_reach_the_caller(write):
    sets = "def evaluate(model):\n    torch.set_default_dtype(torch.float64)\n    return 1.0\n"
    found = mpdiag.scan(write(JOB + sets), SMALL)
    assert torch.get_default_dtype() == torch.float32
    assert any("sets torch's default dtype to torch.float64" in note for note in found.target.notes)


def test_every_model_is_built_in_the_same_default_dtype(write, capsys):
    sets = "def evaluate(model):\n    torch.set_default_dtype(torch.float64)\n    return 1.0\n"
    says = "    print('built in', torch.get_default_dtype())\n    return nn.Seq"
    mpdiag.scan(write((JOB + sets).replace("    return nn.Seq", says)), SMALL)
    built = [line for line in capsys.readouterr().out.splitlines() if line.startswith("built in")]
    assert len(built) > 5
    assert set(built) == {"built in torch.float32"}


def test_a_default_dtype_that_building_the_model_sets_is_every_runs(write):
    sets = "    torch.set_default_dtype(torch.float64)\n    return nn.Seq"
    found = mpdiag.scan(write(JOB.replace("    return nn.Seq", sets)), SMALL)
    assert torch.get_default_dtype() == torch.float32, "the caller's"
    assert not any("default dtype" in note for note in found.target.notes)
    assert {table.dtype for table in found.capture.tables} == {"float64"}


# what ended a scan


@pytest.mark.parametrize(
    ("at", "what", "hint"),
    [
        (9, "return model(batch).sum() * float('inf')", "mend the FP32 job first"),
        (9, "raise ValueError('third')", "which raises, and scan again: ValueError while computing the loss: third"),
    ],
)
def test_what_to_mend_is_kept_with_the_reason_and_is_the_next_step(write, at, what, hint):
    with pytest.raises(MpdiagError) as raised:
        mpdiag.scan(write(failing(at, what)), SMALL)
    diagnosis = raised.value.diagnosis
    assert hint in diagnosis.hint
    assert "autocast" not in mpdiag.text(diagnosis).partition("NEXT")[2].partition("NOT DONE")[0]


def test_who_stops_a_scan_has_nothing_to_mend(write):
    with pytest.raises(InterruptedScanError) as raised:
        mpdiag.scan(write(failing(9, "raise KeyboardInterrupt")), SMALL)
    assert raised.value.diagnosis.hint is None
