"""The report opened in a headless Chromium: it draws, its switches work, it asks the network for nothing."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_crystal import LOOP
from small_report import write_finished

from densemble.report.scene import PALETTE
from densemble.report.writing import write_report

pytest.importorskip("molstar_cli", reason="the 3D view of a report is drawn by the package molstar-cli")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright, to open a report")
Image = pytest.importorskip("PIL.Image", reason="pip install pillow, to look at screenshots")

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SIZES = ((1366, 768), (800, 1000))
WAIT = 120_000  # ms; software rendering beside other work
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:playwright"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def report(finished, crystal, tmp_path_factory) -> Path:
    """With a final model of two states, B and A."""
    folder = tmp_path_factory.mktemp("seen") / "out"
    residues = [f"A:{number}" for number in range(179, 187)]
    write_finished(finished.folder, crystal.reference, LOOP, folder, residues=residues)
    return write_report(folder)


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with playwright.sync_playwright() as run:
        opened = run.chromium.launch(executable_path=CHROMIUM, args=[*options, "--ignore-gpu-blocklist"])
        yield opened
        opened.close()


@pytest.fixture(scope="module", params=SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def page(request, browser, report):
    """The page drawn, with what it said and asked for; tests leave it as it was."""
    width, height = request.param
    opened = browser.new_page(viewport={"width": width, "height": height})
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(f"{message.type}: {message.text[:300]}"))
    opened.on("pageerror", lambda error: opened.said.append(f"error: {error}"))
    opened.on("request", lambda asked: opened.asked.append(asked.url[:300]))
    opened.goto(report.as_uri())
    opened.wait_for_selector("#view-figure[data-state]", timeout=WAIT)
    assert opened.locator("#view-figure").get_attribute("data-state") == "drawn"
    yield opened
    opened.close()


def seen(page) -> np.ndarray:
    """The 3D view as it is when it no longer changes, red, green and blue of each pixel."""
    before = None
    for _ in range(20):
        page.wait_for_timeout(700)
        picture = page.locator("#view").screenshot()
        if picture == before:
            break
        before = picture
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def hue_is(pixels: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has a colour, light or dark: its direction from black, and not grey."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
    length = np.linalg.norm(pixels, axis=-1) + 1e-9
    vivid = pixels.max(axis=-1) - pixels.min(axis=-1) > 40
    return vivid & (pixels @ wanted / length / np.linalg.norm(wanted) > 0.985)


def mesh(pixels: np.ndarray) -> np.ndarray:
    """Where a picture has the lines of the map: bluish grey, neither white nor the grey of the rest."""
    blue = pixels[..., 2] - pixels[..., 0]
    return (blue > 14) & (blue < 60) & (pixels.max(axis=-1) < 235)


def test_states_and_map_are_drawn_and_can_be_switched(page):
    first, second = PALETTE[1], PALETTE[0]  # of B, the most occupied, and of A
    whole = seen(page)
    assert (whole == 255).all(axis=-1).mean() > 0.3, "the background is white"
    for colour in (first, second):
        assert hue_is(whole, colour).sum() > 300
    assert mesh(whole).sum() > 1000

    page.locator("#show-state1").uncheck()
    without = seen(page)
    assert hue_is(without, second).sum() < 0.05 * hue_is(whole, second).sum()
    assert hue_is(without, first).sum() > 0.8 * hue_is(whole, first).sum()

    page.locator("#show-state1").focus()
    page.keyboard.press("Space")
    assert hue_is(seen(page), second).sum() > 0.9 * hue_is(whole, second).sum()

    page.locator("#show-map").uncheck()
    bare = seen(page)
    assert mesh(bare).sum() < 0.25 * mesh(whole).sum()
    assert hue_is(bare, first).sum() > 0.9 * hue_is(whole, first).sum()

    page.locator("#show-map").check()
    level = page.locator("#level")
    middle = level.input_value()
    level.fill(level.get_attribute("max"))
    high = seen(page)
    assert mesh(high).sum() < 0.6 * mesh(whole).sum(), "less of the map at a higher level"
    shown = float(page.locator("#level-value").inner_text())
    assert shown == pytest.approx(float(level.get_attribute("max")), rel=1e-2)

    level.fill(middle)
    page.locator("#show-around").uncheck()
    page.locator("#show-around").check()
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("data:", "blob:"))] == [page.url]


def test_page_fits_its_window(page):
    """Nothing but wide tables, which scroll by themselves, is wider than the window."""
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"]
    assert page.locator("h1").is_visible()
    assert page.locator("#view-figure .flat").is_hidden()
    broken = "[...document.images].filter((x) => !x.complete || x.naturalWidth === 0).length"
    assert page.evaluate(broken) == 0


def test_wheel_scrolls_the_page_until_the_view_is_clicked(page):
    page.locator("#view").scroll_into_view_if_needed()
    before = page.evaluate("scrollY")
    page.locator("#view").hover()
    page.mouse.wheel(0, 120)
    page.wait_for_function("(before) => scrollY > before", arg=before, timeout=WAIT)


def test_print_has_the_figure_in_place_of_the_view(page):
    page.emulate_media(media="print")
    assert page.locator("#view").is_hidden()
    assert page.locator(".controls").is_hidden()
    assert page.locator("#view-figure .flat").is_visible()
    page.emulate_media(media="screen")


def test_without_a_3d_view_the_figure_is_shown(browser, report):
    """A browser that has no WebGL says so, and shows the states all the same."""
    opened = browser.new_page()
    opened.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    opened.goto(report.as_uri())
    opened.wait_for_selector('#view-figure[data-state="failed"]', timeout=WAIT)
    assert opened.locator("#view-figure .flat").is_visible()
    assert "Drag to turn" not in opened.locator("#view-figure").inner_text()
    assert "cannot be drawn" in opened.locator("#view-problem").inner_text()
    opened.close()
