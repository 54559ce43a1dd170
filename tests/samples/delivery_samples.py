"""A target that does something in the midst of a scan, and scans of it in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

WHOLE = """
import os, shutil, sys, time
import torch
from torch import nn

CALLS = [0]

def build_model():
    return nn.Linear(2, 1)

def train_batches():
    return [torch.full((4, 2), 1.0 + i) for i in range(3)]

def at_capture():
    pass

def compute_loss(model, batch):
    CALLS[0] += 1
    if CALLS[0] == 9:  # 1 to 6 are the self-test's, 7 is the FP16 iteration's
        at_capture()
    return model(batch).pow(2).mean()
"""
SLOW = WHOLE.replace("    if CALLS[0] == 9", "    if CALLS[0] > 9:\n        time.sleep(0.1)\n    if CALLS[0] == 9")
# its second layer overflows in FP16, so that the search finds an island and there is a plan, with the others in FP16
PLANNED = WHOLE.replace(
    "    return nn.Linear(2, 1)",
    "    m = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))\n"
    "    with torch.no_grad():\n        m[1].weight.mul_(1e6)\n    return m",
)


def written(folder: Path, at_capture: str = "pass", text: str = WHOLE) -> Path:
    """A target in `folder` whose second observed step does something."""
    path = folder / "job.py"
    body = textwrap.indent(textwrap.dedent(at_capture).strip(), "    ")
    path.write_text(text.replace("def at_capture():\n    pass", f"def at_capture():\n{body}"), "utf-8")
    return path


def scanned(folder: Path, *options: str, shell: str = "", environment: dict[str, str] | None = None) -> Any:
    """`mpdiag scan job.py` in a process of its own; `shell` follows the command, such as a redirection."""
    return ran(folder, "scan", "job.py", *options, shell=shell, environment=environment)


def ran(folder: Path, *words: str, shell: str = "", environment: dict[str, str] | None = None) -> Any:
    command = f'"$@" {shell}; exit ${{PIPESTATUS[0]}}'
    return subprocess.run(
        ["bash", "-c", command, "bash", sys.executable, "-m", "mpdiag", *words],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def errors(shown: Any) -> list[str]:
    return [line for line in shown.stderr.splitlines() if line.startswith(("error[", "hint:"))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
