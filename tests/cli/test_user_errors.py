"""The user's own code raises: their traceback without our frames, one error line, and what was seen is kept."""

from __future__ import annotations

import pytest

from cli_samples import BOOM, CAPTURE_ONLY, HEAD, OURS, RAISING, SMALL, WHOLE, in_process_of_its_own, refused, saved


@pytest.mark.parametrize("doing", RAISING)
def test_what_the_users_code_raises_is_shown_without_our_frames(cli, write, doing):
    result = cli("scan", write(RAISING[doing]), *CAPTURE_ONLY)
    refused(result, "user-code", 3)
    assert "Traceback (most recent call last):" in result.err
    assert "ValueError: the users own mistake" in result.err
    assert doing in result.error
    assert "job.py" in result.err.partition("error[")[0], "the user's own line is missing"


@pytest.mark.parametrize("doing", ["computing the loss", "running backward", "stepping the optimizer"])
def test_what_was_seen_before_the_users_code_raised_is_kept(cli, write, tmp_path, doing):
    result = cli("scan", write(RAISING[doing]), *CAPTURE_ONLY)
    data = saved(tmp_path / "reports/job.json")
    assert data["reason"].startswith("user-code: ValueError")
    assert data["capture"]["steps"] == 1
    assert {table["steps"] for table in data["capture"]["tables"]} == {1}
    assert data["advice"] is not None
    assert (tmp_path / "reports/job.html").is_file()
    assert "reports/job.json" in result.out


RAISING_METRICS = ["raise ValueError('the users own mistake')", "return 'high'", "return None", "return {'a': 'high'}"]


@pytest.mark.parametrize("body", RAISING_METRICS)
def test_a_metric_that_fails_in_every_run_is_the_users_error_and_no_verdict(cli, write, tmp_path, body):
    result = cli("scan", write(WHOLE + f"def evaluate(model):\n    {body}\n"), *SMALL)
    assert OURS not in result.err, result.err
    assert result.code in (2, 3), result.err
    data = saved(tmp_path / "reports/job.json")
    assert (data["verification"] or {}).get("verdict") in (None, "inconclusive")
    assert (tmp_path / "reports/job.html").is_file()
    assert result.slug in ("user-code", "metric-not-a-number")


def test_a_metric_that_is_nan_is_said_to_be_one(cli, write, tmp_path):
    result = cli("scan", write(WHOLE + "def evaluate(model):\n    return float('nan')\n"), *SMALL)
    assert result.code == 3, result.err
    data = saved(tmp_path / "reports/job.json")
    assert data["verification"]["trials"][0]["metric"] == {"metric": "NaN"}
    assert data["verification"]["verdict"] == "inconclusive"


@pytest.mark.parametrize("place", ["import", "loss"])
def test_a_target_that_exits_is_the_users_error_not_a_success(cli, write, place):
    text = HEAD + "import sys\nsys.exit(0)\n" if place == "import" else WHOLE.replace("return model", "exit(0)\n    #")
    result = cli("scan", write(text), *SMALL)
    refused(result, "user-code", 3)
    assert "SystemExit" in result.error


def test_an_exception_with_many_lines_gives_one_error_line(cli, write):
    result = cli("scan", write(HEAD + "raise RuntimeError('one\\ntwo\\nthree')\n"), *SMALL)
    refused(result, "user-code", 3)
    assert "three" in result.err
    assert "three" not in result.error


def test_an_exception_without_a_message_is_still_an_error_line(cli, write):
    result = cli("scan", write(HEAD + "raise AssertionError\n"), *SMALL)
    refused(result, "user-code", 3)
    assert "AssertionError" in result.error


def test_an_exception_whose_str_raises_is_still_an_error_line(cli, write):
    text = HEAD + "class Bad(Exception):\n    def __str__(self):\n        raise KeyError('no')\nraise Bad()\n"
    refused(cli("scan", write(text), *SMALL), "user-code", 3)


def test_a_base_exception_of_the_users_keeps_what_was_seen(cli, write, tmp_path):
    text = RAISING["computing the loss"].replace("ValueError", "Stop")
    text = text.replace("CALLS = [0]\n", "CALLS = [0]\nclass Stop(BaseException):\n    pass\n")
    result = cli("scan", write(text), *CAPTURE_ONLY)
    refused(result, "user-code", 3)
    assert saved(tmp_path / "reports/job.json")["capture"]["steps"] == 1


@pytest.mark.parametrize("model", ["nn.ReLU()", "nn.Identity()"])
def test_a_model_without_parameters_is_refused_in_one_line(cli, write, model):
    result = cli("scan", write(WHOLE.replace("nn.Linear(2, 1)", model)), *SMALL)
    assert OURS not in result.err, result.err
    assert result.code in (2, 3)
    assert result.slug


def test_an_optimizer_without_a_learning_rate_is_taken(cli, write):
    text = """class Sign(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data -= 0.01 * p.grad.sign()

def build_optimizer(model):
    return Sign(model.parameters())
"""
    result = cli("scan", write(WHOLE + text), *CAPTURE_ONLY)
    assert result.code == 0, result.err
    assert "Sign" in result.out


def test_debug_shows_our_frames_too(cli, write, tmp_path):
    path = write(HEAD + BOOM)
    shown = in_process_of_its_own("scan", path, *SMALL, cwd=tmp_path, environment={"MPDIAG_DEBUG": "1"})
    assert OURS in shown.err
    assert "ValueError: the users own mistake" in shown.err
    assert shown.code in (1, 3)
