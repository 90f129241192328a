"""What pages of the explorer say, without a browser; their headers, lists and links."""

import re

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from explorer_ui.site import SECURITY_HEADERS
from ledger.views import SyncProgress
from tests.crawler import Skeleton, crawl, text_of
from tests.explorer_addresses import every_address
from tests.fake_views import (
    GENESIS,
    FakeViews,
    build_app,
    build_chain,
    receipt_id,
)

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
NEWEST_FIRST = [receipt_id(number) for number in [100, *range(59, -1, -1)]]


# --- headers ------------------------------------------------------------------------------------


def test_every_page_answers_with_the_security_headers_and_one_heading(client, views):
    missing = ["/blocks/99", "/receipts/rcp_x", "/nope"]
    for address in [*every_address(views), *missing]:
        response = client.get(address)
        assert response.status_code == (404 if address in missing else 200), address
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["content-security-policy"] == CSP
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "same-origin"
        assert response.headers["cache-control"] == "no-cache"
        assert response.text.count("<h1") == 1, address
        assert 'href="#main"' in response.text
        assert '<main id="main"' in response.text


def test_pages_hold_no_script_or_style_of_their_own(client, views):
    for address in every_address(views):
        for tag, names in Skeleton(client.get(address).text).tags:
            assert tag != "style"
            assert tag != "script" or "src" in names
            assert not [name for name in names if name == "style" or name.startswith("on")]


# --- what pages say -----------------------------------------------------------------------------


def test_the_receipt_is_summed_up_in_one_sentence(client, views):
    views.add_receipt(300, client="demo", price_micros=380, units_micros=38_000_000)
    views.seal()
    text = text_of(client.get(f"/receipts/{receipt_id(300)}"))
    assert (
        "Miner miner-a ran smollm2:135m for demo: 38 tokens for 0.00038 credits, "
        "signed by both sides, final in block #31." in text
    )
    assert "38 tokens \u00d7 0.00001" in text
    assert f"/v1/receipts/{receipt_id(300)}/proof" in text
    assert "scripts/verify_receipt.py" in text
    assert GENESIS in text


def test_a_pending_receipt_never_claims_to_be_final(client, views):
    text = text_of(client.get(f"/receipts/{receipt_id(100)}"))
    assert "waiting for the next block." in text
    assert "There is no proof yet" in text
    assert "final in block" not in text
    assert f"/v1/receipts/{receipt_id(100)}/proof" not in text


def test_a_miner_without_a_key_is_said_to_have_none(client, views):
    views.add_receipt(301, provider="laptop", miner_id="laptop")
    views.seal()
    text = text_of(client.get(f"/receipts/{receipt_id(301)}"))
    assert "signed by the coordinator alone" in text
    assert "the miner has no key" in text


def test_a_block_says_who_signed_and_who_did_not(client, views):
    text = text_of(client.get("/blocks/7"))
    assert "This block is final: 3 of 4 authorities signed it (3 needed). It holds 2 tra" in text
    assert text.count("not in this certificate") == 1
    for vote in views.block(7).votes:
        assert (vote.signature or vote.account) in text


def test_the_merkle_path_of_the_page_is_the_whole_path(client, views):
    text = text_of(client.get(f"/receipts/{receipt_id(5)}"))
    inclusion = views.inclusion(5, views.final[5].height)
    assert [text.count(node) for node in inclusion.path] == [1] * len(inclusion.path)
    assert inclusion.tree_root in text


def test_a_new_network_explains_itself_on_every_list():
    with TestClient(build_app(FakeViews())) as client:
        assert "first completed job will seal its first block" in text_of(client.get("/"))
        assert "no blocks yet" in text_of(client.get("/blocks"))
        assert "no receipts yet" in text_of(client.get("/receipts"))
        assert "Height 0 is the genesis" in text_of(client.get("/blocks/0"))


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (
            {},
            [
                "was audited and passed and is pending",
                "each of the 10 tokens of the answer: 9 of them (90 %) it would have chosen",
                "there is none that its model could not have chosen",
                "ends where the model ended it",
                "The tokens spell the text of the result.",
            ],
        ),
        (
            {
                "verdict": "fail",
                "tokens": 2000,
                "exact_tokens": 1999,
                "outside_tokens": 1,
                "ending": "early",
                "text_matches": False,
            },
            [
                "was audited and failed",
                "1,999 of them (99.9 %)",
                "and 1 its model could not have chosen",
                "ends early",
                "do not spell",
            ],
        ),
    ],
    ids=["passed", "failed"],
)
def test_an_audit_is_told_in_words_with_its_receipt(views, changes, sentences):
    audit = views.add_audit(3, **changes)
    with TestClient(build_app(views)) as client:
        page = client.get(f"/txs/{audit}")
        views.seal()
        block = client.get(f"/blocks/{len(views.chain)}").text
    text = text_of(page)
    for sentence in sentences:
        assert sentence in text
    assert "proved" not in text[text.index("What the auditor found") :].split("Who signed")[0]
    assert f'href="/receipts/{receipt_id(3)}"' in page.text
    assert f'Audit of a <a href="/receipts/{receipt_id(3)}">receipt</a>' in block


def build_progress(state, eta_s=None):
    return SyncProgress(
        state=state,
        height=9,
        target_height=9_000,
        blocks_per_s=0.0,
        receipts_per_s=0.0,
        eta_s=eta_s,
        source=None,
        last_error=None,
    )


@pytest.mark.parametrize(
    ("sync", "sentence"),
    [
        (build_progress("syncing", eta_s=75), "catching up to #9,000, about"),
        (build_progress("syncing"), "catching up to #9,000"),
        (build_progress("stalled"), "cut off no other node answers"),
    ],
)
def test_every_page_says_when_the_node_is_behind(sync, sentence):
    views = FakeViews()
    with TestClient(build_app(views)) as client:
        before = client.get("/blocks")
        views.sync = sync
        for path in ("/", "/blocks", "/network", "/search?q=nothing"):
            assert sentence in text_of(client.get(path))
        behind = client.get("/blocks", headers={"If-None-Match": before.headers["etag"]})
        assert behind.status_code == 200


def test_the_home_page_does_not_say_that_a_part_of_the_chain_is_all_of_it():
    for views, blocks in ((build_chain(3), "3"), (FakeViews(), "none")):
        with TestClient(build_app(views)) as client:
            views.sync = build_progress("syncing")
            sentence = (
                f"catching up with the network aitbc-local: it has {blocks} of its 9,000 blocks"
            )
            assert sentence in text_of(client.get("/"))
            views.sync = build_progress("stalled")
            assert "No other node of the network aitbc-local answers" in text_of(client.get("/"))


# --- lists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "pattern", "expected"),
    [
        ("/blocks", r'href="/blocks/(\d+)"', [str(height) for height in range(30, 0, -1)]),
        ("/receipts", r'href="/receipts/(rcp_\w+)"', NEWEST_FIRST),
        ("/receipts?client=demo", r'href="/receipts/(rcp_\w+)"', NEWEST_FIRST),
    ],
)
def test_following_older_shows_every_row_once(client, start, pattern, expected):
    address, rows = start, []
    for _ in range(10):
        page = client.get(address).text
        rows += re.findall(pattern, page[page.index("<tbody") : page.index("</tbody>")])
        older = re.search(r'href="([^"]+)" rel="next"', page)
        if older is None:
            break
        address = older[1].replace("&amp;", "&")
    assert rows == expected


def test_a_large_block_is_shown_page_by_page(client, views):
    numbers = range(500, 560)
    for number in numbers:
        views.add_receipt(number)
    views.seal()
    address, rows = "/blocks/31", []
    while address:
        page = client.get(address).text
        rows += re.findall(r'href="/receipts/(rcp_\w+)"', page)
        more = re.search(r'href="([^"]+after=\d+)" rel="next"', page)
        address = more[1] if more else ""
    assert rows == [receipt_id(number) for number in [100, *numbers]]


@pytest.mark.parametrize("value", ["x", "-1", "1e3", "9" * 17, "", "٣"])
@pytest.mark.parametrize("address", ["/blocks?before=", "/receipts?before=", "/blocks/3?after="])
def test_a_position_that_is_no_number_is_refused_in_words(client, address, value):
    response = client.get(address + value)
    assert response.status_code == 400
    assert "whole number" in text_of(response)


def test_an_endless_filter_is_refused(client):
    assert client.get("/receipts", params={"model": "x" * 201}).status_code == 400


def test_filters_narrow_and_stay_in_the_form(client, views):
    views.add_receipt(600, model="other:1b")
    page = client.get("/receipts?model=other:1b")
    assert re.findall(r'href="/receipts/(rcp_\w+)"', page.text) == [receipt_id(600)]
    assert 'value="other:1b"' in page.text
    assert "No receipts for the model none." in text_of(client.get("/receipts?model=none"))


# --- under a prefix, and links --------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/a node"])
def test_every_link_leads_somewhere_below_the_prefix(views, prefix):
    app = build_app(views)
    mounted = Starlette(routes=[Mount(prefix, app)]) if prefix else app
    with TestClient(mounted, follow_redirects=False) as client:
        seen = crawl(client, prefix.replace(" ", "%20"), ["/", "/search?q=12", "/search?q=demo"])
    assert {"/blocks/1", "/blocks/30", f"/receipts/{receipt_id(0)}", "/_f/home"} <= seen


def test_robots_stay_out_of_fragments_and_searches(client):
    assert "Disallow: /_f/" in client.get("/robots.txt").text


def test_security_headers_are_those_of_the_rule():
    assert SECURITY_HEADERS["Content-Security-Policy"] == CSP
