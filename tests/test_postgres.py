"""The market in PostgreSQL: one writer at a time among processes, and what a lost server costs."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest
import sqlite_utils

from ledger.block import hash_genesis
from ledger.errors import MarketError, StoreError
from ledger.store import jobs as job_store
from ledger.store import lists, market, mempool, registry
from ledger.store.known import KnownRows
from ledger.store.postgres import market as module
from ledger.store.postgres import session
from ledger.store.postgres.connecting import IDLE_TIMEOUT_MS, ServerAddress
from ledger.store.postgres.dialect import translate
from ledger.store.postgres.market import open_shared_market
from ledger.store.postgres.schema import VERSIONS
from ledger.store.registry import ApiKey
from ledger.store.writequeue import DatabaseLostError
from tests.builders import CREATED_MS, build_genesis, build_receipt
from tests.live import ROOT
from tests.market_node import SETTINGS, MarketNode
from tests.postgres import PostgresServer, shared_server
from tests.test_market_store import build_job, build_miner

GENESIS = build_genesis()
GENESIS_HASH = hash_genesis(GENESIS)
SECRET = "correct-horse"
TIMEOUT_S = 30
KEY = ApiKey(
    prefix="a", digest=b"d", role="client", client="c", created_at_ms=CREATED_MS, revoked_at_ms=None
)


@pytest.fixture
def url():
    with shared_server().schema() as url:
        yield url


@pytest.fixture
def open_one(url):
    """Opens the market as one more process would."""
    with contextlib.ExitStack() as stack:

        def open_one(**options):
            store = open_shared_market(url, GENESIS_HASH, **options)
            stack.callback(store.close)
            return store

        yield open_one


@pytest.fixture
def store(open_one):
    return open_one()


@pytest.fixture
def server():
    """A server that a test may stop."""
    server = PostgresServer()
    yield server
    server.remove()


def write(store, function, *args, **options):
    return store.write(lambda c: function(c, *args, **options)).result(TIMEOUT_S)


def submit(store, number=1):
    job = build_job(number)
    write(store, job_store.insert_job, job)
    return job


# --- statements and tables -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "translated"),
    [
        ("SELECT * FROM jobs WHERE id = ?", b"SELECT * FROM jobs WHERE id = $1"),
        ("VALUES (?, ?)", b"VALUES ($1, $2)"),
        ("a = ?1 AND b = ?2 AND c = ?1", b"a = $1 AND b = $2 AND c = $1"),
        ("FROM x INDEXED BY y WHERE a IS ?", b"FROM x WHERE a IS NOT DISTINCT FROM $1"),
        ("a IS NOT ? AND b IS NULL", b"a IS DISTINCT FROM $1 AND b IS NULL"),
    ],
)
def test_statements_are_translated(statement, translated):
    assert translate(statement) == translated


def test_the_tables_have_the_columns_of_node_db_in_their_order(store):
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        market.migrations.apply(sqlite_utils.Database(file))
        names = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view')"
        tables = [row[0] for row in file.execute(names) if not row[0].startswith(("sqlite_", "_"))]
        columns = {t: [c[1] for c in file.execute(f"PRAGMA table_info({t})")] for t in tables}
        counters = {row[0] for row in file.execute("SELECT name FROM counters")}
    for table, expected in columns.items():
        found = store.reader.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = ?"
            " AND table_schema = current_schema() ORDER BY ordinal_position",
            (table,),
        )
        more = ["coordinator"] if table == "node" else []
        assert [row[0] for row in found] == expected + more, table
    assert {row[0] for row in store.reader.execute("SELECT name FROM counters")} == counters


def test_rows_have_their_columns_by_name_and_by_place(store):
    row = store.reader.execute("SELECT 1 AS a, 'x' AS b").fetchone()
    assert (row["a"], row["b"], row[0], row[-1], tuple(row)) == (1, "x", 1, "x", (1, "x"))
    first, second = row
    assert (first, second) == (1, "x")


def test_a_name_with_a_nul_is_nobodys(store):
    assert registry.find_miner(store.reader, "m\0") is None


def test_processes_that_open_an_empty_database_at_once_make_it_once(url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_shared_market(url, GENESIS_HASH), range(4)))
    versions = stores[0].reader.execute("SELECT version FROM schema_version").fetchall()
    for store in stores:
        store.close()
    assert [tuple(row) for row in versions] == [(len(VERSIONS),)]


def test_a_database_of_a_newer_release_is_refused(store, url):
    store.write(lambda c: c.execute("UPDATE schema_version SET version = 99")).result()
    with pytest.raises(StoreError, match="upgrade this process"):
        open_shared_market(url, GENESIS_HASH)


def test_a_database_of_another_coordinator_is_refused(open_one, url):
    open_one(coordinator="ait1one")
    open_one()  # whoever makes keys does not care
    with pytest.raises(StoreError, match="each coordinator has a database of its own"):
        open_shared_market(url, GENESIS_HASH, coordinator="ait1two")


# --- secrets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@127.0.0.1:1/n",
        f"postgresql://u@127.0.0.1:1/n?password={SECRET}",
        f"postgresql://u:{SECRET}@127.0.0.1:x/n",
        f"postgresql://u:{SECRET}@127.0.0.1/n?nonsense={SECRET}",
        f"mysql://u:{SECRET}@127.0.0.1/n",
    ],
)
def test_no_error_shows_what_is_in_the_url(url):
    with pytest.raises(StoreError) as refused:
        open_shared_market(url, GENESIS_HASH)
    assert SECRET not in repr(refused.value)
    assert refused.value.__cause__ is None or SECRET not in repr(refused.value.__cause__)


def test_an_address_shows_no_password():
    address = ServerAddress(f"postgresql://u:{SECRET}@db.example/market")
    assert address.name == "market on db.example"
    assert SECRET not in repr(address)


# --- one writer at a time ------------------------------------------------------------------------


def test_of_processes_that_claim_one_job_one_gets_it(open_one):
    stores = [open_one() for _ in range(3)]
    jobs = [submit(stores[0], number) for number in range(10)]

    def claim(store, job):
        return store.write(
            lambda c: job_store.claim_job(
                c,
                job_store.load_job(c, job.id),
                miner_id="m",
                provider="m",
                claimed_by="k",
                now_ms=1,
                lease_expires_at_ms=2,
                heartbeat=False,
            )
        )

    claims = [claim(store, job) for job in jobs for store in stores]
    won = [claim.exception(TIMEOUT_S) is None for claim in claims]
    assert sum(won) == len(jobs)
    assert lists.count_jobs(stores[1].reader, state="running") == len(jobs)


def test_what_a_write_has_checked_holds_until_it_changes_something(open_one):
    """No write of another process comes between: else a quota of one would let two through."""
    stores = [open_one() for _ in range(3)]

    def submit_if_none(number):
        def work(connection):
            if lists.count_jobs(connection) == 0:
                connection.execute("SELECT pg_sleep(0.05)")
                job_store.insert_job(connection, build_job(number))

        return work

    writes = [store.write(submit_if_none(number)) for number, store in enumerate(stores)]
    for each in writes:
        each.result(TIMEOUT_S)
    assert lists.count_jobs(stores[0].reader) == 1


def test_places_can_be_read_in_their_order_whoever_stores(open_one):
    """Whoever has read up to a place has seen everything below it: gossip rests on that."""
    stores, seen = [open_one() for _ in range(3)], []
    receipts = [build_receipt(GENESIS, number) for number in range(30)]
    writes = [
        stores[n % 3].write(lambda c, r=r: mempool.insert_transaction(c, r, now_ms=1))
        for n, r in enumerate(receipts)
    ]
    while len(seen) < len(receipts):
        page = mempool.list_mempool(stores[0].reader, limit=100, after=seen[-1] if seen else 0)
        seen += [row[0] for row in page]
    assert sorted(each.result(TIMEOUT_S) for each in writes) == seen


def test_a_refused_write_leaves_nothing_and_takes_no_other_with_it(store):
    def half(connection):
        job_store.insert_job(connection, build_job(1))
        raise MarketError("JOB_NOT_FOUND", "no")

    def wrong(connection):
        connection.execute("INSERT INTO counters VALUES ('turns', 0)")

    started, go = threading.Event(), threading.Event()
    held = store.write(lambda _: (started.set(), go.wait(TIMEOUT_S)))
    started.wait(TIMEOUT_S)
    refused = [store.write(half), store.write(wrong)]
    done = store.write(lambda c: job_store.insert_job(c, build_job(2)))
    go.set()
    held.result(TIMEOUT_S)
    assert [type(each.exception(TIMEOUT_S)) for each in refused] == [
        MarketError,
        psycopg.errors.UniqueViolation,
    ]
    done.result(TIMEOUT_S)
    assert lists.count_jobs(store.reader) == 1


def test_readers_cannot_write(store):
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        store.reader.execute("DELETE FROM counters")


_FROZEN = """
import sys, time
from ledger.store.postgres import connecting
from ledger.store.postgres.market import open_shared_market
connecting.IDLE_TIMEOUT_MS = 500
store = open_shared_market(sys.argv[1], bytes.fromhex(sys.argv[2]))
def work(connection):
    connection.execute("UPDATE counters SET value = 77 WHERE name = 'turns'")
    print("begun", flush=True)
    time.sleep(3600)
store.write(work).result()
"""


@contextlib.contextmanager
def halfway_process(url):
    """Another process in the middle of a transaction."""
    process = subprocess.Popen(
        [sys.executable, "-c", _FROZEN, url, GENESIS_HASH.hex()],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_ends_or_stops_in_a_write_holds_up_no_other(store, url, number):
    with halfway_process(url) as process:
        process.send_signal(number)
        submit(store)  # within the time for which a write may wait
    value = store.reader.execute("SELECT value FROM counters WHERE name = 'turns'").fetchone()
    assert tuple(value) == (0,)
    assert IDLE_TIMEOUT_MS <= module.WRITE_TIMEOUT_MS // 2


# --- what others store ---------------------------------------------------------------------------


class Ears:
    """What a store has told."""

    def __init__(self, store):
        self.news = []
        self._changed = threading.Condition()
        store.listen(self._hear)
        self.wait_for(("anything", b""))

    def _hear(self, kind, job_id):
        with self._changed:
            self.news.append((kind, job_id))
            self._changed.notify_all()

    def wait_for(self, *news):
        with self._changed:
            assert self._changed.wait_for(lambda: set(news) <= set(self.news), TIMEOUT_S), self.news


def test_what_another_process_stores_is_heard(open_one):
    ears, other = Ears(open_one()), open_one()
    job = submit(other)
    ears.wait_for(("job_waiting", b""))
    running = write(
        other,
        job_store.claim_job,
        job,
        miner_id="m",
        provider="m",
        claimed_by="k",
        now_ms=1,
        lease_expires_at_ms=2,
        heartbeat=False,
    )
    ears.wait_for(("job_changed", job.id))
    write(
        other,
        job_store.complete_job,
        running,
        miner_id="m",
        claimed_by="k",
        result="r",
        transaction=build_receipt(GENESIS, 1),
        now_ms=2,
    )
    ears.wait_for(("attempt_ended", job.id), ("transaction_waiting", b""))


def test_a_store_does_not_hear_itself(open_one):
    store, other = open_one(), open_one()
    ears = Ears(store)
    submit(store, 1)
    write(other, mempool.insert_transaction, build_receipt(GENESIS, 1), now_ms=1)
    ears.wait_for(("transaction_waiting", b""))  # told later than ours would have been
    assert ("job_waiting", b"") not in ears.news


def test_a_key_that_another_process_revokes_is_known_as_revoked_soon(open_one):
    store, other = open_one(), open_one()
    Ears(store)
    known = KnownRows(store)
    write(other, registry.insert_key, KEY)
    assert known.find_key("a") == KEY
    write(other, registry.revoke_key, "a", 5)
    deadline = threading.Event()
    for _ in range(TIMEOUT_S * 100):
        if known.find_key("a").revoked_at_ms == 5:
            return
        deadline.wait(0.01)
    raise AssertionError("it is still taken for good")


def test_what_this_process_stores_is_known_at_once(store):
    known = KnownRows(store)
    write(store, registry.upsert_miner, build_miner("m"))
    assert not known.find_miner("m").draining
    write(store, registry.drain_miner, "m")
    assert known.find_miner("m").draining


def test_other_writes_of_this_process_are_no_reason_to_read_keys_again(store):
    Ears(store)
    state = store.state
    submit(store)
    assert store.state == state
    write(store, registry.insert_key, KEY)
    assert store.state != state


def test_a_receipt_that_left_the_mempool_is_found_where_no_block_has_it_yet(store):
    receipt = build_receipt(GENESIS, 1)
    write(store, mempool.insert_transaction, receipt, now_ms=1)
    write(store, mempool.remove_from_mempool, [bytes(receipt.id)])
    assert mempool.list_mempool(store.reader, limit=9) == []
    rows = store.reader.execute("SELECT id FROM waiting").fetchall()
    assert [row["id"] for row in rows] == [bytes(receipt.id)]


def test_purged_texts_are_vacuumed_out_of_the_table(url, tmp_path):
    settings = replace(SETTINGS, text_retention_ms=1_000)
    opener = {"open_store": lambda _path, genesis_hash: open_shared_market(url, genesis_hash)}
    with contextlib.closing(MarketNode(tmp_path, settings=settings, **opener)) as node:
        node.finish(prompt="SECRET")
        node.now_ms += 2_000
        node.do(node.coordinator.sweep())
        rows = node.store.reader.execute("SELECT prompt, texts_purged_at_ms FROM jobs").fetchall()
        assert [tuple(row) for row in rows] == [("", node.now_ms)]
        vacuums = node.store.reader.execute(
            "SELECT vacuum_count FROM pg_stat_all_tables WHERE relid = CAST('jobs' AS regclass)"
        ).fetchone()
        assert vacuums[0] > 0


# --- a lost server -------------------------------------------------------------------------------


def test_connections_that_the_server_has_ended_are_made_anew(store):
    job = submit(store, 1)
    assert job_store.load_job(store.reader, job.id) == job
    for number in (2, 3):
        shared_server().end_connections()
        later = submit(store, number)
        assert job_store.load_job(store.reader, later.id) == later
    assert lists.count_jobs(store.reader) == 3


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_write_whose_commit_was_lost_is_stored_once(store, url, monkeypatch, is_committed):
    """The server is asked what became of it; it is done again only if nothing did."""
    connection = store._session.connection
    runs, execute = [], connection.execute

    def lose(statement, *values):
        if statement == "COMMIT" and len(runs) == 1:
            if is_committed:
                execute(statement)
            connection.close()
        return execute(statement, *values)

    monkeypatch.setattr(connection, "execute", lose)

    def insert(connection):
        runs.append(1)
        return job_store.insert_job(connection, build_job(1))

    store.write(insert).result(TIMEOUT_S)
    assert len(runs) == (1 if is_committed else 2)
    assert lists.count_jobs(store.reader) == 1


def test_a_server_that_is_away_is_waited_for_then_refused_then_found_again(server, monkeypatch):
    store = open_shared_market(server.url(), GENESIS_HASH)
    try:
        ears = Ears(store)
        kept = submit(store, 1)
        server.stop()
        monkeypatch.setattr(session, "WAIT_FOR_SERVER_S", 0.2)
        with pytest.raises(DatabaseLostError):
            submit(store, 2)
        with pytest.raises(DatabaseLostError):
            job_store.load_job(store.reader, kept.id)
        assert store.is_lost
        assert store.state != store.state  # nothing read may be remembered
        monkeypatch.setattr(session, "WAIT_FOR_SERVER_S", TIMEOUT_S)
        waiting = store.write(lambda c: job_store.insert_job(c, build_job(3)))
        ears.news.clear()
        server.start()
        waiting.result(TIMEOUT_S)
        ears.wait_for(("anything", b""))
        assert not store.is_lost
        assert lists.count_jobs(store.reader) == 2
        assert job_store.load_job(store.reader, kept.id) == kept
    finally:
        store.close()
