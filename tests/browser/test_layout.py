"""How the page is laid out in Chromium: drawings that fit and folds that open, at every width and on paper."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.browser

TELEPHONE = {"width": 390, "height": 844}


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
@pytest.mark.parametrize("name", ["full.html", "none.html", "gpu.html"])
def test_every_chart_fits_a_telephone(visit: Any, name: str, script: bool) -> None:
    page = visit(name, viewport=TELEPHONE, java_script_enabled=script)
    if script and name == "full.html":
        page.wait_for_selector("[data-figure=losses] svg.main-svg")
    plots = page.locator(".plot")
    assert plots.count() >= 4
    sizes = plots.evaluate_all("all => all.map(plot => [plot.scrollWidth, plot.clientWidth])")
    assert [(wide, room) for wide, room in sizes if wide > room] == []


def test_the_labels_of_a_chart_stay_inside_it_at_any_width(visit: Any) -> None:
    for width in (360, 390, 800, 1280):
        page = visit("none.html", viewport={"width": width, "height": 800}, java_script_enabled=False)
        cut = page.locator(".plot").evaluate_all(
            """all => all.flatMap(plot => {
              const box = plot.getBoundingClientRect();
              return [...plot.querySelectorAll("text")].filter(text => {
                const it = text.getBoundingClientRect();
                return it.left < box.left - 1 || it.right > box.right + 1;
              }).map(text => text.textContent);
            })"""
        )
        assert cut == []


def test_lines_keep_their_breadth_and_dots_their_roundness_when_a_chart_is_narrow(visit: Any) -> None:
    page = visit("none.html", viewport=TELEPHONE, java_script_enabled=False)
    lines = page.locator("svg.stretched path").evaluate_all("all => all.map(p => getComputedStyle(p).vectorEffect)")
    assert set(lines) == {"non-scaling-stroke"}
    dots = page.locator("circle.forecast").evaluate_all(
        "all => all.map(dot => { const it = dot.getBoundingClientRect(); return it.width / it.height; })"
    )
    assert all(abs(ratio - 1) < 0.1 for ratio in dots)


def test_the_window_can_be_seen_on_a_telephone(visit: Any) -> None:
    page = visit("none.html", viewport=TELEPHONE, java_script_enabled=False)
    assert page.locator("rect.window").bounding_box()["width"] >= 2


@pytest.mark.parametrize("section", ["glossary", "other-formats"])
def test_a_link_to_a_folded_section_opens_it(visit: Any, section: str) -> None:
    fold = f"#{section} > details.fold"
    page = visit("gpu.html")
    assert page.locator(fold).evaluate("fold => fold.open") is False
    page.locator(f"nav a[href='#{section}']").click()
    page.locator(f"#{section} dl").wait_for(state="visible")
    assert visit("gpu.html", fragment=f"#{section}").locator(fold).evaluate("fold => fold.open") is True


@pytest.mark.parametrize("section", ["glossary", "other-formats"])
def test_without_a_script_a_fold_opens_on_a_click(visit: Any, section: str) -> None:
    page = visit("gpu.html", java_script_enabled=False)
    assert not page.locator(f"#{section} dl").is_visible()
    page.locator(f"#{section} > details.fold > summary").click()
    assert page.locator(f"#{section} dl").is_visible()


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_paper_has_what_is_folded_and_the_screen_its_folds_back(visit: Any, script: bool) -> None:
    page = visit("gpu.html", java_script_enabled=script)
    folded = len(page.pdf())
    page.locator("#glossary summary").click()
    assert abs(len(page.pdf()) - folded) < 0.01 * folded  # the same sheets, folded on the screen or not
    if script:
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.locator("details:not([open])").count() > 2


def test_what_to_do_is_seen_without_a_scroll(visit: Any) -> None:
    page = visit("full.html")
    assert page.locator("#do-this h2").bounding_box()["y"] < 900
