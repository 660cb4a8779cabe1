"""The report in a real browser: no console message, no overflow, and images that switch.

Debian's Chromium, driven by playwright. Without it the tests are skipped, unless CXR_BROWSER=required
(as .ci/run sets it): then they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from report.page import write_report
from tests.helpers.report_case import Case, make_case

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, SCREEN = 390, 1280
LONG = "a_class_whose_name_has_no_place_to_break_" * 2


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None and os.environ.get("CXR_BROWSER") == "required":
        pytest.fail("CXR_BROWSER=required, and there is no Chromium (apt-get install chromium)")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a switch, and with names and commands that are too long to fit."""
    case: Case = make_case(tmp_path_factory.mktemp("browser"), ["COVID", LONG, "Normal"])
    table = pd.read_csv(case.folder / "predictions.csv", dtype=str)
    table["source"] = table["source"] + "/with/a/very/long/address" * 6
    table.to_csv(case.folder / "predictions.csv", index=False)
    case.metrics(evaluation={"command": "python test.py --weights " + "/folder" * 40})
    return write_report(case.folder, case.run)


class Visit:
    """An open page, with its console messages and requests."""

    def __init__(self, browser: Any, report: Path, width: int = SCREEN, **options: Any) -> None:
        self.page = browser.new_context(viewport={"width": width, "height": 900}, **options).new_page()
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *error: object) -> None:
        self.page.context.close()

    def opacity(self) -> float:
        """Return the opacity of the first overlay."""
        return float(self.page.locator(".switch .overlay").first.evaluate("e => getComputedStyle(e).opacity"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, SCREEN])
def test_quiet_alone_and_never_wider_than_the_screen(browser: Any, report: Path, width: int, scheme: str) -> None:
    with Visit(browser, report, width, color_scheme=scheme) as visit:
        for state in ("as it opens", "with the checklists open"):
            widest = visit.page.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
            assert widest <= width, state
            visit.page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        visit.page.evaluate("document.querySelectorAll('img').forEach(image => image.scrollIntoView())")
        broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"
        assert visit.page.evaluate(broken) == 0
        assert visit.messages == []
        assert [url for url in visit.requests if not url.startswith("data:")] == [report.as_uri()]
        ground = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_mouse_switches_the_image(browser: Any, report: Path) -> None:
    with Visit(browser, report) as visit:
        button = visit.page.locator("button.switch").first
        assert visit.opacity() == 0
        button.hover()
        assert visit.opacity() == 1
        visit.page.mouse.move(1, 1)
        assert visit.opacity() == 0
        button.click()
        visit.page.mouse.move(1, 1)
        assert visit.opacity() == 1 and button.get_attribute("aria-pressed") == "true"
        boxes = [image.bounding_box() for image in button.locator("img").all()]
        assert boxes[0] == boxes[1] and boxes[0]["width"] > 100


def test_the_keyboard_switches_the_image(browser: Any, report: Path) -> None:
    with Visit(browser, report) as visit:
        button = visit.page.locator("button.switch").first
        button.focus()
        for key, expected in (("Enter", 1), ("Enter", 0), ("Space", 1)):
            visit.page.keyboard.press(key)
            assert visit.opacity() == expected


def test_a_finger_switches_the_image(browser: Any, report: Path) -> None:
    with Visit(browser, report, PHONE, has_touch=True, is_mobile=True) as visit:
        button = visit.page.locator("button.switch").first
        for expected in (1, 0, 1):
            button.tap()
            assert visit.opacity() == expected


def test_light_and_dark_can_be_chosen(browser: Any, report: Path) -> None:
    with Visit(browser, report, color_scheme="dark") as visit:
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = visit.page.evaluate(ground)
        axis = visit.page.locator("figure svg text").first
        assert axis.evaluate("e => getComputedStyle(e).fill") == "rgb(230, 233, 237)"
        visit.page.locator("#theme").click()
        assert visit.page.evaluate(ground) == "rgb(255, 255, 255)" != dark
        assert axis.evaluate("e => getComputedStyle(e).fill") == "rgb(27, 31, 36)"
        visit.page.locator("#theme").click()
        assert visit.page.evaluate(ground) == dark


def test_print_opens_the_checklists_and_shows_both_images(browser: Any, report: Path) -> None:
    with Visit(browser, report, color_scheme="dark") as visit:
        visit.page.emulate_media(media="print")
        assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.opacity() == 1
        images = visit.page.locator("button.switch").first.locator("img").all()
        left, right = (image.bounding_box() for image in images)
        assert left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
        opened = "document.querySelectorAll('details[open]').length"
        visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert visit.page.evaluate(opened) == 3
        visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert visit.page.evaluate(opened) == 0
