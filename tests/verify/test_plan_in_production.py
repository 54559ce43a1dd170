"""A plan of islands from the scan to training in production."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mpdiag
from island_samples import CPU
from mpdiag.plan import plan_of, plan_to_json, read_plan
from mpdiag.report.islands import island_sentences
from mpdiag.saved import from_json, to_json
from mpdiag.target import load_job
from mpdiag.target.job import ONLY
from mpdiag.training.precision import FP16_AUTOCAST
from mpdiag.training.session import open_session

T5_LIKE = str(Path(__file__).parents[1] / "islands" / "t5_like.py")


# --- from scan to production


@pytest.fixture(scope="module")
def t5() -> Iterator[Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield mpdiag.scan(T5_LIKE, verify_steps=20, time_budget_seconds=120.0)
    finally:
        torch.set_num_threads(threads)


def test_on_t5s_overflow_the_plan_trains_where_plain_fp16_is_nan(t5):
    assert t5.advice.keep_fp32 == t5.advice.plan.keep_fp32 == ("encoder.1.1.wo",)
    final = {t.arm: t.losses[-1] for t in t5.verification.trials if t.seed == 0}
    assert final["fp16"] != final["fp16"]
    assert abs(final["fp16-plan"] - final["fp32"]) < 0.05 * final["fp32"]
    assert (t5.verification.verdict, t5.verification.train_with) == ("go-with-changes", "fp16-plan")
    assert "encoder.1.1.wo" in t5.verification.reason
    assert t5.snippet.startswith('import mpdiag\n\nmodel = mpdiag.apply(model, ["encoder.1.1.wo"])')
    assert "1 module in FP32 cures it (tried on the first batch: " in island_sentences(t5)[0]
    assert island_sentences(t5)[-1] == "speed lost by it: needs a CUDA GPU; this run was on the CPU"


def test_the_plan_survives_the_json(t5):
    again = from_json(to_json(t5))
    assert again.advice.plan == t5.advice.plan
    assert plan_of(again) == plan_of(t5)


def test_the_scans_plan_applied_in_production_gives_finite_fp16_training(t5, tmp_path):
    path = tmp_path / "t5_like.plan.json"
    path.write_text(plan_to_json(plan_of(t5)))
    the_job = load_job(T5_LIKE)
    start = the_job.start(0, 5)

    def losses(build: Callable[[], nn.Module]) -> list[float]:
        production = replace(the_job, build_model=build)
        with open_session(production, start, replace(FP16_AUTOCAST, log2_scale=read_plan(path).log2_scale), CPU) as run:
            return [float(run.step(run.place(start.batch(i)))[ONLY]) for i in range(5)]

    assert all(torch.isfinite(torch.tensor(losses(lambda: mpdiag.apply(the_job.build_model(), path)))))
    assert not any(torch.isfinite(torch.tensor(losses(the_job.build_model))))


def test_the_command_writes_the_plan_beside_the_json(tmp_path):
    command = [sys.executable, "-m", "mpdiag", "scan", T5_LIKE, "--no-verify", "--out", str(tmp_path / "out")]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "out/t5_like.plan.json" in ran.stdout
    assert read_plan(tmp_path / "out" / "t5_like.plan.json").keep_fp32 == ("encoder.1.1.wo",)
