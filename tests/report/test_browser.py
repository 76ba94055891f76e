"""Every page in headless Chromium: nothing is fetched, nothing complains, tables sort, all is readable.

Needs the extra `browser`, and a Chromium: the system's (`chromium`), or Playwright's (`playwright install chromium`).
"""

import shutil

import pytest

from abd_jax.report import write_page
from abd_jax.report.calibration import write_calibration
from tests.report import test_audit
from tests.report.conftest import make_directory
from tests.training.test_calibration import ROWS

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.browser
NARROW, WIDE = {"width": 390, "height": 844}, {"width": 1440, "height": 900}

CONTRAST = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = numbers(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if ((numbers(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || node.closest("svg, script, style") || !node.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), node.tagName + ": " + node.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]).slice(0, 3);
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of a reproduction, of an audit with a student, and of a calibration."""
    top = tmp_path_factory.mktemp("pages")
    test_audit.write(top)
    write_calibration(top / "zoo", ROWS, test_audit.ORIGIN)
    reproduction = make_directory(top / "demo", triggers=("badnet_sq", "blend"), seeds=(0, 1), defenses=("none", "abd"))
    return {
        "reproduce": write_page(reproduction),
        "audit": top / "out" / "report.html",
        "calibration": top / "zoo" / "report.html",
    }


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        system = shutil.which("chromium")
        launched = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, pages):
    """Opens a page; at the end of the test nothing may have been asked for, and nothing complained of."""
    asked, complaints, contexts = [], [], []

    def open_page(name, viewport=WIDE, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


NAMES = ("reproduce", "audit", "calibration")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [NARROW, WIDE], ids=["390", "1440"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_shows_its_pictures_and_can_be_read(opened, name, viewport, scheme):
    page = opened(name, viewport, scheme)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= viewport["width"]
    broken = "[...document.images].filter((i) => !i.complete || !i.naturalWidth || !i.alt).length"
    assert page.evaluate(broken) == 0
    assert page.evaluate("[...document.querySelectorAll('svg')].filter((s) => !s.ariaLabel).length") == 0
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= viewport["width"]
    worst = page.evaluate(CONTRAST)
    assert worst[0][0] >= 4.5, worst
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('td, p')).fontSize)")
    assert size >= 12


@pytest.mark.parametrize("name", NAMES)
def test_tables_sort_both_ways_by_mouse_and_keyboard(opened, name):
    page = opened(name)
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    tables = page.locator("table.sortable")
    assert tables.count() >= 1
    sorted_columns = 0
    for index in range(tables.count()):
        table = tables.nth(index)
        for column in range(table.locator("thead th").count()):
            cells = f"tbody tr > :nth-child({column + 1})"
            keys = "(cells) => cells.map((c) => c.dataset.sort ?? c.textContent.trim())"
            button = table.locator("thead th").nth(column).locator("button")
            button.click()
            rising = table.locator(cells).evaluate_all(keys)
            assert table.locator("thead th").nth(column).get_attribute("aria-sort") == "ascending"
            button.focus()
            page.keyboard.press("Enter")
            falling = table.locator(cells).evaluate_all(keys)
            numbers = [_number(key) for key in rising]
            if None not in numbers:
                assert numbers == sorted(numbers)
                assert [_number(key) for key in falling] == sorted(numbers, reverse=True)
                sorted_columns += 1
            assert sorted(rising) == sorted(falling)
    assert sorted_columns >= 2


def _number(key):
    try:
        return float(key)
    except ValueError:
        return None


@pytest.mark.parametrize("name", NAMES)
def test_on_paper_nothing_is_folded(opened, name):
    page = opened(name, scheme="dark")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('details')].every((part) => part.open)")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate("document.querySelectorAll('details[open]').length") == 0
    assert page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize("name", NAMES)
def test_every_anchor_leads_somewhere(opened, name):
    page = opened(name)
    assert page.evaluate("[...document.querySelectorAll('a')].every((a) => document.querySelector(a.hash))")
