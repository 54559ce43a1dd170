"""Finishing a saved scan: the same job, seed, scale and islands; what changed since is said, another model refused."""

import json

import pytest
from click.testing import CliRunner

import mpdiag
from mpdiag import settings
from mpdiag.cli.verify import verify
from mpdiag.diagnosis import Asked
from mpdiag.errors import MpdiagError, UsageError
from mpdiag.finish import verify_saved

MODEL = """
import torch
WIDTH = {width}
def build_model():
    return torch.nn.Sequential(torch.nn.Linear(8, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))
def build_optimizer(model):
    return torch.optim.SGD(model.parameters(), lr={lr})
def train_batches():
    return [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(4)]
def compute_loss(model, batch):
    return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.fixture
def target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.py"
    path.write_text(MODEL.format(width=4, lr=0.1))
    return path


def scanned(**options):
    return mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify=False, **options)


def test_a_scan_without_verification_is_finished_with_its_own_seed(target):
    saved = scanned()
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=2)
    assert {trial.seed for trial in found.verification.trials} == {5, 6}
    assert found.capture == saved.capture
    assert found.advice.loss_scale == saved.advice.loss_scale
    assert found.reason is None


def test_without_other_words_it_has_the_seeds_and_steps_of_the_scan(target):
    saved = scanned(verify_steps=6, seeds=2)
    found = verify_saved(saved, device="cpu")
    assert {(trial.seed, trial.steps) for trial in found.verification.trials} == {(5, 6), (6, 6)}
    assert found.asked == saved.asked == Asked(verify_steps=6, seeds=2)
    other = verify_saved(saved, device="cpu", seeds=1)
    assert {(trial.seed, trial.steps) for trial in other.verification.trials} == {(5, 6)}
    assert other.asked == Asked(verify_steps=6, seeds=1)


def test_the_command_too_has_the_seeds_and_steps_of_the_scan(target):
    from mpdiag.saved import to_json

    target.with_name("run.json").write_text(to_json(scanned(verify_steps=6, seeds=2)))
    CliRunner().invoke(verify, ["run.json", "--device", "cpu"])
    trials = json.loads(target.with_name("run.json").read_text())["verification"]["trials"]
    assert {(trial["seed"], trial["steps"]) for trial in trials} == {(5, 6), (6, 6)}


def test_a_run_of_before_this_was_saved_has_the_defaults(target):
    from dataclasses import replace

    found = verify_saved(replace(scanned(), asked=None), device="cpu", time_budget_seconds=600.0)
    assert found.asked == Asked(settings.VERIFY_STEPS, settings.SEEDS)


def test_other_data_is_said(target):
    saved = scanned(verify_steps=6, seeds=1)
    text = MODEL.format(width=4, lr=0.1)
    target.write_text(text.replace("torch.randn(16, 8)", "torch.randn(16, 8) * 2"))
    found = verify_saved(saved, device="cpu")
    assert "since the scan: the first batch has changed" in found.target.notes
    target.write_text(text + "# another comment")
    found = verify_saved(saved, device="cpu")
    assert "since the scan: the target file has changed" in found.target.notes
    assert not any("first batch" in note for note in found.target.notes)


@pytest.mark.parametrize(("at", "said"), [((20,), False), ((20, 30), False), ((0, 20), True), ((0,), True)])
def test_first_losses_are_compared_only_where_both_were_seen(target, at, said):
    from mpdiag.arm_names import BASELINE

    saved = scanned(at=at)
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=1)
    assert any(trial.arm == BASELINE for trial in found.verification.trials)
    repeats = "the target gives 4 batches, repeated in the same order"  # of the runs, where the capture was shorter
    expected = dict.fromkeys((*saved.target.notes, repeats))
    assert found.target.notes == tuple(expected), "nothing has changed"
    text = MODEL.format(width=4, lr=0.1).replace("torch.randn(16, 8)", "torch.randn(16, 8) * 2")
    target.write_text(text)
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=1)
    assert any("first loss was" in note for note in found.target.notes) == said


def test_a_capture_that_began_late_is_predicted_over_as_many_steps(target, monkeypatch):
    from mpdiag.verify.run import VerificationRun

    asked = []
    predict = VerificationRun.predict

    def noted(self, capture, seed, steps, *rest):
        asked.append(steps)
        predict(self, capture, seed, steps, *rest)

    monkeypatch.setattr(VerificationRun, "predict", noted)
    monkeypatch.setattr("mpdiag.api.PREDICTION_STEPS", 1000)
    saved = scanned(at=(4,), skip=1)
    assert (saved.capture.first_step, saved.capture.last_step, saved.capture.steps) == (4, 8, 3)
    verify_saved(saved, device="cpu", verify_steps=2, seeds=1)
    verify_saved(scanned(at=(4,)), device="cpu", verify_steps=2, seeds=1)
    assert asked == [9, 7]


def test_it_trains_whatever_gradient_mode_the_caller_is_in(target):
    import torch

    saved = scanned()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = verify_saved(saved, device="cpu", verify_steps=3, seeds=1)
        assert found.verification.trials
        assert found.target.notes == saved.target.notes


def test_it_gives_what_the_whole_scan_would_have_given(target):
    whole = mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify_steps=6, seeds=2)
    found = verify_saved(scanned(), device="cpu", verify_steps=6, seeds=2)
    assert found.verification.trials == whole.verification.trials
    assert found.verification.prediction == whole.verification.prediction


def test_the_command_writes_into_the_run_and_draws_its_page(target):
    from mpdiag.saved import to_json

    target.with_name("run.json").write_text(to_json(scanned()))
    result = CliRunner().invoke(verify, ["run.json", "--device", "cpu", "--verify-steps", "6", "--seeds", "2"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert json.loads(target.with_name("run.json").read_text())["verification"]["trials"]
    assert "<html" in target.with_name("run.html").read_text()


def test_the_command_keeps_an_earlier_verification_beside(target):
    from mpdiag.saved import to_json

    run = target.with_name("run.json")
    run.write_text(to_json(scanned(verify_steps=5, seeds=1)))
    asked = ["run.json", "--device", "cpu", "--plotly", "none"]
    CliRunner().invoke(verify, asked)
    assert not list(target.parent.glob("*before-verify*")), "there was no verification before"
    texts = []
    for name in ("run.before-verify.json", "run.before-verify-1.json"):
        texts.append(run.read_text())
        told = CliRunner().invoke(verify, [*asked, "--seeds", str(len(texts) + 1)]).stderr
        assert f"the earlier verification is kept: {name}" in told
        assert target.with_name(name).read_text() == texts[-1]
    target.write_text("raise ValueError('later')")
    CliRunner().invoke(verify, asked)
    assert len(list(target.parent.glob("*before-verify*"))) == 2, "a verification that could not begin replaces nothing"


def test_another_json_leaves_the_run_as_it_was(target):
    from mpdiag.saved import to_json

    before = to_json(scanned())
    target.with_name("run.json").write_text(before)
    options = ["run.json", "--device", "cpu", "--verify-steps", "6", "--seeds", "2", "--json", "other.json"]
    CliRunner().invoke(verify, options)
    assert target.with_name("run.json").read_text() == before
    assert json.loads(target.with_name("other.json").read_text())["verification"]["trials"]


def test_a_model_of_another_size_is_refused(target):
    saved = scanned()
    target.write_text(MODEL.format(width=5, lr=0.1))
    with pytest.raises(UsageError) as raised:
        verify_saved(saved, device="cpu")
    assert raised.value.slug == "target-changed"
    assert "51 parameters" in raised.value.message
    assert "41" in raised.value.message


def test_another_optimizer_is_said(target):
    saved = scanned()
    target.write_text(MODEL.format(width=4, lr=0.2))
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=2)
    assert "since the scan: the optimizer has changed: it was SGD(lr=0.1), now SGD(lr=0.2)" in found.target.notes
    assert "since the scan: the target file has changed" in found.target.notes
    target.write_text(MODEL.format(width=4, lr=0.1))
    again = verify_saved(found, device="cpu", verify_steps=6, seeds=2)
    assert not any(note.startswith("since the scan") for note in again.target.notes)


def test_other_modules_of_the_same_size_are_refused(target):
    saved = scanned()
    target.write_text(MODEL.format(width=4, lr=0.1).replace("ReLU", "Tanh"))
    with pytest.raises(UsageError) as raised:
        verify_saved(saved, device="cpu")
    assert raised.value.slug == "target-changed"


def test_another_loss_is_said_by_its_first_value(target):
    saved = scanned()
    target.write_text(MODEL.format(width=4, lr=0.1).replace("** 2).mean()", "** 2).mean() * 1e6"))
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=2)
    assert any("FP32's first loss was" in note for note in found.target.notes)


def test_a_verification_that_cannot_begin_leaves_the_run_as_it_was(target):
    from mpdiag.saved import to_json

    before = to_json(mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify_steps=6, seeds=2))
    run = target.with_name("run.json")
    run.write_text(before)
    target.rename(target.with_name("gone.py"))
    result = CliRunner().invoke(verify, ["run.json", "--device", "cpu"])
    assert isinstance(result.exception, UsageError)
    assert run.read_text() == before


def test_one_that_is_stopped_before_its_first_trial_keeps_the_earlier_one(target, monkeypatch):
    saved = mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify_steps=6, seeds=2)

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpdiag.verify.run.VerificationRun.predict", stop)
    with pytest.raises(MpdiagError) as raised:
        verify_saved(saved, device="cpu")
    assert raised.value.diagnosis.verification == saved.verification
    assert raised.value.diagnosis.environment == saved.environment


def test_one_that_is_stopped_before_anything_is_run_keeps_the_earlier_one(target, monkeypatch):
    saved = mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify_steps=6, seeds=2)

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("mpdiag.finish.verification_stage", stop)  # as it begins, it imports for a second
    with pytest.raises(MpdiagError) as raised:
        verify_saved(saved, device="cpu")
    assert raised.value.diagnosis.verification == saved.verification
    assert raised.value.diagnosis.advice == saved.advice


def test_one_that_is_stopped_just_after_its_last_run_keeps_its_runs(target, monkeypatch):
    from mpdiag.draft import Draft

    def stop(self, stage, parts):
        monkeypatch.undo()
        raise KeyboardInterrupt

    saved = scanned(verify_steps=6, seeds=2)
    monkeypatch.setattr(Draft, "apart", stop)
    with pytest.raises(MpdiagError) as raised:
        verify_saved(saved, device="cpu")
    assert len({trial.seed for trial in raised.value.diagnosis.verification.trials}) == 2


def test_what_an_earlier_verification_found_does_not_judge_this_one(target, monkeypatch):
    from mpdiag.verify.run import VerificationRun

    judged_by = []
    record = VerificationRun.record

    def noted(self, interrupted=False):
        judged_by.extend(f.code for f in self.advice.findings)
        return record(self, interrupted)

    text = MODEL.format(width=4, lr=0.1)
    raising = text.replace("    return ((model", "    raised(model, batch)\n    return ((model") + (
        "CALLS = []\n"
        "def raised(model, batch):\n"
        "    if model(batch[0]).dtype == torch.float16:\n"
        "        CALLS.append(1)\n"
        "        if len(CALLS) > 100: raise TypeError('float32 only')\n"
    )
    target.write_text(raising.replace("> 100", "> 9"))
    saved = mpdiag.scan("model.py", device="cpu", steps=3, seed=5, verify_steps=20, seeds=2)
    assert "MP607" in {f.code for f in saved.advice.findings}
    target.write_text(text)
    monkeypatch.setattr(VerificationRun, "record", noted)
    found = verify_saved(saved, device="cpu")
    assert not any(t.error for t in found.verification.trials)
    assert judged_by
    assert "MP607" not in judged_by
    assert "MP607" not in {f.code for f in found.advice.findings}


def test_what_raised_in_the_capture_is_tried_again_before_it_judges(target):
    text = MODEL.format(width=4, lr=0.1)
    target.write_text(
        text.replace("    return ((model", "    torch.linalg.svdvals(model(batch[0]))\n    return ((model")
    )
    saved = scanned(verify_steps=6, seeds=2)
    assert "MP304" in {f.code for f in saved.advice.findings}
    assert "MP304" in {f.code for f in verify_saved(saved, device="cpu").advice.findings}, "it raises still"
    target.write_text(text)
    found = verify_saved(saved, device="cpu")
    assert "MP304" not in {f.code for f in found.advice.findings}
    assert found.capture == saved.capture


def test_from_another_folder_it_says_where_to_run_it(target, monkeypatch, tmp_path_factory):
    from mpdiag.saved import to_json

    run = target.with_name("run.json")
    run.write_text(to_json(scanned()))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    error = CliRunner().invoke(verify, [str(run), "--device", "cpu"]).exception
    assert error.slug == "target-not-found"
    assert error.hint.startswith("run it from the folder where you scanned")


def test_the_search_of_islands_on_another_machine_is_not_charged_to_this_budget(target):
    from dataclasses import replace

    saved = replace(scanned(), elapsed_seconds={"islands": 1000.0, "capture": 1000.0})
    found = verify_saved(saved, device="cpu", verify_steps=6, seeds=2, time_budget_seconds=60.0)
    assert {trial.steps for trial in found.verification.trials} == {6}


def test_a_run_without_a_capture_cannot_be_verified(target):
    from dataclasses import replace

    with pytest.raises(UsageError) as raised:
        verify_saved(replace(scanned(), capture=None))
    assert raised.value.slug == "nothing-to-verify"


def test_an_attribute_that_was_named_is_found_again(target):
    target.write_text(MODEL.format(width=4, lr=0.1).replace("build_model", "small"))
    saved = mpdiag.scan("model.py:small", device="cpu", steps=3, verify=False)
    assert verify_saved(saved, device="cpu", verify_steps=6, seeds=2).verification.trials
