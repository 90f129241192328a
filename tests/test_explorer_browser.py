"""The explorer in Chromium: only our own origin, nothing in the console, nothing too wide."""

import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.browser import new_context, open_page
from tests.explorer_stage import Node
from tests.fake_views import FakeViews, build_chain, receipt_id

HOSTILE = "</bdi><img src=//x.test/i onerror=alert(1)>\u202e" + "W" * 100
RECEIPT = f"/receipts/{receipt_id(5)}"


def build_views() -> FakeViews:
    views = build_chain(30)
    views.add_receipt(90, client=HOSTILE, provider=HOSTILE, model=HOSTILE, miner_id=HOSTILE)
    views.add_audit(5)
    views.add_audit(6, verdict="fail", exact_tokens=2, outside_tokens=3, ending="early")
    views.seal()
    views.add_receipt(100)
    views.add_job(5, "completed")
    views.add_job(90)
    views.add_job(91, "running", model=HOSTILE, client=HOSTILE, miner_id=HOSTILE)
    views.market.add_miner(HOSTILE, capabilities=(HOSTILE,), gpu_name=HOSTILE, gpu_memory=HOSTILE)
    return views


@pytest.fixture(scope="module", name="node")
def start_node():
    with Node(build_views()) as node:
        yield node


@pytest.mark.parametrize("path", ["/", "/receipts", RECEIPT])
def test_pages_are_whole_without_javascript(browser, node, path):
    with open_page(browser, node, path, java_script_enabled=False) as page:
        expect(page.locator("main .lede").first).to_be_visible()
        assert "UTC" in page.locator("body").inner_text()
        assert page.locator("button:visible").all_inner_texts()[0] == "Search"
        page.fill("#find", "#12")
        page.press("#find", "Enter")
        expect(page.locator("h1")).to_have_text("Block #12")


def test_the_home_page_asks_for_little(browser, node):
    requested: list[str] = []
    context = browser.new_context()
    page = context.new_page()
    page.on("request", lambda request: requested.append(urlsplit(request.url).path))
    with page.expect_request("**/_f/home/stream*"):
        page.goto(node.url + "/", wait_until="domcontentloaded")
    assert len(requested) <= 8, requested
    context.close()


def rows(page: Page, table: str) -> list[str]:
    return page.locator(f"#{table} tr th").all_inner_texts()


SHIFTS = """() => { window.shift = 0; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.shift += entry.value;
}).observe({ type: "layout-shift", buffered: true }); }"""


PLACES = """() => Object.fromEntries([...document.querySelectorAll("header, h1, h2, footer")].map(
  (part) => [part.textContent.trim().slice(0, 20), part.getBoundingClientRect().top]))"""


@pytest.mark.parametrize("width", [320, 412, 700, 1280])
@pytest.mark.parametrize("path", ["/search", "/verify", "/playground"])
def test_what_scripts_add_to_a_page_moves_nothing(browser, node, path, width):
    places = []
    for scripts_run in (False, True):
        context = new_context(browser, viewport={"width": width, "height": 900})
        page = context.new_page()
        if not scripts_run:  # as a page stands until they have come
            page.route(re.compile(r"\.js$"), lambda route: route.fulfill(body=""))
        page.goto(node.url + path, wait_until="networkidle")
        if scripts_run:
            expect(page.locator("#theme button")).to_be_visible()
            expect(page.locator("main button:disabled")).to_have_count(0)
        places.append(page.evaluate(PLACES))
        context.close()
    before, after = places
    seen = [part for part, top in before.items() if top < 900]  # below it nobody sees a move
    assert {part: after[part] for part in seen} == pytest.approx(
        {part: before[part] for part in seen}, abs=12
    )


def test_a_new_block_appears_by_itself_and_moves_nothing(browser, node):
    with open_page(browser, node, "/") as page:
        page.evaluate(SHIFTS)
        height = node.views.head().height
        expect(page.locator("#latest-blocks th").first).to_have_text(f"#{height}")
        expect(page.locator("#pause [role=status]")).to_have_text("This page is live.")
        page.focus("#find")
        page.keyboard.type("half a que")
        node.seal(1000)
        expect(page.locator("#latest-blocks th").first).to_have_text(f"#{height + 1}")
        expect(page.locator("#status")).to_contain_text(f"#{height + 1}")
        expect(page.locator("#figures dd").first).to_have_text(str(height + 1))
        expect(page.locator("#lede")).to_contain_text(f"block #{height + 1}")
        assert rows(page, "latest-receipts")[0] == receipt_id(1000)[:12] + "…"
        assert len(rows(page, "latest-blocks")) == len(rows(page, "latest-receipts")) == 10
        expect(page.locator("#status time")).to_have_text(re.compile("^[0-9]+ d ago$"))
        expect(page.locator("#find")).to_have_value("half a que")
        expect(page.locator("#find")).to_be_focused()
        assert page.evaluate("window.shift") < 0.001


def test_a_job_that_comes_and_ends_moves_nothing_on_the_page_of_what_is_pending(browser):
    with Node(build_chain(2)) as node, open_page(browser, node, "/pending") as page:
        page.evaluate(SHIFTS)
        node.change(lambda views: views.add_job(7))
        expect(page.locator("#lede")).to_contain_text("1 job waits for a miner")
        expect(page.locator("#pending-jobs th").first).to_contain_text("job_01K1")
        node.change(lambda views: (views.add_job(7, "completed"), views.add_receipt(7)))
        expect(page.locator("#pending-receipts th").first).to_have_text(receipt_id(7)[:12] + "…")
        expect(page.locator("#pending-jobs th").first).to_be_empty()
        assert page.evaluate("window.shift") < 0.001


def test_the_page_of_a_job_is_live_until_its_receipt_is_final(browser):
    views = build_chain(2)
    key = views.add_job(7, "running")
    closed = """document.addEventListener("htmx:sse:close", (event) => {
      document.documentElement.dataset.closed = event.detail.reason; })"""
    with Node(views) as node, open_page(browser, node, f"/jobs/{key}") as page:
        page.evaluate(closed)
        expect(page.locator("#lede")).to_contain_text("This job runs on the miner miner-a.")
        node.change(lambda views: (views.add_job(7, "completed"), views.add_receipt(7)))
        expect(page.locator("#lede")).to_contain_text("waits for the next block")
        node.change(lambda views: views.seal())
        expect(page.locator("#lede")).to_contain_text("is final in block #3")
        expect(page.locator("html")).to_have_attribute("data-closed", "message")


def test_a_first_receipt_replaces_the_invitation(browser):
    with Node(FakeViews()) as node, open_page(browser, node, "/") as page:
        expect(page.locator("#first")).to_contain_text("./aitbc submit")
        node.seal(1)
        expect(page.locator("#first")).not_to_contain_text("./aitbc submit")
        expect(page.locator("#latest-blocks th").first).to_have_text("#1")


def test_pausing_holds_the_page_still_and_resuming_makes_up_for_it(browser, node):
    with open_page(browser, node, "/") as page:
        height = node.views.head().height
        with page.expect_response("**/_f/home/stream*"):
            page.reload(wait_until="domcontentloaded")
        page.get_by_role("button", name="Pause").click()
        node.seal(1001)
        expect(page.locator("#pause [role=status]")).to_have_text(
            "Paused: there is something newer."
        )
        assert rows(page, "latest-blocks")[0] == f"#{height}"
        page.get_by_role("button", name="Resume").click()
        expect(page.locator("#latest-blocks th").first).to_have_text(f"#{height + 1}")
        node.seal(1002)
        expect(page.locator("#latest-blocks th").first).to_have_text(f"#{height + 2}")


def test_a_page_without_a_stream_polls(browser, node):
    with open_page(browser, node, "/") as page:
        context = page.context
        pages = [page]
        for _ in range(4):
            pages.append(context.new_page())
            pages[-1].clock.install()
            with pages[-1].expect_response("**/_f/home/stream*") as answer:
                pages[-1].goto(node.url, wait_until="domcontentloaded")
        assert answer.value.status == 204
        last = pages[-1]
        for number in (1003, 1004):
            node.seal(number)
            with last.expect_response("**/_f/home"):
                last.clock.run_for(5_500)
            height = node.views.head().height
            expect(last.locator("#latest-blocks th").first).to_have_text(f"#{height}")


def test_the_keyboard_reaches_content_and_search(browser, node):
    with open_page(browser, node, "/blocks") as page:
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        page.keyboard.press("/")
        expect(page.locator("#find")).to_be_focused()
        page.keyboard.type("a/b")
        expect(page.locator("#find")).to_have_value("a/b")


def test_the_theme_is_kept_from_page_to_page(browser, node):
    with open_page(browser, node, "/blocks", color_scheme="light") as page:
        page.get_by_role("button", name="Theme: system").click()
        page.get_by_role("button", name="Theme: light").click()
        page.goto(node.url + "/receipts", wait_until="domcontentloaded")
        expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert background == "rgb(20, 23, 26)"


def test_an_id_is_copied_whole(browser, node):
    permissions = ["clipboard-read", "clipboard-write"]
    with open_page(browser, node, RECEIPT, permissions=permissions) as page:
        page.get_by_role("button", name="Copy the receipt id").click()
        expect(page.get_by_role("button", name="Copy the receipt id")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == receipt_id(5)


def test_a_printed_receipt_keeps_the_facts_and_drops_the_furniture(browser, node):
    with open_page(browser, node, RECEIPT, color_scheme="dark") as page:
        page.emulate_media(media="print")
        for gone in ("#find", ".status", ".crumbs", "#theme", "#raw", ".copy"):
            expect(page.locator(gone).first).to_be_hidden()
        for kept in (".sheet .lede", ".steps", ".bill", "#signatures", "#path", "#facts"):
            expect(page.locator(kept)).to_be_visible()
        background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert background == "rgb(255, 255, 255)"
