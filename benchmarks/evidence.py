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
from dataclasses import replace
from pathlib import Path

from mpdiag import load
from mpdiag.advice.configs import configs_for
from mpdiag.diagnosis import Diagnosis
from mpdiag.report.digest import verdict_of
from mpdiag.report.html import render
from mpdiag.verify.verdict import decide
from pages import PAGES

ROOT = Path(__file__).resolve().parents[1]
LAPTOP = "digits_laptop"
SCANS = {  # mpdiag's words for each report, and why they are not the defaults
    "resnet50": "scan benchmarks/resnet50.py",  # they are: this is to end within 120 s
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
    lines = [
        "# Evidence",
        "",
        "Real runs, written by `python benchmarks/evidence.py` on the machine each row names. Nothing here is edited "
        "by hand. The JSONs are as the runs left them; verdicts are worded here, and pages drawn, by this version.",
        "",
        "| report | on | when | command | its stages took | verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in (n for n in SCANS if there(n)):
        d = judged_again(load(out / f"{name}.json"))
        page = render(d, plotly="none", configs=configs_for(d))
        (out / f"{name}.html").write_text(page, encoding="utf-8")  # as this version draws it
        where = f"{d.environment.gpu}, driver {d.environment.driver}" if d.environment.gpu else "a CPU"
        on = f"{where}, torch {d.environment.torch}"
        verdict, reason = verdict_of(d)
        lines.append(
            f"| [{name}]({name}.html) ([JSON]({name}.json)) | {on} | {d.created} | `{d.command}` | "
            f"{sum(d.elapsed_seconds.values()):.0f} s | {verdict}: {reason} |"
        )
    if (out / "paper.md").exists():
        lines += ["", "- [paper.md](paper.md): the paper's kinds of jobs again, by `python benchmarks/paper.py`."]
    lines += ["", *(f"- [{name}.md]({name}.md): {about}" for name, (_, about) in PAGES.items() if there(name)), ""]
    (out / "README.md").write_text("\n".join(lines), encoding="utf-8")
    for name, (page, _) in ((n, p) for n, p in PAGES.items() if there(n)):
        without_folders(out / f"{name}.json")
        (out / f"{name}.md").write_text(page(json.loads((out / f"{name}.json").read_text())), encoding="utf-8")


def judged_again(d: Diagnosis) -> Diagnosis:
    """The diagnosis with the verdict as this version words it, from the comparisons that the run made."""
    if d.verification is None or d.advice is None:
        return d
    verdict, reason = decide(d.advice, d.verification.trials, d.verification.comparisons)
    return replace(d, verification=replace(d.verification, verdict=verdict, reason=reason))


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
