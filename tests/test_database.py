"""One writer with group commit: what is answered is durable, and each failure hits its own."""

import contextlib
import sqlite3
import threading

import pytest
from sqlite_utils.migrations import Migrations

from ledger.errors import MarketError, StoreError
from ledger.store import database as module
from ledger.store import writequeue, writing
from ledger.store.database import Database, open_reader
from ledger.store.writequeue import DatabaseBusyError

TIMEOUT_S = 30
BLOB = b"x" * 200_000

migrations = Migrations("test")


@migrations()
def m001_rows(db):
    db.execute("CREATE TABLE rows (name TEXT PRIMARY KEY, data BLOB) STRICT")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "test.db"


@pytest.fixture
def database(path):
    database = Database(path, migrations)
    yield database
    database.close()


def insert(name, data=b""):
    return lambda connection: connection.execute("INSERT INTO rows VALUES (?, ?)", (name, data))


def names(path) -> list[str]:
    """What another process would find in the file: committed rows only."""
    with contextlib.closing(open_reader(path)) as connection:
        return [row[0] for row in connection.execute("SELECT name FROM rows ORDER BY rowid")]


@contextlib.contextmanager
def held(database):
    """Let writes queue up, so that they share the batch that runs when the context ends."""
    started, released = threading.Event(), threading.Event()

    def hold(_):
        started.set()
        assert released.wait(TIMEOUT_S)

    future = database.write(hold)
    assert started.wait(TIMEOUT_S)
    try:
        yield
    finally:
        released.set()
        future.result(TIMEOUT_S)


def settle(database):
    """Return once the callbacks of earlier answers have run; they run in the writer's thread."""
    database.write(lambda _: None).result(TIMEOUT_S)


# --- durability -------------------------------------------------------------------------------


def test_the_file_is_in_wal_mode_and_synced_at_every_commit(database):
    settings = ("journal_mode", "synchronous", "foreign_keys", "page_size")
    found = database.write(
        lambda c: [c.execute(f"PRAGMA {name}").fetchone()[0] for name in settings]
    ).result()
    assert found == ["wal", 2, 1, module.PAGE_SIZE_BYTES]


def test_a_write_is_answered_after_its_batch_is_committed(database, path):
    seen = {}
    with held(database):
        futures = [database.write(insert(name)) for name in ("a", "b", "c")]
        for name, future in zip("abc", futures, strict=True):
            future.add_done_callback(lambda _, name=name: seen.update({name: names(path)}))
    for future in futures:
        future.result(TIMEOUT_S)
    settle(database)
    assert seen == {name: ["a", "b", "c"] for name in "abc"}


def count_commits(database, writes: int) -> int:
    """How many commits it takes to store so many writes that wait together."""
    statements = []
    database.write(lambda c: c.set_trace_callback(statements.append)).result()
    with held(database):
        futures = [database.write(insert(str(i))) for i in range(writes)]
    for future in futures:
        future.result(TIMEOUT_S)
    database.write(lambda c: c.set_trace_callback(None)).result()
    # One belongs to what turned the tracing on, one to what held the others up.
    return statements.count("COMMIT") - 2


def test_writes_that_wait_share_one_commit(database):
    assert count_commits(database, 20) == 1


def test_a_batch_has_a_bound(database, monkeypatch):
    monkeypatch.setattr(writing, "MAX_BATCH", 4)
    assert count_commits(database, 10) == 3


def test_a_refusal_is_answered_after_the_commit_too(database, path):
    """A refusal may rest on what the same batch wrote, and that must not be lost afterwards."""
    seen = []

    def refuse(connection):
        assert connection.execute("SELECT count(*) FROM rows").fetchone()[0] == 1
        raise MarketError("JOB_ALREADY_CLAIMED", "taken")

    with held(database):
        first = database.write(insert("a"))
        second = database.write(refuse)
        second.add_done_callback(lambda _: seen.append(names(path)))
    first.result(TIMEOUT_S)
    with pytest.raises(MarketError):
        second.result(TIMEOUT_S)
    settle(database)
    assert seen == [["a"]]


# --- failures ---------------------------------------------------------------------------------


def fail_in_python(connection):
    insert("gone")(connection)
    raise ValueError("a bug")


def fail_in_sql(connection):
    insert("gone")(connection)
    connection.execute("INSERT INTO nowhere VALUES (1)")


def fail_by_constraint(connection):
    insert("gone")(connection)
    connection.execute("INSERT INTO rows SELECT name, data FROM rows")


def fail_by_type(connection):
    insert("gone")(connection)
    connection.execute("INSERT INTO rows VALUES (x'ff', NULL)")


def fail_by_parameters(connection):
    insert("gone")(connection)
    connection.execute("INSERT INTO rows VALUES (?, ?)", ("one",))


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (fail_in_python, ValueError),
        (fail_in_sql, sqlite3.OperationalError),
        (fail_by_constraint, sqlite3.IntegrityError),
        (fail_by_type, sqlite3.IntegrityError),
        (fail_by_parameters, sqlite3.ProgrammingError),
    ],
)
def test_a_work_that_raises_is_rolled_back_alone(database, path, work, error):
    with held(database):
        before, bad, after = (database.write(w) for w in (insert("a"), work, insert("b")))
    before.result(TIMEOUT_S)
    after.result(TIMEOUT_S)
    with pytest.raises(error):
        bad.result(TIMEOUT_S)
    assert names(path) == ["a", "b"]


def limit_pages(connection):
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")


def test_a_full_disk_fails_the_whole_batch_and_the_next_one_works(database, path):
    database.write(insert("first")).result()
    database.write(limit_pages).result()
    with held(database):
        futures = [database.write(insert("a")), database.write(insert("b", BLOB))]
        futures.append(database.write(insert("c")))
    for future in futures:
        with pytest.raises(StoreError, match=r"nothing was stored.*full"):
            future.result(TIMEOUT_S)
    assert names(path) == ["first"]
    database.write(insert("small")).result(TIMEOUT_S)
    database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone()).result()
    database.write(insert("large", BLOB)).result(TIMEOUT_S)
    assert names(path) == ["first", "small", "large"]


def test_a_commit_that_fails_fails_everybody_who_was_in_it(database, path):
    def break_promise(connection):
        connection.execute(
            "CREATE TABLE child (name REFERENCES rows DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.execute("INSERT INTO child VALUES ('nobody')")

    with held(database):
        futures = [database.write(insert("a")), database.write(break_promise)]
    for future in futures:
        with pytest.raises(StoreError, match="nothing was stored"):
            future.result(TIMEOUT_S)
    assert names(path) == []
    database.write(insert("b")).result(TIMEOUT_S)
    assert names(path) == ["b"]


def test_a_file_held_by_another_process_fails_the_write_not_the_database(path, database):
    database.write(lambda c: c.execute("PRAGMA busy_timeout = 0").fetchone()).result()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            database.write(insert("a")).result(TIMEOUT_S)
        other.execute("ROLLBACK")
    database.write(insert("b")).result(TIMEOUT_S)
    assert names(path) == ["b"]


# --- cancelling, bounds, the end --------------------------------------------------------------


def test_a_write_that_is_cancelled_while_it_waits_never_happens(database, path):
    with held(database):
        first = database.write(insert("a"))
        second = database.write(insert("b"))
        third = database.write(insert("c"))
        assert second.cancel()
    first.result(TIMEOUT_S)
    third.result(TIMEOUT_S)
    assert names(path) == ["a", "c"]


def test_a_write_cannot_be_cancelled_once_its_batch_has_begun(database):
    """Else a failing batch would answer a future that is gone, and its thread would die of it."""
    victims, cancelled = [], []

    def cancel_the_next(connection):
        cancelled.append(victims[0].cancel())
        connection.execute("PRAGMA max_page_count = 1").fetchone()
        insert("a", BLOB)(connection)

    with held(database):
        database.write(cancel_the_next)
        victims.append(database.write(insert("b")))
    with pytest.raises(StoreError):
        victims[0].result(TIMEOUT_S)
    assert cancelled == [False]
    database.write(lambda c: c.execute("PRAGMA max_page_count = 1000000").fetchone()).result()
    database.write(insert("c")).result(TIMEOUT_S)


def test_more_writes_than_may_wait_are_refused(path, monkeypatch):
    monkeypatch.setattr(writequeue, "MAX_WAITING_WRITES", 3)
    with contextlib.closing(Database(path, migrations)) as database:
        with held(database):
            waiting = [database.write(insert(str(i))) for i in range(3)]
            with pytest.raises(DatabaseBusyError, match="too many writes wait"):
                database.write(insert("4"))
        for future in waiting:
            future.result(TIMEOUT_S)
        assert names(path) == ["0", "1", "2"]


def test_closing_finishes_the_writes_that_wait_and_refuses_later_ones(path):
    database = Database(path, migrations)
    with held(database):
        futures = [database.write(insert(str(i))) for i in range(5)]
        closing = threading.Thread(target=database.close)
        closing.start()
    closing.join(TIMEOUT_S)
    for future in futures:
        future.result(0)
    assert len(names(path)) == 5
    with pytest.raises(StoreError, match="is closed"):
        database.write(insert("late"))
    database.close()


def test_a_write_that_meets_the_end_half_way_is_still_answered(path, monkeypatch):
    """One that got into the queue behind the end would wait for its answer for ever."""
    database = Database(path, migrations)
    closing = threading.Thread(target=database.close)
    waiting = database._waiting

    class SlowQueue:
        qsize = waiting.qsize

        def put(self, item):
            if item is not None:
                closing.start()
                closing.join(0.1)  # it cannot end before us, unless nothing holds it back
            waiting.put(item)

    monkeypatch.setattr(database, "_waiting", SlowQueue())
    database.write(insert("a")).result(TIMEOUT_S)
    closing.join(TIMEOUT_S)
    assert names(path) == ["a"]


# --- readers ----------------------------------------------------------------------------------


def test_a_reader_cannot_write(database, path):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        insert("a")(database.reader)
    assert database.reader.execute("PRAGMA query_only").fetchone()[0] == 1
    database.reader.execute("PRAGMA query_only = OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        insert("a")(database.reader)


def test_each_thread_has_a_reader_of_its_own(database):
    assert database.reader is database.reader
    found = []
    thread = threading.Thread(target=lambda: found.append(database.reader))
    thread.start()
    thread.join(TIMEOUT_S)
    assert found[0] is not database.reader


def test_a_snapshot_shows_one_state_of_the_file(database):
    def count(connection):
        return connection.execute("SELECT count(*) FROM rows").fetchone()[0]

    with database.snapshot() as outer:
        assert count(outer) == 0
        database.write(insert("a")).result()
        with database.snapshot() as inner:
            assert inner is outer
            assert count(inner) == 0
        assert count(database.reader) == 0
    assert count(database.reader) == 1


def test_a_snapshot_ends_with_an_error_too(database):
    with pytest.raises(ValueError, match="mine"), database.snapshot():
        raise ValueError("mine")
    assert not database.reader.in_transaction


# --- opening ----------------------------------------------------------------------------------


def test_what_is_not_a_database_is_refused(path):
    path.write_bytes(b"not a database, but long enough to look like a header" * 10)
    with pytest.raises(StoreError, match="cannot be opened as a database"):
        Database(path, migrations)


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(tmp_path, migrations)


def test_a_file_of_a_newer_release_is_refused_and_left_alone(path):
    newer = Migrations("test")
    newer(name="m001_rows")(m001_rows)
    newer(name="m002_more")(lambda db: db.execute("CREATE TABLE more (id INTEGER)"))
    Database(path, newer).close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"newer release \(m002_more\)"):
        Database(path, migrations)
    assert path.read_bytes() == before


def test_an_older_file_is_brought_up_to_date(path):
    Database(path, Migrations("test")).close()
    with contextlib.closing(Database(path, migrations)) as database:
        database.write(insert("a")).result()
    assert names(path) == ["a"]


def test_a_migration_that_fails_leaves_nothing_behind(path):
    broken = Migrations("test")

    @broken()
    def m001_rows(db):
        db.execute("CREATE TABLE rows (name TEXT)")
        db.execute("CREATE nonsense")

    with pytest.raises(StoreError, match="nonsense"):
        Database(path, broken)
    with contextlib.closing(Database(path, migrations)) as database:
        database.write(insert("a")).result()


def test_a_file_system_that_cannot_hold_a_wal_is_refused():
    # In memory there is no WAL: SQLite answers "memory" instead, without an error.
    with pytest.raises(StoreError, match=r"expected journal_mode wal.*got memory"):
        module.open_writer(":memory:", migrations)
