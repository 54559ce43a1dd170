"""Make everything under reports/ that a GPU run proves, by one command.

    python benchmarks/evidence.py digits_laptop    (on a machine without a GPU)
    python benchmarks/evidence.py [PART...]        (needs a CUDA device; all parts take about 25 minutes)
    python benchmarks/evidence.py --index          (only writes the pages from the JSONs that are there)

Scans both examples and a ResNet-50, finishes what was scanned without a GPU (`--plotly none`: no third-party script
enters the repository), runs the benchmarks that have a page, and writes README.md and the tables from the JSONs alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from evidence_index import index_page
from judged_again import judged_again
from mpdiag import load
from mpdiag.advice.configs import configs_for
from mpdiag.report.html import render
from pages import PAGES

ROOT = Path(__file__).resolve().parents[1]
LAPTOP = "digits_laptop"
SCANS = {  # mpdiag's words for each report, and why they are not the defaults
    "resnet50": "scan benchmarks/resnet50.py",  # they are: this is to end within 120 s
    "resnet50_whole": "scan benchmarks/resnet50.py --seeds 5 --time-budget 560 "  # with time for every stage
    "--json reports/resnet50_whole.json --html reports/resnet50_whole.html",
    "char_gpt": "scan examples/char_gpt.py --seeds 5 --time-budget 600 --largest-batch",  # every stage there is
    "digits_cnn": "scan examples/digits_cnn.py --seeds 8",  # as its scan with three seeds asks for
    LAPTOP: f"scan examples/digits_cnn.py --device cpu --json reports/{LAPTOP}.json --html reports/{LAPTOP}.html",
    "digits_finished": f"verify reports/{LAPTOP}.json --json reports/digits_finished.json "
    "--html reports/digits_finished.html",  # the same seeds, steps and plan on a GPU
}


def make(out: Path, parts: list[str]) -> None:
    for name, words in ((n, w) for n, w in SCANS.items() if n in parts):
        command = [sys.executable, "-m", "mpdiag", *words.split(), "--plotly", "none"]
        began = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        print(f"{name}: exit code {code}, {time.monotonic() - began:.0f} s", flush=True)
    for name in (n for n in PAGES if n in parts):
        subprocess.run([sys.executable, f"benchmarks/{name}.py", str(out / f"{name}.json")], cwd=ROOT, check=True)


def index(out: Path) -> None:
    there = lambda name: (out / f"{name}.json").exists()
    scans = {name: judged_again(load(out / f"{name}.json")) for name in SCANS if there(name)}
    for name, d in scans.items():
        page = render(d, plotly="none", configs=configs_for(d))
        (out / f"{name}.html").write_text(page, encoding="utf-8")  # as this version draws it
    pages = {name: page for name, page in PAGES.items() if there(name)}
    told = index_page(scans, {name: about for name, (_, about) in pages.items()}, (out / "paper.md").exists())
    (out / "README.md").write_text(told, encoding="utf-8")
    for name, (page_of, _) in pages.items():
        without_folders(out / f"{name}.json")
        record = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        (out / f"{name}.md").write_text(page_of(record), encoding="utf-8")


def without_folders(path: Path) -> None:
    """Leave the folders of the machine it ran on out of a record's command: only its own are a reader's."""
    record = json.loads(path.read_text(encoding="utf-8"))
    told = re.sub(r"(?<=\s)/\S*/(?=\S+\.json)", "", str(record.get("command", "")))
    if told != record.get("command", ""):
        path.write_text(json.dumps(record | {"command": told}, indent=1), encoding="utf-8")


def main() -> None:
    out = ROOT / "reports"
    out.mkdir(exist_ok=True)
    if "--index" not in sys.argv:
        make(out, sys.argv[1:] or [*(name for name in SCANS if name != LAPTOP), *PAGES])
    index(out)


if __name__ == "__main__":
    main()
