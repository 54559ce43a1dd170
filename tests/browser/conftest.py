"""Chromium with a page opened from a file, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import report_samples as samples
from mpdiag.diagnosis import Diagnosis
from mpdiag.histogram import ExponentHistogram
from mpdiag.operations import OpRole, OpTable
from mpdiag.other_formats import FormatChoice, FormatForecast, FormatOption
from mpdiag.report.html import render

CHROMIUM = Path("/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def with_operations(diagnosis: Diagnosis) -> Diagnosis:
    """The same with a second pass over operators, whose table has long names."""
    table = OpTable(
        "scaled_dot_product_attention", "blocks.3.attention.projection", "forward", OpRole.OUTPUT, "float32", 64, 20,
        ExponentHistogram.from_bins({3: 64}), 12.0, 8.0, "float16", source="examples/a_folder/gpt_tiny.py:131",
    )  # fmt: skip
    assert diagnosis.capture is not None
    return replace(diagnosis, capture=replace(diagnosis.capture, operations=(table,) * 3))


def with_formats(diagnosis: Diagnosis) -> Diagnosis:
    """The same with a forecast of other formats, which is folded."""
    assert diagnosis.advice is not None
    fp8 = FormatForecast("E4M3", "forward", "per tensor", 9, 4, 0.1, 0.01, 0.0, 0, "fc (weight)", 0.2, "range fits")
    choice = FormatChoice("FP16", True, "trained here", (FormatOption("FP8", False, "needs 8.9"),))
    return replace(diagnosis, advice=replace(diagnosis.advice, other_formats=(fp8,), format_choice=choice))


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if not CHROMIUM.exists():
        pytest.skip(f"Chromium is not at {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=str(CHROMIUM), args=list(QUIET))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("page")
    (where / "full.html").write_text(render(samples.full()), encoding="utf-8")
    (where / "none.html").write_text(render(samples.full(), plotly="none"), encoding="utf-8")
    (where / "gpu.html").write_text(
        render(with_formats(with_operations(samples.on_gpu())), plotly="none"), encoding="utf-8"
    )
    return where


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Callable[..., Any]]:
    """Open a page in a context of its own; `page.faults` collects console errors, `page.asked` requests."""
    contexts = []

    def go(name: str = "none.html", fragment: str = "", **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.faults, page.asked = [], []
        page.on("console", lambda m: page.faults.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: page.faults.append(str(e)))
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto((folder / name).as_uri() + fragment)
        return page

    yield go
    for context in contexts:
        context.close()
