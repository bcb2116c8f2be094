"""A real browser without a window, and what a page may not do in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (400, 1400)
SCHEMES = ("light", "dark")
HEIGHT = 900


@contextmanager
def chromium() -> Iterator[Any]:
    """Chromium as playwright drives it. Skips where one of them is not installed, but fails there if CI is set."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("Chromium or playwright is not installed (apt-get install chromium; pip install playwright)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, file: Path, width: int, scheme: str, **more: Any) -> Iterator[tuple[Any, list[str]]]:
    """A page of a file, without a network, and the list of what it should not have done so far."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme, offline=True, **more)
    try:
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(("data:", file.as_uri())) or
                problems.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        yield page, problems
    finally:
        context.close()


def examine(browser: Any, file: Path, widths: Sequence[int] = WIDTHS, schemes: Sequence[str] = SCHEMES) -> set[str]:
    """The kinds of what is wrong with a report that has several grids, in both schemes, narrow and wide."""
    found: set[str] = set()
    for width in widths:
        for scheme in schemes:
            with opened(browser, file, width, scheme) as (page, problems):
                found |= {*_look(page, width, scheme)}
                found |= {problem.partition(":")[0] for problem in problems}
    return found


def _look(page: Any, width: int, scheme: str) -> Iterator[str]:
    page.wait_for_timeout(50)
    if page.evaluate("document.documentElement.scrollWidth") > width:
        yield "scroll"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(v => v < 60)")
    if dark != (scheme == "dark"):
        yield "scheme"
    if page.locator(".view img").count() == 0 or page.locator("#slider").count() == 0:
        yield "picture"
        return
    before = _state(page)
    page.locator("#slider").focus()
    page.keyboard.press("ArrowLeft")
    after = _state(page)
    if before["source"] == after["source"] or not after["width"]:
        yield "picture"
    if before["cursor"] == after["cursor"]:
        yield "cursor"
    if before["now"] == after["now"] or after["spoken"] != after["now"]:
        yield "label"
    page.emulate_media(media="print")
    stills = page.evaluate("[...document.querySelectorAll('.stills img')].map(one => one.offsetWidth && one.naturalWidth)")
    if sum(map(bool, stills)) < 3 or page.locator("#slider").is_visible():
        yield "print"


def _state(page: Any) -> dict[str, Any]:
    return page.evaluate("""() => {
        const image = document.querySelector('.view img'), slider = document.getElementById('slider');
        return {source: image.src, width: image.naturalWidth, now: document.getElementById('now').value,
                cursor: document.querySelector('.cursor').getAttribute('transform'),
                spoken: slider.getAttribute('aria-valuetext')};
    }""")
