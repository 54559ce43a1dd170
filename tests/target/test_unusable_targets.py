"""Every way a target can be wrong: refused in one line, or shown as the user's own error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mpdiag.errors import UsageError, UserCodeError
from mpdiag.target import load_job
from target_samples import BATCHES, HEAD, MODEL, WHOLE, one_step, refusal

# what is refused


@pytest.mark.parametrize("target", ["nowhere.py", "no/such/file", "nowhere.py:attr", "nosuchthing"])
def test_a_file_that_is_not_there_is_refused(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(target).slug == "target-not-found"


def test_a_folder_is_refused_as_one(tmp_path):
    error = refusal(tmp_path)
    assert (error.slug, error.message) == ("target-not-found", f"{tmp_path}: is a folder")


@pytest.mark.parametrize("target", ["no_such_package_at_all:model", "no_such_package_at_all.sub:model"])
def test_a_package_that_is_not_there_is_refused(target, write):
    error = refusal(target)
    assert (error.slug, error.message) == ("target-not-found", f"{target}: no module named no_such_package_at_all")


def test_a_module_that_is_not_in_its_package_is_refused(write, tmp_path, monkeypatch):
    write("", "zoo_without_small/__init__.py")
    monkeypatch.chdir(tmp_path)
    error = refusal("zoo_without_small.small:model")
    assert (error.slug, error.message) == (
        "target-not-found",
        "zoo_without_small.small:model: no module named zoo_without_small.small",
    )


def test_a_package_whose_own_import_is_missing_is_the_users_error(write, tmp_path, monkeypatch):
    write("import a_missing_dependency\n", "zoo_needing_more/__init__.py")
    monkeypatch.chdir(tmp_path)
    error = refusal("zoo_needing_more:model")
    assert isinstance(error, UserCodeError)
    assert "a_missing_dependency" in error.message


def test_loading_packages_adds_the_working_folder_to_the_import_path_once(write):
    for _ in range(3):
        refusal("no_such_package_at_all:model")
    assert sys.path.count("") == 1


@pytest.mark.parametrize(("text", "line"), [("x = 1\ndef f(:\n", 2), ("  x = 1\n y = 2\n", 1), ("print 'hello'\n", 1)])
def test_a_syntax_error_is_refused_with_its_line(tmp_path, text, line):
    path = tmp_path / "broken.py"
    path.write_text(text)
    error = refusal(path)
    assert error.slug == "target-syntax"
    assert error.message.startswith(f"{path}:{line}: ")


def test_a_file_with_null_bytes_is_refused(tmp_path):
    path = tmp_path / "binary.py"
    path.write_bytes(b"x = 1\0\n")
    assert refusal(path).slug == "target-syntax"


def test_a_file_that_is_not_python_at_all_is_refused(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)))
    assert refusal(path).slug in ("target-syntax", "target-not-found")


@pytest.mark.parametrize(
    "text",
    [
        "model = nn.Linear(2, 1)\nmodel(torch.ones(2)).backward()\n",
        "def main():\n    loss.backward()\nif __name__ == '__main__':\n    main()\n",
        "trainer.fit(model)\n",
    ],
    ids=["on import", "under main", "fit"],
)
def test_a_training_script_is_refused_and_not_run(write, text):
    path = write(HEAD + "raise AssertionError('it was imported')\n" + text)
    error = refusal(path)
    assert error.slug == "target-is-a-script"


def test_a_file_with_a_contract_function_is_no_script_though_it_trains(write):
    text = WHOLE + "def main():\n    build_model()(torch.ones(2)).backward()\nif __name__ == '__main__':\n    main()\n"
    assert load_job(str(write(text))).name == "job"


@pytest.mark.parametrize("text", ["", "x = 1\n", BATCHES])
def test_a_file_without_a_model_is_refused(write, text):
    path = write(HEAD + text)
    error = refusal(path)
    assert error.slug == "target-no-model"
    assert error.message == f"{path} defines none of build_model, get_model, create_model, make_model, model"


def test_an_attribute_that_is_not_there_is_refused_by_name(write):
    path = write(WHOLE)
    error = refusal(f"{path}:missing")
    assert (error.slug, error.message) == ("target-no-model", f"{path} defines no `missing`")


def test_a_model_that_is_neither_module_nor_function_is_refused(write):
    error = refusal(write(HEAD + "build_model = 3\n" + BATCHES))
    assert error.slug == "target-no-model"
    assert "the model is int" in error.message


def test_a_model_function_that_returns_something_else_is_refused(write):
    job = load_job(str(write(HEAD + "def build_model():\n    return [nn.Linear(2, 1)]\n" + BATCHES)))
    with pytest.raises(UsageError, match="returned list, not a torch") as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-no-model"


def test_a_file_without_batches_is_refused(write):
    path = write(HEAD + MODEL)
    error = refusal(path)
    assert error.slug == "target-no-batches"
    assert "train_batches" in error.hint


@pytest.mark.parametrize("returned", ["3", "None", "{'x': torch.ones(2)}"])
def test_batches_that_are_no_iterable_of_batches_are_refused(write, returned):
    job = load_job(str(write(HEAD + MODEL + f"def train_batches():\n    return {returned}\n")))
    with pytest.raises(UsageError) as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-no-batches"


@pytest.mark.parametrize("batches", ["[]", "iter(())"])
def test_empty_batches_are_refused(write, batches):
    job = load_job(str(write(HEAD + MODEL + f"train_batches = {batches}\n")))
    with pytest.raises(UsageError) as caught:
        job.start(0, 1)
    assert caught.value.slug == "target-empty-batches"


# the user's own errors


RAISING = {
    "importing": ("def helper():\n    raise ValueError('bad data')\nhelper()\n" + WHOLE, lambda job: None),
    "building the model": (
        "def helper():\n    raise ValueError('bad data')\n" + WHOLE.replace("nn.Linear(2, 1)", "helper()"),
        lambda job: job.start(0, 1),
    ),
    "drawing batches": (
        "def helper():\n    raise ValueError('bad data')\n"
        + HEAD
        + MODEL
        + "def train_batches():\n    yield helper()\n",
        lambda job: job.start(0, 1),
    ),
    "computing the loss": (
        "def helper():\n    raise ValueError('bad data')\n"
        + HEAD
        + MODEL
        + BATCHES
        + "def compute_loss(m, b):\n    helper()\n",
        one_step,
    ),
}


@pytest.mark.parametrize("doing", RAISING)
def test_what_the_users_code_raises_shows_their_frames_and_none_of_ours(write, doing):
    text, use = RAISING[doing]
    path = write(text)
    with pytest.raises(UserCodeError) as caught:
        use(load_job(str(path)))
    error = caught.value
    assert error.slug == "user-code"
    assert error.message.startswith(f"ValueError while {doing}")
    assert error.message.endswith(": bad data")
    assert error.placed == f"{error.message}, at {path}:2"
    assert f'File "{path}", line 2, in helper' in error.traceback
    assert error.traceback.rstrip().endswith("ValueError: bad data")
    package = str(Path(sys.modules["mpdiag.target"].__file__).parents[1])
    assert package not in error.traceback
    assert "importlib" not in error.traceback


def test_a_target_that_exits_is_the_users_error(write):
    error = refusal(write("import sys\nsys.exit(3)\n" + WHOLE))
    assert isinstance(error, UserCodeError)
    assert "sys.exit()" in error.hint


def test_ctrl_c_in_a_target_passes_through(write):
    with pytest.raises(KeyboardInterrupt):
        load_job(str(write("raise KeyboardInterrupt\n" + WHOLE)))


def test_a_file_that_failed_to_import_is_read_anew_the_next_time(write):
    path = write("raise ValueError('first')\n" + WHOLE)
    refusal(path)
    path = write(WHOLE)
    assert load_job(str(path)).name == "job"
