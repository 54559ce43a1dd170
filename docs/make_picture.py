"""The README's picture: the first screen of reports/resnet50.html in Chromium.

python docs/make_picture.py
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(
        executable_path="/usr/bin/chromium",
        args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
    )
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto((ROOT / "reports" / "resnet50.html").as_uri())
    page.screenshot(path=str(ROOT / "docs" / "report.png"))
    browser.close()
