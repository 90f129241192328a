"""Many open pages, and a node that dies under them: each stays live, or says that it is not."""

import re
import socket

import httpx2
from playwright.sync_api import Page, Route, expect

from tests.browser import new_context, watch
from tests.explorer_stage import Node
from tests.fake_views import build_chain
from tests.live import LiveNode

TABS = 12
POLLED_MS = 15_000
"""A page without a stream asks every 5 seconds; the rest is for a busy machine."""
STALE_MS = 3_000
"""Three block times of a network whose blocks come each second."""
SILENT_MS = 15_000
"""Three heartbeats."""
BACK_MS = 30_000
"""Pages ask again after 5 seconds at most, if the machine lets them."""


def test_twelve_tabs_of_one_browser_stay_live(browser):
    views = build_chain(3)
    job = views.add_job(7)
    with Node(views) as node:
        context = new_context(browser)
        tabs, problems, streams = [], [], []
        for address in ["/", "/pending", f"/jobs/{job}"] * (TABS // 3):
            page = context.new_page()
            problems.append(watch(page, node.url))
            with page.expect_response("**/stream*") as stream:
                page.goto(node.url + address, wait_until="domcontentloaded")
            streams.append(stream.value.status)
            tabs.append(page)
        assert streams == [200] * 4 + [204] * (TABS - 4)
        for height in (4, 5):
            node.seal(1000 + height)
            for page in tabs:
                expect(page.locator("#status a").first).to_have_text(
                    f"#{height}", timeout=POLLED_MS
                )
        page = context.new_page()
        page.goto(node.url + "/blocks", wait_until="domcontentloaded")
        expect(page.locator("tbody th").first).to_have_text("#5")
        context.close()
    assert problems == [[]] * TABS


def test_a_page_whose_stream_broke_off_and_that_gets_no_other_asks_instead(browser):
    """A node counts a stream until it knows that its reader is gone."""

    def refuse(route: Route) -> None:
        if "last-event-id" in route.request.headers:
            route.fulfill(status=503)
        else:
            route.continue_()

    context = new_context(browser)
    page = context.new_page()
    with Node(build_chain(3)) as node:
        page.route("**/stream*", refuse)
        page.clock.install()
        with page.expect_response("**/stream*"):
            page.goto(node.url, wait_until="domcontentloaded")
        with page.expect_response(lambda answer: answer.status == 503):
            node.call(node.views.close())
        node.seal(1000)
        page.clock.fast_forward(POLLED_MS)
        expect(page.locator("#status a").first).to_have_text("#4", timeout=BACK_MS)
        expect(page.locator("#status .absent")).to_have_count(0)
        context.close()


def find_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_a_killed_node_is_stale_on_open_pages_until_it_is_back(browser, tmp_path):
    node = LiveNode(tmp_path, "--port", str(find_port()))
    key = node.create_key("client")
    node.start()
    address = node.url
    context = new_context(browser)
    pages = [context.new_page() for _ in range(5)]
    try:
        for page in pages:
            with page.expect_response("**/stream*"):
                page.goto(f"{address}/pending", wait_until="domcontentloaded")
            expect(page.locator("#lede")).to_contain_text("No jobs wait")
        node.kill()
        for page, limit_ms in zip(pages, [STALE_MS] * 4 + [POLLED_MS], strict=True):
            expect(page.locator("#status .absent")).to_have_text("stale", timeout=limit_ms)
            note = page.locator("#pause [role=status]")
            expect(note).to_contain_text(re.compile("has not answered since ..:..:.. UTC"))
        node.start()
        assert node.url == address
        expect_to_go_on(pages, address, key)
    finally:
        context.close()
        node.stop()


def expect_to_go_on(pages: list[Page], address: str, key: str) -> None:
    """Submit a job to a node that is back: its pages tell of it, and call themselves live."""
    headers = {"X-Api-Key": key}
    httpx2.post(f"{address}/v1/jobs", json={"prompt": "?"}, headers=headers).raise_for_status()
    for page in pages:
        expect(page.locator("#lede")).to_contain_text("1 job waits", timeout=BACK_MS)
        expect(page.locator("#pause [role=status]")).to_have_text("This page is live.")
        expect(page.locator("#status .absent")).to_have_count(0)


def poll(page: Page) -> None:
    """Refuse the page its stream, as a node does that holds enough of them."""
    page.route(
        "**/stream*", lambda route: route.fulfill(status=204, headers={"HX-Trigger": "poll"})
    )


def test_a_node_that_falls_silent_with_open_connections_is_stale_until_it_speaks(browser, tmp_path):
    """As when its host is cut off: nothing is closed, nothing is refused, nothing comes."""
    node = LiveNode(tmp_path)
    key = node.create_key("client")
    node.start()
    context = new_context(browser)
    pages = [context.new_page() for _ in range(2)]
    poll(pages[1])
    try:
        for page in pages:
            page.clock.install()
            with page.expect_response("**/stream*"):
                page.goto(f"{node.url}/pending", wait_until="domcontentloaded")
            expect(page.locator("#pause [role=status]")).to_have_text("This page is live.")
        node.pause()
        for page in pages:
            page.clock.fast_forward(SILENT_MS)
            expect(page.locator("#status .absent")).to_have_text("stale")
            expect(page.locator("#pause [role=status]")).to_contain_text("not answered since")
        node.resume()
        expect_to_go_on(pages, node.url, key)
    finally:
        context.close()
        node.resume()
        node.stop()
