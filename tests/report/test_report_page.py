"""Reports in a real browser: what a person sees and does, and that the check would notice if it were not so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, examine, opened
from report_runs import make_run

from stylegan_dist.report.page import write_report

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder / "photos", ticks=300)
    return write_report([run], folder / "report.html").path


def test_nothing_is_wrong_with_the_page_of_a_run(browser, report):
    assert examine(browser, report) == set()


def test_nothing_is_wrong_with_the_page_of_several_runs(browser, tmp_path):
    runs = [make_run(tmp_path / ("a" * 60), grids=4), make_run(tmp_path / "b", grids=7, kimg=300, run__seed=4)]
    assert examine(browser, write_report(runs, tmp_path / "report.html").path) == set()


@pytest.mark.parametrize(("old", "new", "kind"), [
    ("</body>", "<script>console.warn('x')</script></body>", "console"),
    ("</body>", "<script>nothing()</script></body>", "error"),
    ("</body>", "<img src='http://127.0.0.1:9/x.png' alt=''></body>", "console"),  # which the policy blocks
    ("</body>", "<div style='width: 1500px'>x</div></body>", "scroll"),
    ("color-scheme: light dark", "color-scheme: light", "scheme"),
    ("view.image.src = source", "view.image.title = source", "picture"),
    ("chart.cursor.setAttribute", "chart.svg.setAttribute", "cursor"),
    ('slider.setAttribute("aria-valuetext"', 'slider.setAttribute("title"', "label"),
    (".js .stills { display: grid;", ".js .stills { color: red;", "print"),
])
def test_the_check_notices_what_is_broken(browser, report, tmp_path, old, new, kind):
    text = report.read_text("utf-8")
    assert old in text
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace(old, new), "utf-8")
    assert kind in examine(browser, broken, [400], ["dark"])


def test_a_request_is_noticed_where_the_policy_does_not_block_it(browser, report, tmp_path):
    text = re.sub("<meta http-equiv[^>]*>", "", report.read_text("utf-8"))
    text = text.replace("</body>", "<img src='http://127.0.0.1:9/x.png' alt=''></body>")
    (tmp_path / "broken.html").write_text(text, "utf-8")
    assert "request" in examine(browser, tmp_path / "broken.html", [400], ["dark"])


def test_a_click_on_a_curve_takes_the_pictures_there(browser, report):
    with opened(browser, report, 1400, "light") as (page, problems):
        curve = page.locator("#m0")
        box = curve.bounding_box()
        curve.click(position={"x": box["width"] * 0.55, "y": box["height"] * 0.5})
        assert page.locator("#now").inner_text() == "300 kimg"
        assert "300 kimg" in page.locator(".view img").get_attribute("alt")
        page.locator("#reals").click()
        assert "Real" in page.locator(".view img").get_attribute("alt")
        page.locator("#best").click()
        assert page.locator("#slider").input_value() == "5"  # of the grids, 500 kimg is the nearest to 480
        assert problems == []


def test_the_script_writes_numbers_as_the_page_does(browser, report):
    texts = []
    for script in (False, True):
        with opened(browser, report, 1400, "light", java_script_enabled=script) as (page, _):
            texts.append(page.locator("b[data-value]").all_inner_texts())  # at the end of the curves
    assert len(texts[0]) > 12
    assert texts[0] == texts[1]


def test_pictures_play_to_the_end(browser, report):
    with opened(browser, report, 400, "light") as (page, _):
        page.locator("#slider").press("Home")
        assert page.locator("#now").inner_text() == "0 kimg"
        page.locator("#play").click()
        page.locator("#play", has_text="Stop").wait_for()
        page.locator("#play", has_text="Play").wait_for()
        assert page.locator("#now").inner_text() == "600 kimg"


def test_what_a_screen_reader_says(browser, report):
    with opened(browser, report, 1400, "light") as (page, _):
        tree = page.locator("body").aria_snapshot()
    assert 'slider "Samples at"' in tree
    assert re.search(r'img "Losses\. generator from [\d.]+ to [\d.]+', tree)
    assert 'img "Samples at 600 kimg"' in tree
    for heading in ("photos", "Samples", "Scores", "Curves", "Faults survived", "Configuration", "Versions", "Numbers"):
        assert f'heading "{heading}"' in tree


def test_without_scripts_pictures_and_curves_are_there(browser, report):
    with opened(browser, report, 1400, "light", java_script_enabled=False) as (page, problems):
        assert page.locator(".stills img").count() == 3
        assert page.locator(".stills img").first.is_visible()
        assert not page.locator("#slider").is_visible()
        assert page.locator("#m0 path.curve").count() == 4
        assert problems == []


def test_it_prints(browser, report, tmp_path):
    with opened(browser, report, 1400, "light") as (page, _):
        page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
