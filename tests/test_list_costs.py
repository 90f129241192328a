"""What a page costs does not grow with the ledger: SQLite does as little for it at any depth.

A plan says which index is read, not how much of it: of two bounds on one column SQLite takes one,
and looks at every row that the other would have spared. So the work itself is counted, in steps of
SQLite's machine; a scan of this ledger, short as it is, is far above every bound here.
"""

import itertools
from contextlib import closing

import pytest

from ledger.block import hash_genesis
from ledger.jobs import format_job_id
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.views import LedgerViews, ReceiptFilter

ROWS = 5
STEP = 20
"""So many steps of SQLite's machine are counted as one."""
MOST = 60
"""Counted for one page; a scan of all receipts or jobs counts 300 and more."""
MOST_OF_A_PERIOD = 160
"""Its ends are found by halving, a block at a time."""
STATES = (None, "completed", "failed", "cancelled", "pending", "running")


class Ledger:
    def __init__(self, data) -> None:
        genesis = data.load_genesis()
        self.chain = ChainStore(data.ledger, genesis)
        self.market = open_market(data.market, hash_genesis(genesis))
        self.views = LedgerViews(self.chain, self.market)
        self.steps = 0
        for connection in (self.chain.database.reader, self.market.reader):
            connection.set_progress_handler(self._count, STEP)

    def _count(self) -> int:
        self.steps += 1
        return 0

    def measure(self, read, *arguments, **options) -> int:
        self.steps = 0
        read(*arguments, **options)
        return self.steps

    def select(self, statement: str, *values) -> list:
        return [row[0] for row in self.chain.database.reader.execute(statement, values)]

    def rank(self, table: str, column: str) -> list[str]:
        return self.select(f"SELECT {column} FROM {table} GROUP BY 1 ORDER BY count(*) DESC")

    def close(self) -> None:
        self.market.close()
        self.chain.close()


@pytest.fixture(scope="module")
def ledger(generated):
    with closing(Ledger(generated)) as ledger:
        yield ledger


def depths(last: int) -> list[int]:
    return [1, 7, last // 3, last // 2, last - 9, last, last + 100]


def test_a_scan_would_be_seen(ledger):
    (last,) = ledger.select("SELECT max(leaf) FROM receipts")
    for reader, scan in (
        (ledger.chain.database.reader, "SELECT 1 FROM receipts WHERE leaf >= 0 AND +leaf >= ?"),
        (ledger.market.reader, "SELECT 1 FROM jobs WHERE seq >= 0 AND +seq >= ?"),
    ):
        steps = ledger.measure(lambda r=reader, s=scan: r.execute(s, (last - 5,)).fetchall())
        assert steps > MOST_OF_A_PERIOD


def test_receipts_by_every_set_of_filters(ledger):
    last = ledger.select("SELECT max(leaf) FROM receipts")[0]
    times = ledger.select("SELECT time_ms FROM blocks ORDER BY height")
    clients = ledger.rank("receipts", "client")
    client, rare, miner = clients[0], clients[-1], ledger.rank("receipts", "provider")[0]
    periods = [(None, None), (times[len(times) // 2], None), (times[3], times[-3])]
    for chosen, provider, model, (first, end) in itertools.product(
        (None, client, rare, "nobody"), (None, miner), (None, "smollm2:135m"), periods
    ):
        wanted = ReceiptFilter(
            client=chosen, provider=provider, model=model, from_ms=first, to_ms=end
        )
        most = MOST if first is None else MOST_OF_A_PERIOD
        for depth, way in itertools.product(depths(last), ("before", "after")):
            steps = ledger.measure(ledger.views.receipts, wanted, limit=ROWS, **{way: depth})
            assert steps <= most, (wanted, way, depth)


def test_blocks_and_what_is_in_them(ledger):
    height, leaf = ledger.select("SELECT max(height) FROM blocks")[0], 0
    for depth in depths(height):
        assert ledger.measure(ledger.views.blocks, limit=ROWS, before=depth) <= MOST
        assert ledger.measure(ledger.views.block_transactions, depth, limit=ROWS) <= MOST
        if depth <= height:
            (leaf,) = ledger.select("SELECT first_leaf FROM blocks WHERE height = ?", depth)
        steps = ledger.measure(ledger.views.block_transactions, depth, limit=ROWS, after=leaf)
        assert steps <= MOST
    last = ledger.select("SELECT max(leaf) FROM transactions")[0]
    for depth in depths(last):
        assert ledger.measure(ledger.views.transactions, limit=ROWS, before=depth) <= MOST


def test_jobs_in_every_state(ledger):
    (last,) = ledger.market.reader.execute("SELECT max(seq) FROM jobs").fetchone()
    for state, depth, way in itertools.product(STATES, depths(last), ("before", "after")):
        steps = ledger.measure(ledger.views.jobs, state, limit=ROWS, **{way: depth})
        assert steps <= MOST, (state, way, depth)
        assert state is None or ledger.measure(ledger.views.count_jobs, state) <= MOST


def test_audits_of_a_receipt_and_of_a_provider(ledger):
    (receipt_id,) = ledger.select("SELECT receipt_id FROM audits LIMIT 1")
    provider = ledger.rank("audits", "provider")[0]
    last = ledger.select("SELECT max(leaf) FROM transactions")[0]
    for depth in depths(last):
        assert ledger.measure(ledger.views.audits, receipt_id, limit=ROWS, before=depth) <= MOST
        steps = ledger.measure(ledger.views.provider_audits, provider, limit=ROWS, before=depth)
        assert steps <= MOST


def test_one_thing_by_its_name(ledger):
    receipt_id, job_id = ledger.chain.database.reader.execute(
        "SELECT receipt_id, job_id FROM receipts WHERE leaf > 500 LIMIT 1"
    ).fetchone()
    (id_,) = ledger.select("SELECT id FROM transactions WHERE leaf = 500")
    (block_hash,) = ledger.select("SELECT hash FROM blocks WHERE height = 30")
    (job,) = ledger.market.reader.execute("SELECT id FROM jobs WHERE state = 'failed'").fetchone()
    (provider,) = ledger.select("SELECT provider FROM receipts WHERE leaf = 500")
    views = ledger.views
    for read, key in (
        (views.receipt, receipt_id),
        (views.bundle, receipt_id),
        (views.transaction, id_.hex()),
        (views.block_by_hash, block_hash.hex()),
        (views.block, 30),
        (views.raw_block, 30),
        (views.job, format_job_id(job)),
        (views.account, provider),
    ):
        assert ledger.measure(read, key) <= MOST_OF_A_PERIOD, (read, key)
    for text in (receipt_id, job_id, id_.hex(), block_hash.hex(), provider, "30", "nothing"):
        assert ledger.measure(views.search, text) <= MOST, text
        for size in (2, 4, 10):
            assert ledger.measure(views.suggest, text[:size]) <= MOST_OF_A_PERIOD, text[:size]
    assert ledger.measure(views.head) <= MOST
