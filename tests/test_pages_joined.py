"""Pages of a list, joined by their own links, are the whole list: none twice, none missing."""

import itertools
import re
from contextlib import closing
from datetime import UTC, datetime

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from explorer_ui import build_explorer
from ledger.block import hash_genesis
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.views import LedgerViews
from tests.explorer_node import NobodyWaits

FILTERS = {"model": "model", "miner": "provider", "client": "client"}
DAY_MS = 86_400_000
ROW = re.compile(r'<th scope="row"><a class="id" href="/receipts/(rcp_\w+)"')
LEADS_ON = re.compile(r'<a href="([^"]+)" rel="(next|prev)">')


class Ledger:
    def __init__(self, data) -> None:
        genesis = data.load_genesis()
        self.chain = ChainStore(data.ledger, genesis)
        self.market = open_market(data.market, hash_genesis(genesis))
        self.rows = self.chain.database.reader.execute(
            "SELECT r.*, b.time_ms FROM receipts r JOIN transactions USING (leaf)"
            " JOIN blocks b USING (height) ORDER BY leaf DESC"
        ).fetchall()
        routes = build_explorer(
            LedgerViews(self.chain, self.market),
            market=None,
            clock_ms=lambda: self.rows[0]["time_ms"],
            head_changed=NobodyWaits(),
            release="0",
        )
        self.client = TestClient(Starlette(routes=routes))

    def follow(self, address: str, relation: str) -> list[list[str]]:
        pages = []
        while address:
            page = self.client.get(address)
            assert page.status_code == 200
            pages.append(ROW.findall(page.text))
            links = {rel: href.replace("&amp;", "&") for href, rel in LEADS_ON.findall(page.text)}
            self.last, address = address, links.get(relation, "")
            assert len(pages) <= len(self.rows)
        return pages

    def close(self) -> None:
        self.market.close()
        self.chain.close()


@pytest.fixture(scope="module")
def ledger(generated):
    with closing(Ledger(generated)) as ledger:
        yield ledger


def join(query: dict[str, str]) -> str:
    return "/receipts?" + "&".join(f"{name}={value}" for name, value in query.items())


def list_queries(ledger) -> list[dict[str, str]]:
    """Every set of filters, with the values of the newest receipt and of another one."""
    middle_ms = ledger.rows[len(ledger.rows) // 2]["time_ms"]
    day = datetime.fromtimestamp(middle_ms // 1000, UTC).date().isoformat()
    sets = itertools.chain.from_iterable(
        itertools.combinations(FILTERS, size) for size in range(len(FILTERS) + 1)
    )
    return [
        {name: row[FILTERS[name]] for name in names} | period
        for names in sets
        for row in (ledger.rows[0], ledger.rows[700])
        for period in ({}, {"from": day}, {"to": day})
        if names or row is ledger.rows[0]
    ]


def fits(row, query: dict[str, str]) -> bool:
    day = datetime.fromtimestamp(row["time_ms"] // 1000, UTC).date().isoformat()
    return (
        all(row[FILTERS[name]] == query[name] for name in FILTERS if name in query)
        and day >= query.get("from", "")
        and day < query.get("to", "9")
    )


def test_older_leads_over_the_whole_list_whatever_narrows_it(ledger):
    queries = list_queries(ledger)
    assert len(queries) == 3 * (1 + 7 * 2)
    for query in queries:
        expected = [row["receipt_id"] for row in ledger.rows if fits(row, query)]
        pages = ledger.follow(join(query), "next")
        assert list(itertools.chain(*pages)) == expected, query
        assert all(len(page) == 25 for page in pages[:-1])


def test_newer_leads_back_over_the_same_pages(ledger):
    for query in ({}, {"client": ledger.rows[0]["client"]}):
        down = ledger.follow(join(query), "next")
        up = ledger.follow(ledger.last, "prev")
        # Going up, the page at the top is whole, and overlaps the one below it.
        assert up[::-1][1:] == down[1:]
        assert up[-1] == down[0]
