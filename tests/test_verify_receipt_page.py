"""The button on a receipt's page: its own proof, fetched and checked in place."""

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient

from ledger.encoding import encode
from tests.browser import open_page
from tests.builders import build_genesis
from tests.fake_views import build_app, build_chain, receipt_id
from tests.verify_node import Market, claims, verdict

MAX_CODE_BYTES = 80_000
"""Of everything that a click fetches, compressed."""


@pytest.fixture(scope="module", name="market")
def start_market(tmp_path_factory):
    with Market(tmp_path_factory.mktemp("node")) as market:
        yield market


def test_a_receipt_is_verified_in_place_and_its_code_is_fetched_on_the_click(browser, market):
    context = browser.new_context()
    page, weights = context.new_page(), {}
    page.on("response", lambda answer: weights.update({answer.url: answer}))
    page.goto(f"{market.url}/receipts/{market.receipt}", wait_until="load")
    before = [url for url in weights if url.endswith(".js")]
    assert [url.rsplit("/", 1)[-1] for url in before] == ["explorer.js"]
    page.get_by_role("button", name="Verify in this browser").click()
    expect(verdict(page)).to_have_text("Verified: none of 8 claims failed.")
    assert claims(page)[1] == ("provider_signature", "not applicable")
    expect(page.locator(".report")).to_contain_text("own genesis of test, ")
    fetched = {url: weights[url] for url in weights if url.endswith(".js") and url not in before}
    assert {"claims.js", "blake3.js"} <= {url.rsplit("/", 1)[-1] for url in fetched}
    size = sum(int(answer.headers["content-length"]) for answer in fetched.values())
    assert 20_000 < size <= MAX_CODE_BYTES
    context.close()


def test_a_receipt_is_checked_again_against_the_readers_genesis(browser, market):
    with open_page(browser, market, f"/receipts/{market.receipt}") as page:
        page.get_by_role("button", name="Verify in this browser").click()
        own = page.locator("#own-genesis")
        for genesis, words in (
            (encode(build_genesis(1)), "Not verified: 5 of 8 claims failed."),
            (b"x", "Your genesis file is not one: it is not JSON."),
            (market.genesis, "Verified: none of 8 claims failed."),
        ):
            file = {"name": "g.json", "mimeType": "application/json", "buffer": genesis}
            own.set_input_files(files=[file])
            expect(verdict(page)).to_have_text(words)
        expect(page.locator(".report")).to_contain_text("Held against your genesis of test")
        page.get_by_role("button", name="Verify in this browser").click()
        expect(page.locator(".report")).to_contain_text("own genesis of test, ")
        expect(own).to_have_count(1)


def test_a_node_that_sends_the_proof_of_another_receipt_is_caught(browser, market):
    with open_page(browser, market, f"/receipts/{market.receipt}") as page:
        other = f"{market.url}/v1/receipts/{market.other}/proof"
        page.route("**/proof", lambda route: route.fulfill(response=page.request.get(other)))
        page.get_by_role("button", name="Verify in this browser").click()
        expect(verdict(page)).to_have_text(
            "Not verified: the node sent the proof of another receipt."
        )


def test_a_proof_that_does_not_come_is_no_verdict(browser, market):
    path = f"/receipts/{market.receipt}"
    with open_page(browser, market, path, expected="status of 503") as page:
        page.route("**/proof", lambda route: route.fulfill(status=503, body="busy"))
        page.get_by_role("button", name="Verify in this browser").click()
        expect(verdict(page)).to_have_text(
            "The check broke off, and nothing was decided: the node answered 503."
        )
        assert claims(page) == []


def test_a_pending_receipt_offers_no_check():
    views = build_chain(2)
    views.add_receipt(100)
    with TestClient(build_app(views)) as client:
        assert "data-module" in client.get(f"/receipts/{receipt_id(1)}").text
        assert "data-module" not in client.get(f"/receipts/{receipt_id(100)}").text
