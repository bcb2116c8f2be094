"""The page of the viewer in a real browser, and the command that serves it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import chromium
from launching import ROOT, TIMEOUT, wait_until
from PIL import Image
from untrained_run import R3GAN, TINY, make_run
from view_server import served

from stylegan_dist.latents.trained import open_trained
from stylegan_dist.view.scene import open_scene
from stylegan_dist.view.settings import Settings

pytestmark = pytest.mark.full
SHOWN = """() => { const one = document.getElementById('canvas'), side = one.width, pen = new OffscreenCanvas(side, side)
    .getContext('2d', {willReadFrequently: true});
    pen.drawImage(one, 0, 0);
    return [...pen.getImageData(0, 0, side, side).data]; }"""
SET = """([name, value, kind]) => { const one = document.getElementById(name); one.value = value;
    one.dispatchEvent(new Event(kind, {bubbles: true})); }"""
WAIT = 1000 * TIMEOUT


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def run(tmp_path_factory, labelled_shards) -> Path:
    data = [f"data.shards={labelled_shards}", *TINY[1:]]
    return make_run(tmp_path_factory.mktemp("viewed") / "run", 3, knobs=data, contrast=3)


@contextmanager
def page_of(browser: Any, url: str, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """The page, which must ask 127.0.0.1 alone and find nothing wrong."""
    problems: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": height})
    try:
        page = context.new_page()
        page.on("console", lambda message: problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", lambda request: urllib.parse.urlsplit(request.url).hostname == "127.0.0.1" or
                problems.append(f"request: {request.url}"))
        page.goto(url)
        settle(page)
        yield page
        assert page.inner_text("#note") == ""
        assert problems == []
    finally:
        context.close()


def settle(page: Any) -> None:
    """Wait until the picture is that of the controls."""
    page.wait_for_selector("#canvas[data-state=newest]", timeout=WAIT)


def shown(page: Any) -> np.ndarray:
    settle(page)
    side = page.evaluate("document.getElementById('canvas').width")
    return np.array(page.evaluate(SHOWN), np.uint8).reshape(side, side, 4)[..., :3]


def put(page: Any, name: str, value: object, kind: str = "input") -> None:
    page.evaluate(SET, [name, str(value), kind])


def drawn(run: Path, **settings: Any) -> np.ndarray:
    return open_scene(open_trained(run, "cpu"), None).picture(Settings(**settings)).permute(1, 2, 0).numpy()


def test_the_controls_draw(browser, run):
    with served(run) as server, page_of(browser, server.url) as page:
        assert np.array_equal(shown(page), drawn(run))
        before = shown(page)
        for name, value, kind in (
                ("seed-slider", 4, "input"), ("psi", 0.6, "input"), ("label", 2, "change"), ("blend", 0.4, "input"),
                ("second", 9, "input"), ("mix_to", 2, "input"), ("move1", 2, "input"), ("noise", "none", "change"),
                ("noise", "seed", "change"), ("noise_seed", 3, "input")):
            put(page, name, value, kind)
            after = shown(page)
            assert not np.array_equal(before, after), name
            before = after
        moves = (0.0, 2.0, *[0.0] * 8)
        settings = {"seed": 4, "psi": 0.6, "label": 2, "blend": 0.4, "second": 9, "mix_to": 2, "moves": moves, "noise": "seed",
                    "noise_seed": 3}
        assert np.array_equal(before, drawn(run, **settings))
        page.reload()
        assert np.array_equal(shown(page), before)
        with page.expect_download() as saved:
            page.click("#save")
        assert np.array_equal(np.asarray(Image.open(saved.value.path())), before)
        assert saved.value.suggested_filename == "seed0004.png"
        with page.expect_download() as saved:
            page.click("#latent")
        assert saved.value.suggested_filename == "seed0004.safetensors"
        page.click("#reset")
        assert np.array_equal(shown(page), drawn(run))


def test_the_keys(browser, run):
    with served(run) as server, page_of(browser, server.url) as page:
        for key, seed in (("ArrowRight", 1), ("ArrowUp", 11), ("ArrowLeft", 10), ("ArrowDown", 0), ("ArrowLeft", 0)):
            page.keyboard.press(key)
            assert page.input_value("#seed") == str(seed)
        page.keyboard.press("ArrowRight")
        assert np.array_equal(shown(page), drawn(run, seed=1))
        page.keyboard.press("r")
        assert page.input_value("#seed") != "1"
        page.focus("#psi")
        page.keyboard.press("ArrowLeft")
        settle(page)
        assert page.input_value("#psi") == "0.99"
        with page.expect_download():
            page.keyboard.press("s")
        page.keyboard.press("?")
        assert page.is_visible("#keys")
        page.keyboard.press("Escape")
        assert not page.is_visible("#keys")


def test_dragging_ends_at_the_newest_state(browser, run):
    """As many frames are asked for as are shown: one request is under way at a time."""
    with served(run) as server, page_of(browser, server.url) as page:
        before = server.newest.asked
        page.evaluate("""() => { for (let seed = 0; seed < 200; seed += 1) { const one = document.getElementById('seed-slider');
            one.value = seed; one.dispatchEvent(new Event('input')); } }""")
        assert np.array_equal(shown(page), drawn(run, seed=199))
        assert server.newest.asked - before <= 2


def test_a_request_that_another_window_has_replaced_is_asked_again(browser, run):
    ready = threading.Event()
    with served(run) as server, page_of(browser, server.url) as page, ThreadPoolExecutor(2) as others:
        newest, before = server.newest, server.newest.asked
        try:
            others.submit(newest.run, lambda: ready.wait(TIMEOUT))
            wait_until(lambda: newest.asked == before + 1)
            put(page, "seed-slider", 6)
            wait_until(lambda: newest.asked == before + 2)
            replaced = others.submit(newest.run, lambda: True)
            wait_until(lambda: newest.asked == before + 4)  # the page again
            assert replaced.result(TIMEOUT) is None
        finally:
            ready.set()
        assert np.array_equal(shown(page), drawn(run, seed=6))


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_page(browser, run, width):
    with served(run) as server, page_of(browser, server.url, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        assert page.evaluate("document.getElementById('canvas').getBoundingClientRect().bottom") > 100  # it stays in sight


def test_a_generator_without_w(browser, tmp_path):
    run = make_run(tmp_path / "run", 0, knobs=R3GAN)
    with served(run) as server, page_of(browser, server.url) as page:
        for name in ("psi", "label", "mix_to", "noise", "moves"):
            assert not page.is_visible(f"#{name}")
        put(page, "blend", 0.5)
        assert np.array_equal(shown(page), drawn(run, blend=0.5))


def test_the_command(browser, run):
    """It serves until Ctrl-C, and then says so in a line, and on the page."""
    command = [sys.executable, "-m", "stylegan_dist.cli", "view", str(run), "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                               env=os.environ | {"OMP_NUM_THREADS": "1"},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # ignored below `command &`
    try:
        assert process.stdout
        assert "Ctrl-C ends it" in process.stdout.readline()
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url.replace("/?", "/frame?"), timeout=TIMEOUT) as reply:
            assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.read()))), drawn(run))
        page = browser.new_page()
        page.goto(url)
        settle(page)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, out.strip(), errors) == (0, "ended", "")
        put(page, "seed-slider", 1)
        page.wait_for_selector("#note:text('has ended')", timeout=WAIT)
        page.close()
    finally:
        process.kill()
        process.communicate()
