"""What `import mpdiag` gives, and how it is used from Python."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap

import pytest

import mpdiag
from api_samples import CAPTURE_ONLY, JOB
from mpdiag.errors import UsageError

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
