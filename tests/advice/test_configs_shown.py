"""The configurations to paste stand on the page and in the printed text."""

from __future__ import annotations

import subprocess
import sys

import report_samples as samples
from config_samples import DYNAMIC, diagnosis
from mpdiag.advice.configs import configs_for
from mpdiag.report import configs as as_text
from mpdiag.report.html import render
from mpdiag.saved import to_json

# --- where they are shown


def test_the_page_has_a_section_with_each_text_to_copy():
    made = configs_for(diagnosis(islands=("head",)))
    page = render(diagnosis(islands=("head",)), plotly="none", configs=made)
    section = page.partition('<section id="configs">')[2].partition("</section>")[0]
    assert section.count("<details>") == section.count('class="copy js-only"') == 5
    assert [f"<summary>{each.title}" in section for each in made] == [True] * 5
    assert 'href="#configs"' in page


def test_a_page_without_configurations_has_no_such_section():
    assert "#configs" not in render(diagnosis(), plotly="none")


def test_a_name_cannot_leave_its_code_on_the_page():
    found = diagnosis(islands=(samples.HOSTILE_NAME,))
    assert samples.HOSTILE_NAME not in render(found, plotly="none", configs=configs_for(found))


def test_as_text_each_is_under_its_title_as_it_is_pasted():
    printed = as_text.render(diagnosis(), configs_for(diagnosis()))
    assert printed.startswith(f"PyTorch\n=======\n\n{DYNAMIC['PyTorch']}\nLightning\n=========\n\n")
    assert all(text in printed for text in DYNAMIC.values())


def test_as_text_nothing_to_paste_says_why():
    assert as_text.render(diagnosis(train_with=None), ()).startswith("No code to paste: neither FP16 nor BF16")
    assert as_text.render(samples.minimal(), ()).startswith("No code to paste: ")


def test_the_command_prints_them_without_torch(tmp_path):
    run = tmp_path / "run.json"
    run.write_text(to_json(diagnosis()))
    code = (
        "import sys\nfrom mpdiag.cli.main import main\ntry: main()\nexcept SystemExit as e: assert not e.code, e.code\n"
        "assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, "report", str(run), "--format", "configs"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == as_text.render(diagnosis(), configs_for(diagnosis()))


def test_the_command_puts_them_on_the_page(tmp_path):
    run, page = tmp_path / "run.json", tmp_path / "run.html"
    run.write_text(to_json(diagnosis()))
    words = ["report", str(run), "--format", "html", "--plotly", "none", "--out", str(page)]
    subprocess.run([sys.executable, "-m", "mpdiag", *words], cwd=tmp_path, capture_output=True, check=True)
    assert page.read_text("utf-8").count("<summary>Lightning</summary>") == 1
