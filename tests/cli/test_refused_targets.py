"""A target that cannot be had, or does not train: one error line, the right exit code, and what was seen is kept."""

from __future__ import annotations

import pytest

from cli_samples import BATCHES, CAPTURE_ONLY, HEAD, LOSS, MODEL, SMALL, WHOLE, refused, refused_at_once, saved

# the target cannot be had


@pytest.mark.parametrize("target", ["nowhere.py", "nowhere", "nowhere.py:build_model", "no.such.module:model", ""])
def test_a_target_that_is_not_there_is_refused(cli, target):
    refused_at_once(cli("scan", target, *SMALL), "target-not-found")


def test_a_folder_is_refused_and_said_to_be_one(cli, tmp_path):
    result = cli("scan", tmp_path, *SMALL)
    refused_at_once(result, "target-not-found")
    assert "is a folder" in result.error


def test_a_syntax_error_is_refused_with_its_file_and_line(cli, write):
    result = cli("scan", write("import torch\ndef build_model(:\n"), *SMALL)
    refused_at_once(result, "target-syntax")
    assert "job.py:2" in result.error


@pytest.mark.parametrize("text", ["", "x = 1\n", "# nothing\n", HEAD + BATCHES + LOSS])
def test_a_file_without_a_model_is_refused(cli, write, text):
    refused_at_once(cli("scan", write(text), *SMALL), "target-no-model")


def test_a_model_function_that_returns_something_else_is_refused(cli, write):
    text = WHOLE.replace("return nn.Linear(2, 1)", "return {'weights': 1}")
    result = cli("scan", write(text), *SMALL)
    refused(result, "target-no-model", 2)
    assert "dict" in result.error


def test_a_file_without_batches_is_refused(cli, write):
    refused_at_once(cli("scan", write(HEAD + MODEL + LOSS), *SMALL), "target-no-batches")


@pytest.mark.parametrize(
    "batches",
    [
        "def train_batches():\n    return []\n",
        "def train_batches():\n    return\n    yield\n",
        "_used = iter([torch.ones(4, 2)])\nlist(_used)\ntrain_batches = _used\n",
        "def train_batches():\n    return torch.utils.data.DataLoader([], batch_size=4)\n",
    ],
)
def test_batches_that_are_empty_are_refused(cli, write, batches):
    refused(cli("scan", write(HEAD + MODEL + batches + LOSS), *SMALL), "target-empty-batches", 2)


@pytest.mark.parametrize("returned", ["None", "3", "{'x': torch.ones(4, 2)}"])
def test_batches_that_are_none_are_refused(cli, write, returned):
    text = HEAD + MODEL + f"def train_batches():\n    return {returned}\n" + LOSS
    refused(cli("scan", write(text), *SMALL), "target-no-batches", 2)


def test_an_attribute_that_is_not_there_is_named(cli, write):
    result = cli("scan", f"{write(WHOLE)}:tiny", *SMALL)
    refused_at_once(result, "target-no-model")
    assert "tiny" in result.error


# the loss is none


@pytest.mark.parametrize(
    ("returned", "slug"),
    [
        ("model(batch)", "loss-not-scalar"),
        ("model(batch).pow(2).mean().item()", "loss-not-a-tensor"),
        ("None", "loss-not-a-tensor"),
        ("[model(batch).mean()]", "loss-not-a-tensor"),
        ("model(batch).pow(2).mean().detach()", "loss-no-grad"),
        ("torch.tensor(1.0)", "loss-no-grad"),
    ],
)
def test_a_loss_that_is_none_is_refused(cli, write, returned, slug):
    text = HEAD + MODEL + BATCHES + f"def compute_loss(model, batch):\n    return {returned}\n"
    refused(cli("scan", write(text), *SMALL), slug, 2)


def test_a_scan_that_saw_nothing_leaves_an_earlier_result_as_it_was(cli, write, tmp_path):
    assert cli("scan", write(WHOLE), *CAPTURE_ONLY).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()}
    result = cli("scan", write(WHOLE.replace("return model(batch).pow(2).mean()", "return {}")), *CAPTURE_ONLY)
    refused(result, "loss-not-a-tensor", 2)
    assert result.out == ""
    assert {path.name: path.read_bytes() for path in (tmp_path / "reports").iterdir()} == before


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_summary_names_the_file_to_verify(cli, write, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))  # at some widths the command stands on two lines
    result = cli("scan", write(WHOLE), *CAPTURE_ONLY, "--json", "my runs/one.json")
    assert "mpdiag verify 'my runs/one.json'" in " ".join(result.out.split())
    assert "mpdiag verify 'my runs/one.json'" in " ".join(cli("report", "my runs/one.json").out.split())


def test_a_loss_that_is_nan_at_the_first_step_ends_the_scan_and_keeps_what_was_seen(cli, write, tmp_path):
    result = cli("scan", write(WHOLE.replace(".mean()", ".mean() * float('nan')")), *SMALL)
    refused(result, "loss-not-finite", 3)
    assert "step 0" in result.error
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"].startswith("loss-not-finite")
    assert data["capture"]["steps"] == 1
    assert data["capture"]["losses"] == ["NaN"]
    assert data["verification"] is None
    assert (tmp_path / "reports/job.html").is_file()


@pytest.mark.parametrize("inputs", ["batch + torch.ones(4, 2, device='meta')", "batch.to('meta')"])
def test_a_tensor_on_another_device_has_a_slug_of_its_own(cli, write, inputs):
    text = WHOLE.replace("model(batch)", f"model({inputs})")
    result = cli("scan", write(text), *SMALL)
    refused(result, "wrong-device", 3)
    assert "in compute_loss" in result.err


def test_a_model_that_autocast_cannot_run_is_still_observed_in_fp32(cli, write, tmp_path):
    text = HEAD + MODEL + BATCHES + "def compute_loss(model, batch):\n    x = model(batch)\n"
    text += "    assert x.dtype is torch.float32, 'only in FP32'\n    return x.pow(2).mean()\n"
    result = cli("scan", write(text), *SMALL, "--fail-on", "never")
    assert result.code == 0, result.err
    data = saved(tmp_path / "reports/job.json")
    line = 1 + next(i for i, code in enumerate(text.splitlines()) if "assert" in code)
    assert data["capture"]["amp_error"].endswith(f"only in FP32, at job.py:{line}")
    (found,) = [f for f in data["advice"]["findings"] if f["code"] == "MP304"]
    assert found["source"] == f"job.py:{line}"
    assert data["capture"]["steps"] == 2


# scripts are not imported


SCRIPT = """
from pathlib import Path
Path(__file__).with_name('side-effect').write_text('imported')
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(3):
    loss = model(torch.ones(4, 2)).mean()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    "text",
    [SCRIPT, SCRIPT.replace("model", "net"), SCRIPT.replace("for _", "if __name__ == '__main__':\n  for _")],
)
def test_a_training_script_is_refused_before_it_is_imported(cli, write, tmp_path, text):
    if "__main__" in text:
        text = text.replace("\n    loss", "\n      loss").replace("\n    optimizer.step", "\n      optimizer.step")
    result = cli("scan", write(text, "train.py"), *SMALL)
    refused_at_once(result, "target-is-a-script")
    assert not (tmp_path / "side-effect").exists()


def test_a_script_named_with_an_attribute_it_has_is_the_users_own_choice(cli, write, tmp_path):
    cli("scan", f"{write(SCRIPT, 'train.py')}:model", *SMALL)
    assert (tmp_path / "side-effect").exists()
