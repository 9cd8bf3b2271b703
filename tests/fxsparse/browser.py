"""Debian's chromium, driven by playwright, for the tests of the HTML page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install 'fxsparse[test]'")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One page of the browser, with what it complained about and what it asked of the network."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1366, "height": 768}, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=20_000)

    @property
    def ready_ms(self) -> float:
        """Milliseconds from the start of the navigation to the first drawing of the graph."""
        return float(self.page.evaluate("Number(document.body.dataset.ready)"))

    def card(self, item: str) -> Any:
        """A node ("n:NAME") or module ("m:PATH") of the graph."""
        return self.page.locator(f'#canvas .item[data-id="{item}"]')

    def cards(self) -> list[str]:
        """What is on the screen."""
        return list(self.page.eval_on_selector_all("#canvas .item", "all => all.map(one => one.dataset.id)"))

    def column(self, panel: str, key: str) -> list[Any]:
        """The exact values of a column of a panel's last table."""
        cells = f'#{panel} table.sorted td[data-key="{key}"]'
        return list(
            self.page.eval_on_selector_all(cells, "all => all.map(one => one.dataset.value === undefined ? null : +one.dataset.value)")
        )

    def close(self) -> None:
        self.context.close()
