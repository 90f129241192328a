"""Accounts, miners and the narrowed list of receipts, without a browser."""

import asyncio
import csv
import io
import re
from datetime import UTC, datetime

import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from explorer_ui import streaming
from explorer_ui.export import MAX_EXPORTS, MAX_EXPORTS_PER_CLIENT, Exports
from explorer_ui.format import money
from ledger.errors import HistoryMissingError
from ledger.views import MAX_PAGE, ReceiptFilter
from tests.crawler import text_of
from tests.fake_views import (
    AUTHORITIES,
    COORDINATOR,
    MINER,
    START_MS,
    FakeViews,
    build_app,
    build_chain,
    receipt_id,
)

DAY_MS = 86_400_000
LINK = re.compile(r'href="/receipts/(rcp_\w+)"')


@pytest.fixture(name="views")
def build_views() -> FakeViews:
    views = build_chain(30)
    views.add_receipt(100)
    return views


def follow(client, address: str, relation: str) -> list[list[str]]:
    """The receipts of a page and of those that its links of a kind lead to."""
    pages = []
    while address:
        page = client.get(address).text
        pages.append(LINK.findall(page))
        match = re.search(rf'href="([^"]+)" rel="{relation}"', page)
        address = match[1].replace("&amp;", "&") if match else ""
        assert len(pages) < 10
    return pages


def day_of(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms // 1000, UTC).date().isoformat()


# --- accounts -----------------------------------------------------------------------------------


def test_a_miners_account_says_what_it_earned_from_final_receipts(client, views):
    earned = sum(t.payload.price_micros for t in views.final)
    views.market.add_miner("miner-a")
    text = text_of(client.get(f"/accounts/{MINER.account}"))
    assert f"This is a miner of this network: it earned {money(earned)} by 60 jobs." in text
    assert "Miners hereminer-a" in text


def test_a_client_is_an_account_too_and_its_spending_is_listed_first(client):
    response = client.get("/accounts/demo")
    assert "This is a client of this network: it spent" in text_of(response)
    assert LINK.findall(response.text)[0] == receipt_id(100)
    assert "It has run no job" in text_of(client.get("/accounts/demo?as=provider"))


def test_an_authority_that_coordinates_is_told_from_one_that_does_not(client):
    coordinator = text_of(client.get(f"/accounts/{COORDINATOR.account}"))
    authority = text_of(client.get(f"/accounts/{AUTHORITIES[0].account}"))
    assert "This is a coordinator of this network: it coordinated 60 jobs." in coordinator
    assert "of 60 receipts; it may coordinate no more" in coordinator
    assert "This is an authority and a coordinator of this network." in authority
    assert "north: a member of the set that seals blocks now" in authority


def test_an_authority_that_left_has_a_page_which_says_so(views, client):
    views.add_change()
    views.seal()
    text = text_of(client.get(f"/accounts/{AUTHORITIES[3].account}"))
    assert "This is a former authority of this network" in text
    assert "west: a member of an earlier set" in text


def test_an_account_whose_receipts_all_wait_has_a_page(views, client):
    views.add_receipt(101, client="newcomer")
    text = text_of(client.get("/accounts/newcomer?as=client"))
    assert "Nothing of this account is final yet." in text
    assert "pending" in text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (AUTHORITIES[0].account[:-1] + "q", "account with a typing error"),
        ("nobody", "No block, transaction, receipt or account here goes by this."),
    ],
)
def test_an_unknown_account_is_explained(client, key, words):
    for address in (f"/accounts/{key}", f"/accounts/{key}/statement"):
        response = client.get(address)
        assert response.status_code == 404
        assert words in text_of(response)
    assert client.get(f"/accounts/{key}.json").json()["detail"]
    assert client.get(f"/accounts/{key}.csv").status_code == 404


def test_the_twin_of_an_account_holds_its_totals_and_the_same_receipts(client):
    page = client.get("/accounts/demo")
    data = client.get("/accounts/demo.json?as=client").json()
    assert data["account"]["spent_receipts"] == 60
    assert [line["receipt_id"] for line in data["receipts"]] == LINK.findall(page.text)
    older = client.get(f"/accounts/demo.json?as=client&before={data['older']}").json()
    assert older["receipts"][0]["leaf"] == data["older"] - 1


def test_a_statement_is_asked_for_without_the_fields_that_were_left_empty(client):
    for query, target in {
        "": "statement",
        "?form=csv&from=&to=": "statement.csv",
        "?form=proof&from=2026-01-01&to=": "statement/proof?from=2026-01-01",
    }.items():
        response = client.get(f"/accounts/demo/statement{query}")
        assert response.status_code == 303
        assert response.headers["location"] == f"/v1/accounts/demo/{target}"
    assert client.get("/accounts/demo/statement?form=pdf").status_code == 400
    assert client.get("/accounts/demo/statement?from=yesterday").status_code == 400


def test_an_account_of_a_node_without_its_history_says_so(client, views, monkeypatch):
    def refuse(_account):
        raise HistoryMissingError("this node still fetches blocks 1 to 9")

    monkeypatch.setattr(views, "account", refuse)
    response = client.get("/accounts/demo")
    assert response.status_code == 503
    assert "This node still fetches blocks 1 to 9." in text_of(response)


def test_a_name_is_searched_and_listed_with_its_account(client):
    assert 'href="/accounts/demo">What' in client.get("/search?q=demo").text
    assert "/accounts/" not in client.get("/search?q=smollm2:135m").text
    rows = client.get("/receipts").text
    assert f'href="/accounts/{MINER.account}"' in rows
    assert 'href="/accounts/demo"' in rows


# --- keyset pages -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["/receipts", "/accounts/demo", "/receipts?client=demo"])
def test_newer_leads_back_over_the_same_pages(client, start):
    down = follow(client, start, "next")
    assert [len(page) for page in down] == [25, 25, 11]
    page = client.get(start).text
    for _ in range(2):
        older = re.search(r'href="([^"]+)" rel="next"', page)[1].replace("&amp;", "&")
        page = client.get(older).text
    newer = re.search(r'href="([^"]+)" rel="prev"', page)[1].replace("&amp;", "&")
    up = follow(client, newer, "prev")
    assert up == [down[1], down[0]]


def test_newer_at_the_top_shows_the_whole_newest_page(client, views):
    page = client.get(f"/receipts?after={views.final[-3].cursor}")
    assert len(LINK.findall(page.text)) == 25
    assert ">Newest</a>" not in page.text


def test_what_lies_below_everything_is_the_end_of_the_list(client):
    text = text_of(client.get("/receipts?before=0"))
    assert "This is the end of the list." in text
    assert "Newest" in text


# --- filters ------------------------------------------------------------------------------------


def test_a_period_holds_what_became_final_in_it(client, views):
    views.add_receipt(500, started_at_ms=START_MS + DAY_MS, completed_at_ms=START_MS + DAY_MS)
    views.seal()
    views.add_receipt(501)
    first, second = day_of(START_MS), day_of(START_MS + DAY_MS)
    assert LINK.findall(client.get(f"/receipts?from={second}").text) == [
        receipt_id(501),
        receipt_id(500),
        receipt_id(100),
    ]
    only = client.get(f"/receipts?from={second}&to={day_of(START_MS + 2 * DAY_MS)}")
    assert LINK.findall(only.text) == [receipt_id(500), receipt_id(100)]
    assert f"since {second} before" in text_of(only)
    old = client.get(f"/receipts?to={second}").text
    assert LINK.findall(old)[0] == receipt_id(59)
    assert f'value="{second}"' in old
    assert "No receipts before 2020-01-01." in text_of(client.get("/receipts?to=2020-01-01"))
    assert first < second


def test_filters_stay_in_every_link_of_the_page(client):
    page = client.get("/receipts?client=demo&model=smollm2%3A135m&from=2026-01-01").text
    chosen = "model=smollm2%3A135m&amp;client=demo&amp;from=2026-01-01"
    assert f'type="text/csv" href="/receipts.csv?{chosen}"' in page
    assert f'type="application/json" href="/receipts.json?{chosen}"' in page
    assert re.search(rf'href="/receipts\?before=\d+&amp;{re.escape(chosen)}" rel="next"', page)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("from=2026-02-30", "has to be a day"),
        ("to=٢٠٢٦-01-01", "has to be a day"),
        ("from=2026-1-1", "has to be a day"),
        ("from=2026-01-02&to=2026-01-02", "ends before it begins"),
        ("model=" + "x" * 201, "longer than 200 characters"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused_in_words(client, query, words):
    response = client.get("/receipts?" + query)
    assert response.status_code == 400
    assert words in text_of(response)
    for twin in ("/receipts.json?", "/receipts.csv?"):
        assert words in client.get(twin + query).json()["detail"]


# --- data ---------------------------------------------------------------------------------------


def read_csv(response) -> list[dict[str, str]]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"
    return list(csv.DictReader(io.StringIO(response.text)))


def test_the_table_holds_every_final_receipt_once_however_many_there_are(client, views):
    for number in range(1000, 1000 + 2 * MAX_PAGE):
        views.add_receipt(number)
    views.seal()
    views.add_receipt(2000)
    rows = read_csv(client.get("/receipts.csv"))
    assert [int(row["leaf"]) for row in rows] == list(range(60 + 2 * MAX_PAGE, -1, -1))
    assert {row["state"] for row in rows} == {"final"}
    assert rows[-1]["receipt_id"] == receipt_id(0)
    assert rows[-1]["price_micros"] == str(views.final[0].payload.price_micros)
    assert read_csv(client.get("/receipts.csv?client=nobody")) == []
    assert len(read_csv(client.get("/accounts/demo.csv?as=client"))) == 61 + 2 * MAX_PAGE


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", 'a"b,c\nd'])
def test_no_cell_of_the_table_is_a_formula(name):
    views = FakeViews()
    views.add_receipt(1, client=name, model=name, miner_id=name)
    views.seal()
    with TestClient(build_app(views)) as client:
        (row,) = read_csv(client.get("/receipts.csv"))
    expected = name if name.startswith("a") else "'" + name
    assert row["client"] == row["model"] == row["miner_id"] == expected


def test_a_place_for_a_table_is_given_back_and_there_are_only_a_few(client, views, monkeypatch):
    for _ in range(2 * MAX_EXPORTS):
        assert len(read_csv(client.get("/receipts.csv"))) == 60
    with monkeypatch.context() as patched:
        patched.setattr(views, "receipts", None)
        for _ in range(2 * MAX_EXPORTS):
            with pytest.raises(TypeError):
                client.get("/receipts.csv")
    assert len(read_csv(client.get("/receipts.csv"))) == 60


def ask_for(client: str) -> Request:
    return Request({"type": "http", "client": (client, 50_000), "headers": []})


def test_one_client_takes_few_of_the_places_for_tables(views):
    async def ask() -> list[int]:
        exports = Exports(views)
        clients = ["a", "a", "a", "b", "b", "c", "c", "d", "d", "e"]
        answers = [
            await exports.answer(ask_for(name), ReceiptFilter(), name="a.csv") for name in clients
        ]
        assert {a.headers.get("retry-after") for a in answers if a.status_code == 503} == {"10"}
        return [answer.status_code for answer in answers]

    assert MAX_EXPORTS_PER_CLIENT == 2
    assert asyncio.run(ask()) == [200, 200, 503, *[200] * 6, 503]


def test_a_reader_that_takes_nothing_loses_its_place(views, monkeypatch):
    monkeypatch.setattr(streaming, "READER_TIMEOUT_S", 0.01)

    async def stall() -> None:
        exports = Exports(views)

        async def send(_message) -> None:
            await asyncio.Event().wait()

        async def receive() -> dict:
            await asyncio.Event().wait()

        for version in ["2.3", "2.4"] * MAX_EXPORTS_PER_CLIENT:
            answer = await exports.answer(ask_for("a"), ReceiptFilter(), name="a.csv")
            assert answer.status_code == 200
            scope = {"type": "http", "asgi": {"spec_version": version}}
            await answer(scope, receive, send)

    asyncio.run(stall())


# --- miners -------------------------------------------------------------------------------------


def test_miners_are_listed_by_name_a_page_at_a_time(client, views):
    for number in range(60):
        views.market.add_miner(f"miner-{number:02}", active=number % 2 == 0)
    first = client.get("/miners")
    more = re.search(r'href="([^"]+)" rel="next"', first.text)[1]
    second = client.get(more)
    name = re.compile(r'<th scope="row" class="clip"><a href="[^"]+"><bdi>([^<]+)')
    names = [name.findall(page.text) for page in (first, second)]
    assert [len(page) for page in names] == [50, 10]
    assert names[0] + names[1] == [f"miner-{number:02}" for number in range(60)]
    assert "25 miners are at work for this node." in text_of(first)
    assert "name comes after this one." in text_of(client.get("/miners?after=z"))


def test_a_miner_is_at_work_finishing_or_away(client, views):
    assert "No miner has registered here yet." in text_of(client.get("/miners"))
    views.market.add_miner("a", running=3)
    views.market.add_miner("b", draining=True, account=None)
    views.market.add_miner("c", active=False, gpu_name=None, capabilities=())
    text = text_of(client.get("/miners"))
    assert "2 miners are at work for this node, of 3 that it knows." in text
    for words in ("at work", "finishing", "away", "any model", "not stated", "RTX 4090"):
        assert words in text
    assert 'href="/miners/b"' in client.get("/miners").text


def test_the_twin_of_the_miners_keeps_the_api_keys_to_itself(client, views):
    views.market.add_miner("a")
    response = client.get("/miners.json")
    (miner,) = response.json()["miners"]
    assert (miner["miner_id"], miner["active"], miner["account"]) == ("a", True, MINER.account)
    assert "secretprefix" not in response.text
    tag = response.headers["etag"]
    assert client.get("/miners.json", headers={"if-none-match": tag}).status_code == 304
    views.market.add_miner("b")
    assert client.get("/miners.json", headers={"if-none-match": tag}).status_code == 200


def test_a_node_that_takes_no_jobs_says_where_miners_are(views):
    views.market = None
    with TestClient(build_app(views)) as client:
        assert "This node takes no jobs" in text_of(client.get("/miners"))
        assert client.get("/miners.json").json() == {"miners": [], "after": None}
