"""An exception that nobody expected: whose it is."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest

import mpdiag.api
import report_samples as samples
from mpdiag.draft import Draft
from mpdiag.errors import MpdiagError, UserCodeError
from mpdiag.unforeseen import as_error

OURS = mpdiag.api.__file__


def placed(file: str | Path, text: str) -> dict[str, object]:
    """What a text defines, as if it stood in that file."""
    names: dict[str, object] = {}
    exec(compile(text, str(file), "exec"), names)
    return names


def raised_in(work: object) -> MpdiagError:
    try:
        work()
    except Exception as error:
        return as_error(error)
    pytest.fail("nothing was raised")


def called_by_us(function: object) -> object:
    """A stage of ours that does nothing but call it."""
    names = placed(OURS, "def calling(function):\n    def stage():\n        function()\n    return stage\n")
    return names["calling"](function)


def test_what_a_frame_of_ours_raises_is_our_fault():
    error = raised_in(placed(OURS, "def stage():\n    {}['key']\n")["stage"])
    assert (error.slug, error.message) == ("internal", "KeyError in mpdiag: 'key'")
    assert "MPDIAG_DEBUG=1" in error.hint


def test_what_a_library_raises_beneath_us_is_our_fault():
    assert raised_in(called_by_us(partial(json.loads, "{"))).slug == "internal"
    installed = placed("/x/lib/site-packages/some/file.py", "def fails():\n    raise ValueError('inside')\n")
    assert raised_in(called_by_us(installed["fails"])).slug == "internal"


def test_what_the_users_code_raises_beneath_us_is_theirs_and_is_shown_without_us(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = placed(tmp_path / "job.py", "\n\ndef look():\n    raise ValueError('too late')\n")
    error = raised_in(called_by_us(theirs["look"]))
    assert isinstance(error, UserCodeError)
    assert (error.slug, error.message) == ("user-code", "ValueError while running your look(): too late")
    assert error.line == "job.py:4"
    assert OURS not in error.traceback
    assert "job.py" in error.traceback


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there is no SIGALRM here")
@pytest.mark.parametrize("kind", ["ValueError('user alarm')", "SystemExit(4)"])
def test_a_signal_handler_of_the_users_that_raises_in_our_midst_is_their_code(tmp_path, kind):
    theirs = placed(tmp_path / "job.py", f"def timeout(*_):\n    raise {kind}\n")
    ours = placed(OURS, "import signal\ndef stage():\n    signal.raise_signal(signal.SIGALRM)\n")
    before = signal.signal(signal.SIGALRM, theirs["timeout"])
    draft = Draft(samples.full(), lambda diagnosis: None)
    try:
        with pytest.raises(UserCodeError) as caught, draft.kept_on_failure():
            ours["stage"]()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert caught.value.slug == "user-code"
    assert "while running your timeout()" in caught.value.message
    assert caught.value.diagnosis is not None
    assert caught.value.diagnosis.hint.startswith("mend ")
