"""Search in the explorer, and pages that are not there."""

import re

import pytest
from starlette.testclient import TestClient

from explorer_ui.site import SECURITY_HEADERS
from ledger.views import SyncProgress
from tests.crawler import text_of
from tests.fake_views import (
    AUTHORITIES,
    MINER,
    build_app,
    receipt_id,
)

# --- search, not found, redirects ----------------------------------------------------------------


def test_an_exact_search_leads_to_its_page(client, views):
    block, transaction = views.block(12), views.final[4]
    for query, target in {
        "12": "/blocks/12",
        " #12 ": "/blocks/12",
        block.hash: "/blocks/12",
        transaction.id: f"/txs/{transaction.id}",
        receipt_id(4): f"/receipts/{receipt_id(4)}",
    }.items():
        response = client.get("/search", params={"q": query})
        assert (response.status_code, response.headers["location"]) == (303, target)


def test_a_search_that_hits_nothing_offers_what_begins_like_it(client):
    page = client.get("/search", params={"q": "smol"})
    assert page.status_code == 200
    assert "This begins like it" in text_of(page)
    (offered,) = re.findall(r'<a href="(/search\?q=[^"]+)"', page.text)
    assert "receipts under that name" in text_of(client.get(offered))
    assert "like it" not in text_of(client.get("/search", params={"q": "smoll<b>"}))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "Type a block height"),
        ("99", "There is no block #99 yet: the newest block is #30."),
        ("0", "Height 0 is the genesis"),
        ("abcdef12", "part of a hash: it has 8 digits of 64"),
        ("a" * 64, "nothing here has it"),
        ("a" * 65, "more than a hash"),
        ("rcp_" + "a" * 26, "knows none with exactly this id"),
        ("job_01K00000000000000000000000", "no receipt here belongs to it"),
        ("ait1qqqq", "account with a typing error"),
        (MINER.account.replace("ait1", "ait1q", 1), "account with a typing error"),
        ("demo", "receipts under that name"),
        ("smollm2:135m", "Receipts for the model"),
        ("hello world", "No block, transaction, receipt or account"),
        ("x" * 300, "longer than 200 characters"),
    ],
)
def test_any_other_search_is_told_what_it_looks_like(client, query, words):
    response = client.get("/search", params={"q": query})
    assert response.status_code == 200
    assert words in text_of(response)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/blocks/31", "There is no block #31 yet: the newest block is #30."),
        ("/blocks/007x", "No block, transaction"),
        ("/blocks/" + "f" * 64, "nothing here has it"),
        ("/blocks/" + "9" * 40, "digits of 64"),
        ("/txs/12", "no block"),
        ("/receipts/rcp_nothing", "knows none"),
        ("/nope/at/all", "There is no page at this address."),
    ],
)
def test_what_is_not_there_is_explained(client, address, words):
    response = client.get(address)
    assert response.status_code == 404
    assert words in text_of(response)
    assert "etag" not in response.headers


def test_other_spellings_of_a_block_lead_to_its_height(client, views):
    for key in (views.block(3).hash, "0003"):
        response = client.get(f"/blocks/{key}")
        assert (response.status_code, response.headers["location"]) == (303, "/blocks/3")
    assert client.get("/explorer").headers["location"] == "/"


def test_a_method_without_a_page_is_answered_as_a_page(client):
    response = client.post("/blocks")
    assert response.status_code == 405
    assert response.headers["allow"]
    assert "<h1>" in response.text


def test_our_own_bug_gets_a_page_that_reads_nothing(views, monkeypatch):
    app = build_app(views)
    monkeypatch.setattr(views, "head", None)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/blocks")
    assert response.status_code == 500
    assert "our fault" in response.text
    assert (
        response.headers["content-security-policy"] == SECURITY_HEADERS["Content-Security-Policy"]
    )
    assert "Traceback" not in response.text


def test_a_search_for_an_account_leads_to_its_page(client):
    response = client.get("/search", params={"q": MINER.account})
    assert (response.status_code, response.headers["location"]) == (
        303,
        f"/accounts/{MINER.account}",
    )


def test_a_search_for_an_authority_leads_to_its_page(client):
    response = client.get("/search", params={"q": AUTHORITIES[0].account})
    assert response.status_code == 303
    assert response.headers["location"] == f"/authorities/{AUTHORITIES[0].account}"


def test_a_search_for_a_miner_leads_to_its_page(client, views):
    response = client.get("/search", params={"q": "miner-a"})
    assert (response.status_code, response.headers["location"]) == (303, "/miners/miner-a")
    views.market.standings.clear()
    views.add_receipt(200)
    views.seal()
    assert "Receipts from the miner" in text_of(client.get("/search", params={"q": "miner-a"}))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("syncing", "It may only be not found yet: this node is 8,970 blocks behind the others."),
        ("stalled", "no other node answers this one, which stands at block #30."),
    ],
)
def test_what_is_not_found_may_only_be_not_here_yet(client, views, state, words):
    views.sync = SyncProgress(
        state=state,
        height=30,
        target_height=9_000,
        blocks_per_s=0.0,
        receipts_per_s=0.0,
        eta_s=None,
        source=None,
        last_error=None,
    )
    for address in ("/search?q=rcp_" + "a" * 26, "/blocks/99", "/receipts/rcp_x"):
        assert words in text_of(client.get(address))
