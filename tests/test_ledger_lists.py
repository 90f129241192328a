"""Lists of receipts and totals of accounts on a real file: right, and read by index alone."""

import contextlib
import itertools
import sqlite3

import pytest

from ledger.block import hash_genesis
from ledger.errors import HistoryMissingError
from ledger.store import accounts as account_store
from ledger.store.accounts import MAX_TOTAL, add_to_accounts
from ledger.store.chain import ChainStore
from ledger.store.fsck import verify_chain
from ledger.store.market import open_market
from ledger.store.mempool import insert_transaction
from ledger.store.rows import Figures
from ledger.views import LedgerViews, ReceiptFilter
from ledger.views import accounts as account_views
from ledger.views import lists as list_views
from tests.builders import CREATED_MS, Chain, build_chain, build_key, build_receipt

CLIENTS, MODELS = ("ann", "bob", "cy"), ("m1", "m2")
PROVIDERS = (build_key("miner").account, "old-miner")
HOUR_MS = 3_600_000
PENDING = 4


def build_market_chain() -> Chain:
    """Six blocks of four receipts, an hour apart, of every client, provider and model."""
    chain = build_chain(1)
    sides = itertools.cycle(itertools.product(CLIENTS, PROVIDERS, MODELS))
    numbers = itertools.count(1)
    for _ in range(6):
        receipts = []
        for _ in range(4):
            client, provider, model = next(sides)
            number = next(numbers)
            receipts.append(
                build_receipt(
                    chain.genesis,
                    number,
                    client=client,
                    provider=provider,
                    model=model,
                    price_micros=number,
                )
            )
        chain.append(*receipts)
    return chain


class Ledger:
    """The chain in a file, and receipts of each client that wait."""

    def __init__(self, root) -> None:
        self.chain = build_market_chain()
        self.path = root / "ledger.db"
        self.store = ChainStore(self.path, self.chain.genesis)
        self.market = open_market(root / "node.db", hash_genesis(self.chain.genesis))
        self.views = LedgerViews(self.store, self.market)
        for block, certificate in zip(self.chain.blocks, self.chain.certificates, strict=True):
            self.store.append(block, certificate).result()
        self.waiting = [
            build_receipt(self.chain.genesis, 100 + n, client=CLIENTS[n % 3], model="m1")
            for n in range(PENDING)
        ]
        for receipt in self.waiting:
            self.market.write(lambda c, r=receipt: insert_transaction(c, r, now_ms=1)).result()

    def expect(self, wanted: ReceiptFilter) -> list[str]:
        """What the chain and the mempool hold, newest first."""
        final = [
            (block.header.time_ms, transaction.payload)
            for block in self.chain.blocks
            for transaction in block.transactions
        ]
        pending = [(None, receipt.payload) for receipt in self.waiting]
        return [
            payload.receipt_id
            for time_ms, payload in reversed(final + pending)
            if wanted.client in (None, payload.client)
            and wanted.provider in (None, payload.provider)
            and wanted.model in (None, payload.model)
            and (wanted.to_ms is None or (time_ms is not None and time_ms < wanted.to_ms))
            and (wanted.from_ms is None or time_ms is None or time_ms >= wanted.from_ms)
        ]

    def close(self) -> None:
        self.market.close()
        self.store.close()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("lists"))
    yield ledger
    ledger.close()


def time_of(ledger, height: int) -> int:
    return ledger.chain.blocks[height - 1].header.time_ms


def list_filters(ledger) -> list[ReceiptFilter]:
    """Every set of filters, narrow and empty ones."""
    periods = [(None, None), (time_of(ledger, 3), None), (None, time_of(ledger, 3))]
    periods += [(time_of(ledger, 2), time_of(ledger, 5)), (0, CREATED_MS)]
    return [
        ReceiptFilter(client=client, provider=provider, model=model, from_ms=first, to_ms=end)
        for client, provider, model, (first, end) in itertools.product(
            (None, "ann", "nobody"), (None, PROVIDERS[0], "old-miner"), (None, "m1"), periods
        )
    ]


def ids(rows) -> list[str]:
    return [row.payload.receipt_id for row in rows]


def test_every_set_of_filters_chooses_what_fits_in_order(ledger):
    for wanted in list_filters(ledger):
        assert ids(ledger.views.receipts(wanted, limit=100)) == ledger.expect(wanted), wanted


@pytest.mark.parametrize("size", [1, 3, 7])
def test_pages_lead_down_and_back_up_over_the_same_rows(ledger, size):
    for wanted in (ReceiptFilter(), ReceiptFilter(client="ann"), ReceiptFilter(from_ms=1)):
        whole = ledger.expect(wanted)
        pages, before = [], None
        while page := ledger.views.receipts(wanted, limit=size, before=before):
            pages.append(page)
            before = page[-1].transaction.cursor
        assert list(itertools.chain(*map(ids, pages))) == whole
        for above, below in itertools.pairwise(pages):
            after = below[0].transaction.cursor
            assert ids(ledger.views.receipts(wanted, limit=size, after=after)) == ids(above)


def test_a_list_reads_ranges_of_indexes_whatever_is_asked_for(ledger):
    """No table is scanned, nothing is sorted, skipped or counted, however long the chain is."""
    reader, statements = ledger.store.database.reader, []
    reader.set_trace_callback(statements.append)
    try:
        for wanted in list_filters(ledger):
            ledger.views.receipts(wanted, limit=5, before=20)
            ledger.views.receipts(wanted, limit=5, after=2)
    finally:
        reader.set_trace_callback(None)
    selects = {statement for statement in statements if statement.startswith("SELECT")}
    lists = [statement for statement in selects if "envelope" in statement or "t.*" in statement]
    assert len(lists) > 100
    for statement in lists:
        assert "OFFSET" not in statement
        assert "count(" not in statement
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert [step for step in plan if step.startswith(("SCAN", "USE TEMP"))] == [], statement
        columns = [c for c in ("client", "provider", "model") if f" AND {c} = " in statement]
        if columns and "FROM receipts" in statement:
            # The planner may choose the same today, and another one for other figures.
            assert f"INDEXED BY receipts_{'_'.join(columns)} " in statement
            used = " AND ".join(f"{column}=?" for column in columns)
            assert any(f"({used} AND rowid>? AND rowid<?)" in step for step in plan), plan


# --- totals of accounts -------------------------------------------------------------------------


def test_an_account_has_the_sums_of_its_final_receipts(ledger):
    payloads = [transaction.payload for transaction in ledger.chain.transactions]
    for name in (*CLIENTS, *PROVIDERS):
        account = ledger.views.account(name)
        earned = [p.price_micros for p in payloads if p.provider == name]
        spent = [p.price_micros for p in payloads if p.client == name]
        assert (account.earned_receipts, account.earned_micros) == (len(earned), sum(earned))
        assert (account.spent_receipts, account.spent_micros) == (len(spent), sum(spent))
    authority = ledger.views.account(build_key("authority 0").account)
    assert authority.coordinated_receipts == len(payloads)
    assert authority.coordinates
    assert authority.authority is not None


def test_an_account_that_nothing_tells_of_is_unknown(ledger):
    assert ledger.views.account("nobody") is None
    assert ledger.views.account(build_key("stranger").account) is None
    assert ledger.views.search(build_key("stranger").account) is None
    assert ledger.views.search(PROVIDERS[0]).kind == "account"


def test_an_account_of_a_file_with_a_gap_is_not_summed_up(ledger, monkeypatch):
    def refuse(_connection):
        raise HistoryMissingError("blocks are missing")

    monkeypatch.setattr(account_views, "require_history", refuse)
    with pytest.raises(HistoryMissingError):
        ledger.views.account("ann")
    monkeypatch.undo()
    monkeypatch.setattr(list_views, "find_period", lambda *_: refuse(None))
    with pytest.raises(HistoryMissingError):
        ledger.views.receipts(ReceiptFilter(from_ms=1), limit=1)
    assert ledger.views.receipts(ReceiptFilter(), limit=1)


@pytest.fixture
def empty():
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(account_store.SCHEMA)
        yield connection


def build_figures(price_micros: int, **changes) -> Figures:
    values = {
        "client": "ann",
        "provider": "old-miner",
        "coordinator": "first",
        "model": "m1",
        "unit_type": "tokens",
        "units_micros": 1,
        "time_ms": 1,
    }
    return Figures(price_micros=price_micros, **values | changes)


def test_one_who_pays_himself_earns_and_spends(empty):
    add_to_accounts(empty, [build_figures(5, client="x", provider="x", coordinator="x")])
    assert empty.execute("SELECT * FROM accounts").fetchall() == [("x", 1, 5, 1, 5, 1)]


@pytest.mark.parametrize("split", [1, 600, 1500])
def test_no_price_keeps_a_block_out(empty, split):
    """The sums stop at the largest integer, in whichever order and however many at a time."""
    prices = [2**53 - 1] * 1500
    add_to_accounts(empty, map(build_figures, prices[:split]))
    add_to_accounts(empty, map(build_figures, prices[split:]))
    add_to_accounts(empty, [build_figures(7)])
    rows = dict(empty.execute("SELECT account, max(earned_micros, spent_micros) FROM accounts"
                              " GROUP BY account"))  # fmt: skip
    assert rows == {"ann": MAX_TOTAL, "old-miner": MAX_TOTAL, "first": 0}


def test_fsck_counts_the_totals_again(ledger):
    assert verify_chain(ledger.path, ledger.chain.genesis, lambda *_: None) == ledger.chain.tip
