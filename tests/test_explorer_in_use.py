"""Pages in use: what scripts add is as accessible, and as narrow, as what was there before."""

import httpx2
import pytest
from playwright.sync_api import Page, expect
from starlette.applications import Starlette
from starlette.routing import Mount

from ledger.encoding import encode
from tests.axe import OF_LOOKS, find_faults
from tests.browser import Server, open_page
from tests.explorer_stage import Node
from tests.fake_views import build_app, build_chain
from tests.verify_node import OVERFLOW, Market, build_changed_chain, choose, last_bundle, verify

PHONE = {"width": 320, "height": 800}
FINAL_MS = 30_000


@pytest.fixture(scope="module", name="market")
def start_market(tmp_path_factory):
    with Market(tmp_path_factory.mktemp("node")) as market:
        yield market


def expect_fit(page: Page) -> None:
    assert page.evaluate(OVERFLOW) <= 0
    assert find_faults(page) == ""
    page.emulate_media(color_scheme="dark")
    assert find_faults(page, *OF_LOOKS) == ""
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("outcome", ["Verified", "Not verified"])
def test_a_verdict_with_its_claims_opened(browser, market, outcome):
    chain = build_changed_chain()
    bundle = encode(last_bundle(chain))
    with open_page(browser, market, "/verify", viewport=PHONE) as page:
        choose(page, "bundle", bundle if outcome == "Verified" else bundle.replace(b"46", b"47"))
        choose(page, "genesis", encode(chain.genesis))
        verify(page)
        expect(page.locator(".claims > li")).to_have_count(8)
        expect(page.locator("main .verdict")).to_contain_text(outcome)
        for summary in page.locator("main summary").all():
            summary.click()
        expect_fit(page)


def test_a_receipt_that_was_verified_in_place(browser, market):
    with open_page(browser, market, f"/receipts/{market.receipt}", viewport=PHONE) as page:
        page.get_by_role("button", name="Verify in this browser").click()
        expect(page.locator(".claims > li")).to_have_count(8)
        for summary in page.locator("main summary").all():
            summary.click()
        expect_fit(page)


def run_as_miner(url: str, job_id: str) -> None:
    with httpx2.Client(base_url=url, trust_env=False) as miner:
        miner.post(f"/v1/jobs/{job_id}/claim", json={"miner_id": "m1"}).raise_for_status()
        report = {"miner_id": "m1", "result": "Because."}
        miner.post(f"/v1/jobs/{job_id}/complete", json=report).raise_for_status()


def test_the_playground_from_a_question_to_its_receipt_and_the_texts_for_their_owner(
    browser, market
):
    with open_page(browser, market, "/playground", viewport=PHONE) as page:
        page.get_by_label("Prompt").fill("Why?")
        page.get_by_label("API key").fill(market.keys["client"])
        page.locator("#ask").get_by_role("button").first.click()
        expect(page.locator("#answer [role=status]")).to_have_text("It waits for a miner.")
        expect_fit(page)
        link = page.locator("#answer a").first
        run_as_miner(market.url, link.inner_text())
        expect(page.locator("#answer")).to_contain_text("is final", timeout=FINAL_MS)
        expect_fit(page)
        link = page.get_by_role("link", name="rcp_")
        link.click()
        expect(page.locator("h1")).to_have_text("Receipt")
        page.get_by_role("link", name="job", exact=True).click()
        page.get_by_label("API key").fill(market.keys["client"])
        page.get_by_role("button", name="Show").click()
        expect(page.locator("#disclosure pre").nth(1)).to_have_text("Because.")
        expect_fit(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_theme_that_was_chosen_against_the_systems(browser, theme):
    other = "dark" if theme == "light" else "light"
    with (
        Node(build_chain(3)) as node,
        open_page(browser, node, "/", viewport=PHONE, color_scheme=other) as page,
    ):
        while page.locator("#theme button").inner_text() != f"Theme: {theme}":
            page.locator("#theme button").click()
        assert find_faults(page) == ""
        page.get_by_role("button", name="Pause").click()
        assert find_faults(page) == ""


def test_below_a_prefix_streams_suggestions_and_modules_are_found(browser):
    app = Starlette(routes=[Mount("/under this", build_app(build_chain(3)))])
    with Server(app) as server, open_page(browser, server, "/robots.txt", expected="404") as page:
        with page.expect_response("**/_f/home/stream*") as stream:
            page.goto(server.url + "/under%20this/", wait_until="domcontentloaded")
        assert stream.value.status == 200
        page.locator("#find").press_sequentially("dem")
        expect(page.locator("#offers option")).to_have_count(1)
        page.get_by_role("link", name="Verify", exact=True).click()
        expect(page.locator("form.check")).to_be_visible()
        page.get_by_role("link", name="Receipts", exact=True).click()
        expect(page.locator("tbody th").first).to_be_visible()
        assert page.url == server.url + "/under%20this/receipts"
