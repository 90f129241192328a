"""The explorer by keyboard, on paper, and without motion."""

import pytest
from playwright.sync_api import Page, expect

from tests.browser import open_page
from tests.explorer_stage import Node, build_busy
from tests.fake_views import receipt_id

RECEIPT = f"/receipts/{receipt_id(5)}"
PAGES = [
    "/",
    "/receipts",
    RECEIPT,
    "/jobs/job_01K10000000000000000000026",
    "/playground",
    "/verify",
]
MAX_STOPS = 300

STOPS = """() => {
  const controls = "a[href], button, input, select, textarea, summary, [tabindex='0']";
  const stops = Array.from(document.querySelectorAll(controls)).filter(
    (e) => e.checkVisibility({ visibilityProperty: true }) && !e.disabled);
  stops.forEach((e, index) => { e.dataset.stop = index + 1; });
  return stops.map((e) => Number(e.dataset.stop));
}"""
FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const outline = parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== "none";
  return [Number(e.dataset.stop ?? 0), outline, e.outerHTML.slice(0, 120)];
}"""
NOTE_MOTION = """window.moving = new Promise((tell) => {
  window.addEventListener("pagereveal", async (event) => {
    await event.viewTransition?.ready.catch(() => {});
    tell(document.getAnimations().length);
  });
})"""


@pytest.fixture(scope="module", name="node")
def start_node():
    with Node(build_busy()) as node:
        yield node


def press_through(page: Page) -> dict[int, tuple[bool, str]]:
    """Press Tab until the page is left; return, by stop, whether focus shows, and the element."""
    seen: dict[int, tuple[bool, str]] = {}
    for _ in range(MAX_STOPS):
        page.keyboard.press("Tab")
        stop, is_outlined, html = page.evaluate(FOCUSED)
        if stop == 0:
            break
        # The parts of a date are stops of their own: the field is outlined, or the part is.
        seen[stop] = (is_outlined or seen.get(stop, (False, ""))[0], html)
    return seen


@pytest.mark.parametrize("path", PAGES)
def test_every_control_is_reached_by_tab_in_order_and_shows_its_focus(browser, node, path):
    with open_page(browser, node, path) as page:
        page.wait_for_load_state("load")
        stops = page.evaluate(STOPS)
        seen = press_through(page)
        assert list(seen) == sorted(seen), "the order of the page is the order of its text"
        assert set(stops) - seen.keys() == set()
        assert [html for is_outlined, html in seen.values() if not is_outlined] == []


def test_escape_closes_suggestions_and_keeps_what_was_typed(browser, node):
    with open_page(browser, node, "/blocks") as page:
        page.keyboard.press("/")
        page.keyboard.type("dem")
        expect(page.locator("#offers option")).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator("#offers option")).to_have_count(0)
        expect(page.locator("#find")).to_have_value("dem")
        expect(page.locator("#find")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator("#find")).to_have_value("")


@pytest.mark.parametrize(("motion", "moves"), [("no-preference", True), ("reduce", False)])
def test_pages_move_into_each_other_unless_the_reader_wants_no_motion(browser, node, motion, moves):
    with open_page(browser, node, "/blocks", reduced_motion=motion) as page:
        page.add_init_script(NOTE_MOTION)
        page.get_by_role("link", name="Miners", exact=True).click()
        page.wait_for_url("**/miners")
        assert (page.evaluate("window.moving") > 0) is moves


@pytest.mark.parametrize("path", ["/blocks/29", RECEIPT, "/accounts/demo", "/charts/throughput"])
def test_every_page_prints_dark_on_white_and_as_wide_as_the_paper(browser, node, path):
    paper = {"width": 650, "height": 900}  # of an A4 page within its margins
    with open_page(browser, node, path, color_scheme="dark", viewport=paper) as page:
        page.emulate_media(media="print")
        for gone in ("#find", ".status", ".bar nav", "#theme"):
            expect(page.locator(gone).first).to_be_hidden()
        look = page.evaluate(
            """() => {
              const style = getComputedStyle(document.querySelector("main"));
              const root = document.documentElement;
              return [getComputedStyle(root).backgroundColor, style.color, root.scrollWidth];
            }"""
        )
        assert look[0] == "rgb(255, 255, 255)"
        assert max(map(int, look[1].strip("rgb()").split(", "))) < 80
        assert look[2] <= paper["width"]
