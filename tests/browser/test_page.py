"""The HTML report in Chromium, opened from a file with nothing else to reach."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import report_samples as samples

pytestmark = pytest.mark.browser


def names(page: Any) -> list[str]:
    return page.locator("table.tensors tbody tr:visible .name").all_text_contents()


def test_the_page_opens_without_an_error_or_a_request(visit: Any) -> None:
    page = visit("full.html")
    page.wait_for_selector(".drawn svg.main-svg")
    assert page.faults == []
    assert [url for url in page.asked if not url.startswith(("file:", "blob:", "data:"))] == []


def test_plotly_takes_the_place_of_all_static_charts(visit: Any) -> None:
    page = visit("full.html")
    page.wait_for_selector("[data-figure=losses] svg.main-svg")
    assert page.locator(".plot.drawn").count() == 3
    assert page.locator(".static:visible").count() == 0
    assert page.locator("[data-figure=losses] .scatterlayer .trace").count() == len(samples.trials())


def test_without_plotly_the_static_charts_stay(visit: Any) -> None:
    assert visit("none.html").locator("svg.chart:visible").count() == 4


def test_the_distance_from_fp32_is_one_line_an_arm(visit: Any) -> None:
    page = visit("full.html")
    page.wait_for_selector("[data-figure=gaps] svg.main-svg")
    assert page.locator("[data-figure=gaps] .scatterlayer .trace").count() == 3  # fp32 is what they are held against


def test_the_runs_open_on_a_click_and_without_one_on_paper(visit: Any) -> None:
    page = visit()
    runs = page.locator("table.runs")
    assert not runs.is_visible()
    page.locator("summary", has_text="Every run").click()
    assert runs.is_visible()


@pytest.mark.parametrize("name", ["none.html", "gpu.html"])
def test_a_sheet_of_paper_is_wide_enough(visit: Any, name: str) -> None:
    page = visit(name, viewport={"width": 760, "height": 1000})
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 760


def test_paper_has_what_the_screen_has_but_the_tools(visit: Any) -> None:
    page = visit("gpu.html")
    page.emulate_media(media="print")
    assert page.locator("ul.controls li").first.is_visible()
    assert page.locator("#filter").is_hidden()
    assert page.locator("svg.forest:visible").count() == page.locator("svg.forest").count() > 5


def test_the_line_at_one_of_the_forest_plot_runs_under_the_mark_on_the_axis(visit: Any) -> None:
    page = visit("gpu.html", java_script_enabled=False)
    one = page.locator("table.speed").evaluate("t => parseFloat(getComputedStyle(t).getPropertyValue('--forest-one'))")
    cell = page.locator("td.forest-cell").nth(3).bounding_box()
    label = page.locator(".forest-head text", has_text=re.compile("^×1$")).bounding_box()
    drawing = page.locator("td.forest-cell svg").nth(2).bounding_box()
    assert abs(cell["x"] + one - (label["x"] + label["width"] / 2)) < 1
    assert abs(drawing["x"] - cell["x"]) < 1


def test_a_footnote_leads_to_its_reason(visit: Any) -> None:
    page = visit()
    page.locator("table.arms sup a").first.click()
    assert page.locator("li:target").get_attribute("id") == "note-1"


def test_on_a_telephone_the_name_of_the_arm_stays_beside_its_figures(visit: Any) -> None:
    page = visit(viewport={"width": 390, "height": 844})
    page.locator(".arms").evaluate("table => { table.parentElement.scrollLeft = 300; }")
    assert page.locator(".arms tbody th").first.bounding_box()["x"] == 16


def test_sorting_changes_the_order_and_says_so(visit: Any) -> None:
    page = visit()
    button = page.get_by_role("button", name="Elements")
    header = page.locator("th", has=button)
    assert header.get_attribute("aria-sort") == "none"
    before = names(page)
    button.click()
    assert header.get_attribute("aria-sort") == "descending"
    sizes = page.locator("table.tensors tbody tr:visible td:nth-child(3)").evaluate_all(
        "cells => cells.map(cell => Number(cell.dataset.v))"
    )
    assert sizes == sorted(sizes, reverse=True)
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    button.click()
    assert names(page) == before


def test_each_heading_sorts_its_own_column(visit: Any) -> None:
    page = visit()
    page.locator("table.tensors thead tr").nth(1).locator("button.sort").nth(
        4
    ).click()  # subnormal at the recommended scale
    values = page.locator("table.tensors tbody td:nth-child(9)").evaluate_all(
        "cells => cells.map(cell => Number(cell.dataset.v))"
    )
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 10


def test_only_the_worst_rows_are_shown_until_all_are_asked_for(visit: Any) -> None:
    page = visit()
    assert len(names(page)) == 20
    page.locator("#all").click()
    assert len(names(page)) == len(samples.tables())
    assert page.locator("#shown").text_content() == f"{len(samples.tables())} of {len(samples.tables())}"


def test_the_filter_is_reached_by_a_slash_and_finds_every_match(visit: Any) -> None:
    page = visit()
    page.keyboard.press("/")
    page.keyboard.type("blocks.2 QKV")
    assert set(names(page)) == {"blocks.2.attn.qkv", "blocks.2.attn.qkv.weight"}
    page.keyboard.press("Escape")
    assert len(names(page)) == 20


def test_the_kind_filter_leaves_one_kind(visit: Any) -> None:
    page = visit()
    page.locator("#kind").select_option("weight_update")
    kinds = page.locator("table.tensors tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.kind)")
    assert set(kinds) == {"weight_update"}
    assert len(kinds) == 16


def test_the_dark_theme_is_kept_over_a_reload(visit: Any) -> None:
    page = visit()
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.locator("#theme").click()
    assert page.evaluate(paper) == "rgb(20, 23, 27)"
    page.reload()
    assert page.evaluate(paper) == "rgb(20, 23, 27)"
    assert page.locator("#theme").text_content() == "Light"


def test_the_system_may_ask_for_dark(visit: Any) -> None:
    page = visit(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"


def test_print_is_light_even_in_the_dark_theme(visit: Any) -> None:
    page = visit(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_deep_link_shows_and_outlines_a_row_beyond_the_worst(visit: Any) -> None:
    page = visit(fragment="#tensor-weight-blocks.0.mlp.fc1.weight")
    target = page.locator("tr:target")
    assert target.is_visible()
    assert target.evaluate("row => getComputedStyle(row).outlineStyle") == "solid"


def test_a_finding_leads_to_its_row(visit: Any) -> None:
    page = visit()
    page.locator("#MP101-head .subject a").click()
    assert page.locator("tr:target .name").text_content() == "head"


@pytest.mark.parametrize("name", ["full.html", "none.html", "gpu.html"])
def test_a_narrow_screen_never_scrolls_sideways(visit: Any, name: str) -> None:
    page = visit(name, viewport={"width": 390, "height": 844})
    if name == "full.html":
        page.wait_for_selector("[data-figure=losses] svg.main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_on_a_narrow_screen_only_tables_and_charts_scroll_and_no_line_of_code_is_torn(visit: Any) -> None:
    page = visit("gpu.html", viewport={"width": 420, "height": 900})
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter((e) => !e.closest(".scroll, .plot, pre, .mem-bars")
          && e.getBoundingClientRect().width && e.getBoundingClientRect().right > 421).map((e) => e.outerHTML)"""
    )
    assert wide == []
    line = page.locator(".operations td:nth-child(3) code").first
    assert line.evaluate("code => code.getClientRects().length") == 1


@pytest.mark.parametrize("name", ["none.html", "gpu.html"])
@pytest.mark.parametrize("width", [800, 1216, 1248, 1440])
def test_no_width_of_window_scrolls_the_page_sideways(visit: Any, width: int, name: str) -> None:
    page = visit(name, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_javascript_verdict_tables_and_charts_are_visible(visit: Any) -> None:
    page = visit("full.html", java_script_enabled=False)
    assert page.locator(".badge").is_visible()
    assert page.locator("table.tensors tbody tr:visible").count() == len(samples.tables())
    assert page.locator("svg.chart:visible").count() == 4
    assert page.locator("svg.strip:visible").count() == len(samples.tables())
    assert page.locator("button.copy:visible, #filter:visible").count() == 0


def test_the_download_is_the_embedded_result(visit: Any) -> None:
    page = visit()
    with page.expect_download() as started:
        page.locator("#download").click()
    assert started.value.suggested_filename == "gpt_tiny.json"
    assert Path(started.value.path()).read_text() == page.locator("#diagnosis").text_content()


def test_a_copy_button_says_what_it_did(visit: Any) -> None:
    page = visit()
    button = page.locator("#do-this button.copy")
    button.click()
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(button).to_have_text(re.compile("Copied|Selected"))  # polls without an eval


def test_a_question_mark_opens_the_keys_and_escape_closes_them(visit: Any) -> None:
    page = visit()
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_enough(visit: Any, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    worst = page.evaluate(
        """() => {
        const light = (css) => {
          const c = document.createElement("canvas").getContext("2d");
          c.fillStyle = css; c.fillRect(0, 0, 1, 1);
          const [r, g, b] = [...c.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = getComputedStyle(document.documentElement);
        const at = (name) => light(style.getPropertyValue(name).trim());
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const texts = ["--ink", "--muted", "--link", "--good", "--t-under", "--t-sub", "--t-norm", "--t-over"];
        return Math.min(...texts.flatMap((t) => ["--paper", "--panel"].map((p) => ratio(at(t), at(p)))));
        }"""
    )
    assert worst >= 4.5
