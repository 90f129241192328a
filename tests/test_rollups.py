"""What is summed up over time: the same on every node, whatever way its blocks came."""

import contextlib
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.block import hash_genesis
from ledger.errors import HistoryMissingError
from ledger.store import rollups
from ledger.store.accounts import MAX_TOTAL
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.store.rollups import SPANS_MS, BlockTime, add_pace, add_usage
from ledger.store.rows import Figures
from ledger.views import LedgerViews
from ledger.views import charts as chart_views
from tests.builders import build_chain

DAY_MS, HOUR_MS, MINUTES_MS = sorted(SPANS_MS, reverse=True)


@contextlib.contextmanager
def open_empty():
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        for statement in rollups.SCHEMA:
            connection.execute(statement)
        yield connection


@pytest.fixture
def empty():
    with open_empty() as connection:
        yield connection


def build_figures(time_ms=0, **changes) -> Figures:
    values = {
        "client": "ann",
        "provider": "old-miner",
        "coordinator": "first",
        "model": "m1",
        "unit_type": "tokens",
        "units_micros": 3,
        "price_micros": 5,
    }
    return Figures(time_ms=time_ms, **values | changes)


def dump(connection) -> list[tuple]:
    return [
        row
        for table, order in (("usage_rollups", "1, 2, 3"), ("pace_rollups", "1, 2"))
        for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}")
    ]


def test_a_receipt_counts_in_its_span_of_each_length_for_its_model_and_for_all(empty):
    time_ms = 3 * DAY_MS + 5 * HOUR_MS + 7 * MINUTES_MS + 11
    add_usage(empty, [build_figures(time_ms), build_figures(time_ms, unit_type="gpu_seconds")])
    rows = empty.execute("SELECT * FROM usage_rollups ORDER BY span_ms, model").fetchall()
    starts = [time_ms - 11, 3 * DAY_MS + 5 * HOUR_MS, 3 * DAY_MS]
    assert rows == [
        (span, model, start, 2, 3, 5, 3, 5)
        for span, start in zip((MINUTES_MS, HOUR_MS, DAY_MS), starts, strict=True)
        for model in ("", "m1")
    ]


def test_the_first_block_has_no_distance(empty):
    add_pace(empty, BlockTime(time_ms=DAY_MS, gap_ms=None))
    add_pace(empty, BlockTime(time_ms=DAY_MS + 7, gap_ms=7))
    rows = empty.execute("SELECT * FROM pace_rollups ORDER BY span_ms").fetchall()
    assert rows == [(span, DAY_MS, 2, 1, 7) for span in sorted(SPANS_MS)]


@given(
    st.lists(
        st.builds(
            build_figures,
            time_ms=st.integers(0, 3 * DAY_MS),
            model=st.sampled_from(["a", "b"]),
            units_micros=st.integers(0, 2**53 - 1),
            price_micros=st.integers(0, 2**53 - 1),
            unit_type=st.sampled_from(["tokens", "gpu_seconds"]),
        ),
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_the_sums_do_not_depend_on_order_or_portions(receipts, random):
    with open_empty() as once, open_empty() as apart:
        add_usage(once, receipts)
        shuffled = random.sample(receipts, len(receipts))
        for receipt in shuffled:
            add_usage(apart, [receipt])
        assert dump(once) == dump(apart)


def test_no_amount_keeps_a_block_out(empty):
    large = [build_figures(units_micros=2**53 - 1, price_micros=2**53 - 1)] * 700
    for _ in range(3):
        add_usage(empty, large)
    rows = set(empty.execute("SELECT tokens_micros, tokens_price_micros FROM usage_rollups"))
    assert rows == {(MAX_TOTAL, MAX_TOTAL)}
    for _ in range(3):
        add_pace(empty, BlockTime(time_ms=0, gap_ms=MAX_TOTAL - 1))
    assert {row[0] for row in empty.execute("SELECT gap_ms FROM pace_rollups")} == {MAX_TOTAL}


# --- a file, and what is read of it -------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path):
    chain = build_chain(1, blocks=[2, 1, 4])
    store = ChainStore(tmp_path / "ledger.db", chain.genesis)
    market = open_market(tmp_path / "node.db", hash_genesis(chain.genesis))
    for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
        store.append(block, certificate).result()
    yield chain, LedgerViews(store, market), store
    market.close()
    store.close()


def test_a_file_that_had_no_sums_gets_the_same_ones(ledger):
    _, _, store = ledger
    kept = dump(store.database.reader)
    kept = [tuple(row) for row in kept]

    def again(connection) -> None:
        connection.execute("DELETE FROM usage_rollups")
        connection.execute("DELETE FROM pace_rollups")
        rollups.fill_rollups(connection)

    store.database.write(again).result()
    assert [tuple(row) for row in dump(store.database.reader)] == kept
    assert kept


def test_what_is_read_is_what_the_chain_holds(ledger):
    chain, views, _ = ledger
    payloads = [transaction.payload for transaction in chain.transactions]
    whole = {"from_ms": 0, "to_ms": 2**53}
    for model in (None, payloads[0].model):
        (row,) = views.usage(DAY_MS, **whole, model=model)
        assert row.receipts == len(payloads)
        assert row.tokens_micros == sum(p.units_micros for p in payloads)
        assert row.tokens_price_micros == sum(p.price_micros for p in payloads)
    assert views.usage(DAY_MS, **whole, model="none") == []
    assert views.top_models(HOUR_MS, **whole, limit=3) == [payloads[0].model]
    (pace,) = views.pace(DAY_MS, **whole)
    times = [block.header.time_ms for block in chain.blocks]
    assert (pace.blocks, pace.gaps, pace.gap_ms) == (3, 2, times[-1] - times[0])
    assert views.pace(DAY_MS, from_ms=0, to_ms=pace.start_ms) == []


def test_models_are_ranked_by_receipts_then_by_name(ledger):
    _, views, store = ledger
    figures = [build_figures(model=model) for model in "bacbac"] + [build_figures(model="z")] * 3
    store.database.write(lambda c: add_usage(c, figures)).result()
    assert views.top_models(DAY_MS, from_ms=0, to_ms=DAY_MS, limit=3) == ["z", "a", "b"]


def test_a_chart_reads_ranges_of_indexes(ledger):
    _, views, store = ledger
    reader, statements = store.database.reader, []
    reader.set_trace_callback(statements.append)
    try:
        views.usage(MINUTES_MS, from_ms=0, to_ms=9, model="m1")
        views.top_models(MINUTES_MS, from_ms=0, to_ms=9, limit=5)
        views.pace(MINUTES_MS, from_ms=0, to_ms=9)
    finally:
        reader.set_trace_callback(None)
    charts = [statement for statement in statements if "rollups" in statement]
    assert len(charts) == 3
    for statement in charts:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert [step for step in plan if step.startswith(("SCAN", "USE TEMP"))] == [], plan
        assert "LIMIT" in statement


def test_a_chart_of_a_file_with_a_gap_is_refused(ledger, monkeypatch):
    def refuse(_connection):
        raise HistoryMissingError("blocks are missing")

    monkeypatch.setattr(chart_views, "require_history", refuse)
    for read in (ledger[1].usage, ledger[1].pace):
        with pytest.raises(HistoryMissingError):
            read(DAY_MS, from_ms=0, to_ms=1)
