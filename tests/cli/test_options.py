"""What a scan may be told: bounds that Python has as the command line has them, and options that contradict others."""

import pytest
from click.testing import CliRunner

import mpdiag
from mpdiag.cli.main import commands
from mpdiag.errors import UsageError
from mpdiag.saved import to_json
from mpdiag.settings import LARGEST_BATCH_SECONDS


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 10**12}, {"verify_steps": 10**12}, {"seeds": 10**9}, {"skip": 10**12}, {"at": (10**12,)},
        {"steps": 10**4, "skip": 10**4}, {"memory_limit_bytes": 0}, {"memory_limit_bytes": -1},
    ],
    ids=str,
)  # fmt: skip
def test_what_would_take_for_ever_is_refused_before_anything_is_loaded(wrong):
    with pytest.raises(UsageError) as raised:
        mpdiag.scan("no_such_file.py", **wrong)
    assert raised.value.slug == "bad-option"
    assert len(raised.value.message) < 150


def test_the_most_that_is_allowed_is_allowed():
    assert mpdiag.ScanOptions(steps=10_000_000, verify_steps=10_000_000, seeds=10_000).last_step == 9_999_999


@pytest.mark.parametrize(("off", "named"), [("costs", "--no-costs"), ("verify", "--no-verify")])
def test_the_costs_of_the_control_cannot_be_had_without_costs(off, named):
    with pytest.raises(UsageError, match=f"what pure FP16 costs was asked for, and {named}"):
        mpdiag.ScanOptions(control_costs=True, **{off: False})


@pytest.mark.parametrize("search", [{"largest_batch": True}, {"memory_limit_bytes": 2**30}])
@pytest.mark.parametrize(("off", "named"), [("costs", "--no-costs"), ("verify", "--no-verify")])
def test_a_search_that_another_option_would_drop_is_refused(search, off, named):
    with pytest.raises(UsageError) as raised:
        mpdiag.ScanOptions(**search, **{off: False})
    assert raised.value.slug == "options-clash"
    assert named in raised.value.message
    assert mpdiag.ScanOptions(**search).batch_searched
    assert not mpdiag.ScanOptions(**{off: False}).batch_searched


MODEL = """
import torch
def build_model(): return torch.nn.Linear(4, 1)
def train_batches(): return [(torch.randn(8, 4), torch.randn(8, 1))]
def compute_loss(model, batch): return ((model(batch[0]) - batch[1]) ** 2).mean()
"""


@pytest.mark.parametrize("asked", [["--largest-batch"], ["--memory-limit", "40"], ["--control-costs"]])
def test_the_command_line_refuses_it_too(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "run.json").write_text(to_json(mpdiag.scan("model.py", device="cpu", steps=2, verify=False)))
    for words in (["scan", "model.py"], ["verify", "run.json"]):
        raised = CliRunner().invoke(commands, [*words, "--no-costs", *asked]).exception
        assert isinstance(raised, UsageError)
        assert (raised.slug, raised.exit_code) == ("options-clash", 2)


def test_help_tells_what_the_time_budget_is_for():
    text = " ".join(CliRunner().invoke(commands, ["scan", "--help"]).output.split())
    assert "For the search of FP32 islands and the verification" in text


def test_help_tells_the_time_of_the_search():
    text = " ".join(CliRunner().invoke(commands, ["scan", "--help"]).output.split())
    assert f"at least {LARGEST_BATCH_SECONDS:.0f} s an arm" in text
    assert LARGEST_BATCH_SECONDS >= 60
    again = " ".join(CliRunner().invoke(commands, ["verify", "--help"]).output.split())
    assert again.count("as RUN.json was asked for") == 2
