"""Statements read from a ledger are those of the chain in it, whatever the period."""

import itertools

import pytest

from ledger.block import hash_genesis
from ledger.encoding import MAX_INTEGER, encode
from ledger.errors import StatementTooLongError, StoreError
from ledger.statement import parse_statement, verify_statement
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.totals import Sum, Totals
from ledger.views import LedgerViews
from ledger.views import statements as module
from tests.builders import CREATED_MS, build_chain, build_receipt
from tests.statement_tampering import BLOCK_MS, CLIENT, MINER, build_market

ACCOUNTS = (CLIENT, "client-2", "client-3", MINER, "old-miner")
HEIGHTS = range(1, 6)
OPEN = {"from_ms": 0, "to_ms": MAX_INTEGER}


class Ledger:
    """A chain in memory and the same chain in a file."""

    def __init__(self, root, chain) -> None:
        self.chain = chain
        self.store = ChainStore(root / "ledger.db", chain.genesis)
        self.market = open_market(root / "node.db", hash_genesis(chain.genesis))
        self.views = LedgerViews(self.store, self.market)
        for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
            self.store.append(block, certificate).result()

    def expect(self, account, from_ms, to_ms):
        """What the chain holds: (leaf, height, time, receipt id) of each line."""
        return [
            (header.tree_size - len(block.transactions) + i, header.height, header.time_ms, receipt)
            for block in self.chain.blocks
            if from_ms <= (header := block.header).time_ms < to_ms
            for i, transaction in enumerate(block.transactions)
            if account in ((p := transaction.payload).client, p.provider)
            and (receipt := p.receipt_id)
        ]

    def close(self):
        self.market.close()
        self.store.close()


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("statements"), build_market())
    yield ledger
    ledger.close()


def time_of(height):
    return CREATED_MS + height * BLOCK_MS


def list_lines(ledger, statement, limit=2):
    """All lines, read a few at a time."""
    lines, after = [], None
    while page := ledger.views.statement_lines(statement, limit=limit, after=after):
        assert len(page) <= limit
        lines += page
        after = page[-1].line.leaf
    return lines


def add_up(ledger, statement, limit=1) -> Totals:
    """All totals, read a few at a time."""
    shares = {"model": [], "counterparty": []}
    for noun, found in shares.items():
        name = ""
        while page := ledger.views.statement_shares(statement, noun, limit=limit, after=name):
            assert len(page) <= limit
            found += page
            name = page[-1].name
    return Totals(
        earned=statement.earned,
        spent=statement.spent,
        by_model=tuple(shares["model"]),
        by_counterparty=tuple(shares["counterparty"]),
    )


def read(ledger, statement):
    return [
        (line.line.leaf, line.height, line.time_ms, line.line.receipt_id)
        for line in list_lines(ledger, statement)
    ]


MOMENTS = sorted(
    {0, MAX_INTEGER, *(time_of(height) + step for height in (0, *HEIGHTS) for step in (-1, 0, 1))}
)


@pytest.mark.parametrize("account", [*ACCOUNTS, "nobody", "client", "%", "' OR 1=1 --"])
def test_a_statement_holds_the_lines_of_its_period_and_no_other(ledger, account):
    for from_ms, to_ms in itertools.combinations(MOMENTS, 2):
        expected = ledger.expect(account, from_ms, to_ms)
        statement = ledger.views.statement(account, from_ms=from_ms, to_ms=to_ms)
        assert read(ledger, statement) == expected
        assert (statement.account, statement.from_ms, statement.to_ms) == (account, from_ms, to_ms)
        heights = [h for h in HEIGHTS if from_ms <= time_of(h) < to_ms]
        below = [h for h in HEIGHTS if time_of(h) < from_ms]
        assert list(range(statement.first_height, statement.last_height + 1)) == heights
        sizes = [0, *(block.header.tree_size for block in ledger.chain.blocks)]
        assert statement.first_leaf == sizes[len(below)]
        assert statement.end_leaf == sizes[len(below) + len(heights)]


def test_its_bundle_is_the_one_that_the_protocol_describes_and_proves_the_same_totals(ledger):
    for account in ACCOUNTS:
        for from_ms, to_ms in itertools.combinations(MOMENTS, 2):
            data = ledger.views.statement_bundle(account, from_ms=from_ms, to_ms=to_ms)
            if not ledger.expect(account, from_ms, to_ms):
                assert data is None
                continue
            assert data == encode(ledger.chain.statement(account, from_ms=from_ms, to_ms=to_ms))
            verdict = verify_statement(data, genesis=ledger.chain.genesis)
            assert verdict.verified, verdict.claims
            statement = ledger.views.statement(account, from_ms=from_ms, to_ms=to_ms)
            assert verdict.totals == add_up(ledger, statement)
            assert verdict.lines == len(list_lines(ledger, statement))


def test_a_line_names_both_sides_and_what_was_done(ledger):
    (line,) = list_lines(ledger, ledger.views.statement("old-miner", from_ms=0, to_ms=time_of(3)))
    payload = ledger.chain.transactions[2].payload
    assert (line.line.role, line.line.counterparty) == ("provider", CLIENT)
    assert (line.line.model, line.line.price_micros) == ("llama3.2", 7)
    assert line.line.transaction_id == ledger.chain.transactions[2].id.hex()
    assert line.line.job_id == payload.job_id
    own = list_lines(ledger, ledger.views.statement(MINER, **OPEN))[3].line
    assert (own.role, own.counterparty) == ("both", MINER)
    first = list_lines(ledger, ledger.views.statement(CLIENT, **OPEN))[0]
    assert first.line.role == "client"


def test_an_empty_chain_has_empty_statements(tmp_path):
    ledger = Ledger(tmp_path, build_chain(1))
    statement = ledger.views.statement(CLIENT, **OPEN)
    assert (list_lines(ledger, statement), add_up(ledger, statement)) == (
        [],
        Totals(earned=Sum(), spent=Sum(), by_model=(), by_counterparty=()),
    )
    assert (statement.is_empty, statement.first_height, statement.last_height) == (True, 1, 0)
    assert (statement.first_leaf, statement.end_leaf) == (0, 0)
    assert ledger.views.statement_bundle(CLIENT, **OPEN) is None
    ledger.close()


def test_too_many_lines_are_refused_with_the_end_that_still_fits(ledger, monkeypatch):
    """CLIENT has lines in blocks 1, 2, 2, 4, 5 and MINER in blocks 1, 2, 2, 4, 4, 5."""
    for account, limit, ends in (
        (CLIENT, 4, time_of(5)),
        (CLIENT, 3, time_of(4)),
        (CLIENT, 2, time_of(2)),
        (MINER, 5, time_of(5)),
        (MINER, 4, time_of(4)),
    ):
        monkeypatch.setattr(module, "MAX_STATEMENT_LINES", limit)
        with pytest.raises(StatementTooLongError) as refused:
            ledger.views.statement_bundle(account, **OPEN)
        assert refused.value.fits_until_ms == ends
        assert ledger.views.statement_bundle(account, from_ms=0, to_ms=ends)
        whole = list_lines(ledger, ledger.views.statement(account, **OPEN))
        assert len(whole) == len(ledger.expect(account, 0, MAX_INTEGER)) > limit
    monkeypatch.setattr(module, "MAX_STATEMENT_LINES", 5)
    assert ledger.views.statement_bundle(CLIENT, **OPEN)


def test_a_block_that_alone_is_too_much_has_no_end_that_fits(ledger, monkeypatch):
    monkeypatch.setattr(module, "MAX_STATEMENT_LINES", 1)
    with pytest.raises(StatementTooLongError) as refused:
        ledger.views.statement_bundle(CLIENT, from_ms=time_of(2), to_ms=MAX_INTEGER)
    assert refused.value.fits_until_ms is None


def test_a_statement_reads_by_index_only(ledger):
    """No table is scanned and nothing is sorted, however long the chain is."""
    reader, statements = ledger.store.database.reader, []
    reader.set_trace_callback(statements.append)
    try:
        ledger.views.statement_bundle(CLIENT, from_ms=time_of(2), to_ms=time_of(5))
        list_lines(ledger, ledger.views.statement(CLIENT, from_ms=time_of(2), to_ms=time_of(5)))
    finally:
        reader.set_trace_callback(None)
    selects = [statement for statement in statements if statement.startswith("SELECT")]
    assert len(selects) > 5
    for statement in selects:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        scans = [step for step in plan if step.startswith(("SCAN", "USE TEMP"))]
        assert scans == [], statement


def test_the_largest_amounts_are_added_up_exactly(tmp_path):
    """Their sum is no integer of SQLite's any more."""
    ledger = Ledger(tmp_path, build_chain(1, blocks=[3]))
    most = MAX_INTEGER * 1000
    ledger.store.database.write(
        lambda c: c.execute("UPDATE receipts SET price_micros = ?", (most,)) and None
    ).result()
    statement = ledger.views.statement(CLIENT, **OPEN)
    assert statement.spent.price_micros == 3 * most > 2**63
    assert add_up(ledger, statement).by_model[0].spent.price_micros == 3 * most
    ledger.close()


def test_a_missing_block_is_our_fault_and_said_so(tmp_path):
    ledger = Ledger(tmp_path, build_chain(1, blocks=[1, 1, 1]))

    def lose_block(connection):
        connection.execute("PRAGMA defer_foreign_keys = ON")
        connection.execute("UPDATE transactions SET height = 1 WHERE height = 2")
        connection.execute("DELETE FROM blocks WHERE height = 2")

    ledger.store.database.write(lose_block).result()
    with pytest.raises(StoreError, match="block 2 is missing"):
        ledger.views.statement(CLIENT, from_ms=time_of(2), to_ms=time_of(3))
    ledger.close()


def test_a_statement_sees_one_state_of_the_chain(tmp_path):
    """A bundle that is made while blocks arrive is still whole, and the next one has them."""
    ledger = Ledger(tmp_path, build_chain(1, blocks=[1, 1]))
    before = ledger.views.statement_bundle(CLIENT, **OPEN)
    block = ledger.chain.append(build_receipt(ledger.chain.genesis, 9))
    with ledger.store.database.snapshot():
        ledger.views.statement(CLIENT, **OPEN)
        ledger.store.append(block, ledger.chain.certificates[-1]).result()
        assert ledger.views.statement_bundle(CLIENT, **OPEN) == before
    after = parse_statement(ledger.views.statement_bundle(CLIENT, **OPEN))
    assert [entry.index for entry in after.entries] == [0, 1, 2]
    ledger.close()
