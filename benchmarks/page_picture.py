"""Takes docs/page.png, a picture of the server's page. It needs Playwright, Chromium and a running `gradus serve tiny`.

python benchmarks/page_picture.py [address] [browser]
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PROMPT = "what color is the fev ?"
PICTURE = Path(__file__).resolve().parents[1] / "docs/page.png"


def take(address: str, browser: str) -> None:
    """Asks all models one prompt side by side, and points at the first token of the second answer."""
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = opened.new_page(viewport={"width": 1000, "height": 530})
        page.goto(f"{address}#side")
        page.wait_for_selector("#side-models input")
        page.get_by_text("Settings").click()
        page.get_by_label("Seed").fill("3")
        page.get_by_text("Settings").click()
        page.fill("#side-text", PROMPT)
        page.press("#side-text", "Enter")
        page.wait_for_selector("text=All have answered.")
        page.locator(".answer").nth(1).locator(".token").first.hover()
        page.screenshot(path=PICTURE)
        opened.close()


if __name__ == "__main__":
    take(*(sys.argv[1:] + ["http://127.0.0.1:8000/", "/usr/bin/chromium"][len(sys.argv) - 1 :]))
