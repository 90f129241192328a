"""Feeds, suggestions, the search of browsers, and the playground."""

import json
import xml.etree.ElementTree as ET

import httpx2
import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient

from ledger.store.rollups import add_usage
from ledger.store.rows import Figures
from ledger.views.suggest import PER_KIND
from tests.api_node import ApiNode
from tests.browser import Server, open_page
from tests.crawler import text_of
from tests.explorer_node import AskedNode
from tests.fake_views import MINER, FakeViews, build_app, build_chain, receipt_id
from tests.hostile import CORPUS
from tests.test_ledger_lists import Ledger

ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    views = build_chain(30)
    views.add_receipt(100)
    return views


# --- feeds --------------------------------------------------------------------------------------


def read_feed(response) -> ET.Element:
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/atom+xml; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    feed = ET.fromstring(response.text)
    assert feed.tag == ATOM + "feed"
    for element in (feed, *feed.findall(ATOM + "entry")):
        for name in ("id", "title", "updated"):
            assert element.find(ATOM + name).text, name
    assert feed.find(f"{ATOM}author/{ATOM}name").text
    return feed


def links_of(feed) -> list[str]:
    return [entry.find(ATOM + "link").get("href") for entry in feed.findall(ATOM + "entry")]


def test_feeds_hold_the_newest_final_things(client):
    blocks = read_feed(client.get("/feeds/blocks.atom"))
    assert links_of(blocks) == [f"http://testserver/blocks/{n}" for n in range(30, 5, -1)]
    receipts = read_feed(client.get("/feeds/receipts.atom"))
    assert links_of(receipts)[0] == f"http://testserver/receipts/{receipt_id(59)}"
    assert len(links_of(receipts)) == 25
    for account in ("demo", MINER.account):
        own = read_feed(client.get(f"/feeds/accounts/{account}.atom"))
        assert sorted(links_of(own)) == sorted(links_of(receipts))
        assert own.find(ATOM + "title").text.startswith("Receipts of ")
    assert client.get("/feeds/accounts/nobody.atom").status_code == 404


def test_an_entry_is_the_same_on_every_node(client, views):
    def list_ids(node) -> list[str]:
        feed = read_feed(node.get("/feeds/receipts.atom"))
        return [entry.find(ATOM + "id").text for entry in feed.findall(ATOM + "entry")]

    with TestClient(build_app(views), base_url="https://other.example") as other:
        assert list_ids(client) == list_ids(other)
        assert links_of(read_feed(other.get("/feeds/blocks.atom")))[0] == (
            "https://other.example/blocks/30"
        )


@pytest.mark.parametrize("name", CORPUS.values(), ids=CORPUS.keys())
def test_no_name_breaks_a_feed(name):
    views = FakeViews(network=name)
    views.add_receipt(1, client=name, model=name, miner_id=name)
    views.seal()
    with TestClient(build_app(views)) as client:
        feed = read_feed(client.get("/feeds/receipts.atom"))
    (entry,) = feed.findall(ATOM + "entry")
    assert len(entry) == 5


def test_a_feed_is_found_from_its_page_and_unchanged_while_the_chain_is(client):
    for page, feed in {
        "/blocks": "/feeds/blocks.atom",
        "/receipts?client=demo": "/feeds/receipts.atom",
        "/accounts/demo": "/feeds/accounts/demo.atom",
    }.items():
        assert f'type="application/atom+xml" href="{feed}"' in client.get(page).text
        tag = client.get(feed).headers["etag"]
        assert client.get(feed, headers={"if-none-match": tag}).status_code == 304


def test_an_empty_chain_has_feeds_without_entries():
    with TestClient(build_app(FakeViews())) as client:
        for path in ("/feeds/blocks.atom", "/feeds/receipts.atom"):
            assert links_of(read_feed(client.get(path))) == []


# --- search from outside ------------------------------------------------------------------------


def test_a_browser_is_told_how_to_search_here(client):
    response = client.get("/opensearch.xml")
    assert response.headers["content-type"].startswith("application/opensearchdescription+xml")
    urls = [url.get("template") for url in ET.fromstring(response.text) if url.get("template")]
    assert urls == [
        "http://testserver/search?q={searchTerms}",
        "http://testserver/_f/suggest?q={searchTerms}",
    ]
    assert 'rel="search"' in client.get("/").text


def test_suggestions_begin_with_what_was_typed(client, views):
    response = client.get("/_f/suggest", params={"q": " de "})
    assert response.headers["content-type"] == "application/x-suggestions+json"
    assert response.json() == ["de", ["demo"]]
    assert client.get("/_f/suggest").json() == ["", views.suggest("")]
    views.add_receipt(7000, client="demo\u202e")
    views.seal()
    assert client.get("/_f/suggest?q=demo").json()[1] == ["demo"]


@pytest.fixture(scope="module", name="ledger")
def open_ledger(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("suggest"))
    yield ledger
    ledger.close()


def test_suggestions_come_from_every_kind_of_thing(ledger):
    suggest, chain = ledger.views.suggest, ledger.chain
    receipt = chain.transactions[0].payload.receipt_id
    block, transaction = chain.blocks[0].hash.hex(), chain.transactions[3].id.hex()
    assert receipt in suggest(receipt[:10])
    for whole in (block, transaction):
        for length in (4, 7, 63, 64):
            assert whole in suggest(whole[:length])
    assert suggest("old") == ["old-miner"]
    assert suggest("ait1")[0].startswith("ait1")
    assert suggest("an") == ["ann"]
    assert len(suggest("rcp_")) == PER_KIND


@pytest.mark.parametrize(
    "text", ["", "a", "zz", "%", "_x", "m1\x00", "x" * 500, "ABCD", "\U0010ffff"]
)
def test_what_begins_nothing_suggests_nothing(ledger, text):
    assert ledger.views.suggest(text) == []


def test_a_model_of_many_days_is_one_suggestion_and_one_seek(ledger):
    figures = [
        Figures(
            client="c",
            provider="p",
            coordinator="o",
            model=model,
            unit_type="tokens",
            units_micros=1,
            price_micros=1,
            time_ms=day * 86_400_000,
        )
        for model in ("qwen:1", "qwen:2", "qwen:3", "qwen:4", "qwen:5")
        for day in range(50)
    ]
    ledger.store.database.write(lambda c: add_usage(c, figures)).result()
    assert ledger.views.suggest("qwen") == ["qwen:1", "qwen:2", "qwen:3", "qwen:4"]


def test_suggestions_are_seeks(ledger):
    for database in (ledger.store.database, ledger.market):
        reader, statements = database.reader, []
        reader.set_trace_callback(statements.append)
        try:
            ledger.views.suggest("abcdef")
        finally:
            reader.set_trace_callback(None)
        assert statements
        for statement in statements:
            plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
            assert all(step.startswith("SEARCH") for step in plan), (statement, plan)


def test_the_search_field_offers_what_there_is(browser, views):
    with Server(build_app(views)) as server, open_page(browser, server, "/blocks") as page:
        with page.expect_response("**/_f/suggest?q=smol"):
            page.locator("#find").press_sequentially("smol")
        expect(page.locator("#offers option")).to_have_count(1)
        assert page.locator("#offers option").get_attribute("value") == "smollm2:135m"
        expect(page.locator("#find")).to_have_attribute("list", "offers")


# --- the playground -----------------------------------------------------------------------------


def test_the_playground_offers_models_and_programs(client, views):
    response = client.get("/playground")
    text = text_of(response)
    assert "Ask a model of this network" in text
    assert '<option value="smollm2:135m">' in response.text
    assert "curl -s http://testserver/v1/jobs" in text
    assert 'model="smollm2:135m"' in text
    views.market = None
    with TestClient(build_app(views)) as follower:
        response = follower.get("/playground")
    assert "This node takes no jobs" in text_of(response)
    assert "playground.js" not in response.text


@pytest.fixture(scope="module", name="asked")
def start_asked(tmp_path_factory):
    node = ApiNode(tmp_path_factory.mktemp("asked"))
    with AskedNode(node) as server:
        server.call(server.bind())
        yield server
        node.coordinator.close()
    node.close()


def test_an_answer_comes_as_it_grows_and_ends_on_its_receipt(browser, asked):
    node = asked.node
    with (
        open_page(browser, asked, "/playground") as page,
        httpx2.Client(base_url=asked.url, timeout=20) as miner,
    ):
        page.fill("#prompt", "Why 'so' blue?")
        page.fill("#max_tokens", "7")
        page.fill("#seed", "5")
        expect(page.locator("#curl")).to_contain_text("Why '\\''so'\\'' blue?")
        expect(page.locator("#python")).to_contain_text("max_tokens=7,")
        page.fill("#key", node.keys["client"])
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#answer .verdict")).to_have_text("It waits for a miner.")
        me = {"miner_id": "m1"}
        miner.post("/v1/miners/register", json=me | {"capabilities": ["*"]}).raise_for_status()
        job = miner.get("/v1/jobs/available", params=me | {"wait": "10"}).json()
        assert (job["prompt"], job["params"]["seed"]) == ("Why 'so' blue?", 5)
        path = f"/v1/jobs/{job['job_id']}"
        miner.post(f"{path}/claim", json=me).raise_for_status()
        told = me | {"offset": 0, "text": "It is <b>"}
        miner.post(f"{path}/text", json=told).raise_for_status()
        expect(page.locator("#answer pre")).to_have_text("It is <b>")
        node.now_ms += 1_500
        done = me | {"result": "It is <b>Rayleigh\u202e.\nReally."}
        miner.post(f"{path}/complete", json=done).raise_for_status()
        expect(page.locator("#answer pre")).to_have_text("It is <b>Rayleigh⟨U+202E⟩.\nReally.")
        expect(page.locator("#answer .trail")).to_contain_text("(pending)")
        node.start_sealing()
        expect(page.locator("#answer .verdict")).to_have_text(
            "It is answered, and its receipt is final."
        )
        page.locator("#answer .trail a").click()
        expect(page.locator("h1")).to_have_text("Receipt")
        assert node.keys["client"] not in json.dumps(page.context.storage_state())


def test_a_job_that_is_asked_for_can_be_stopped(browser, asked):
    with open_page(browser, asked, "/playground") as page:
        page.fill("#key", asked.node.keys["client"])
        page.get_by_role("button", name="Ask", exact=True).click()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#answer .verdict")).to_have_text("It was cancelled.")
        expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_a_refusal_is_told_in_the_words_of_the_node(browser, asked):
    with open_page(browser, asked, "/playground", expected="401") as page:
        page.fill("#key", "aik_wrong_key")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator("#answer .verdict")).to_have_text(
            "The node refused: this API key is unknown to this node, or revoked."
        )
