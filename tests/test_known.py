"""What is remembered of keys and miners is never older than the file, whoever wrote into it."""

import contextlib
import random
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from ledger.block import hash_genesis
from ledger.errors import StoreError
from ledger.store import known as module
from ledger.store import registry
from ledger.store.known import KnownRows
from ledger.store.market import open_market
from ledger.store.registry import ApiKey
from ledger.store.sessions import FileSession
from ledger.store.sharedstate import SharedState
from tests.builders import CREATED_MS, build_genesis
from tests.test_market_store import build_miner

GENESIS_HASH = hash_genesis(build_genesis())
KEY = ApiKey(
    prefix="a", digest=b"d", role="client", client="c", created_at_ms=CREATED_MS, revoked_at_ms=None
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "node.db"


@pytest.fixture
def store(path):
    store = open_market(path, GENESIS_HASH)
    yield store
    store.close()


@pytest.fixture
def known(store):
    write(store, registry.insert_key, KEY)
    write(store, registry.upsert_miner, build_miner("m"))
    return KnownRows(store)


def write(store, function, *args):
    store.write(lambda c: function(c, *args)).result()


@contextlib.contextmanager
def counted(store):
    """How many statements the calling thread's reader runs in the context."""
    statements = []
    store.reader.set_trace_callback(statements.append)
    yield statements
    store.reader.set_trace_callback(None)


def elsewhere(path, statement) -> None:
    """Change the file in another process."""
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    )
    subprocess.run([sys.executable, "-c", script, path, statement], check=True)


def test_what_has_not_changed_is_not_read_again(store, known):
    first = known.find_key("a"), known.find_miner("m")
    with counted(store) as statements:
        assert (known.find_key("a"), known.find_miner("m")) == first
    assert statements == []


def test_a_commit_of_ours_that_changed_none_costs_no_look_and_of_another_process_one(
    store, known, path
):
    def look() -> list[str]:
        with counted(store) as statements:
            assert known.find_key("a") == KEY
            assert known.find_miner("m") is not None
        return statements

    look()
    for time_ms in (7, 8, 9):
        write(store, registry.touch_miner, "m", time_ms)
        assert look() == []
    elsewhere(path, "UPDATE miners SET last_seen_at_ms = 10")
    (statement,) = look()
    assert "counters" in statement
    write(store, registry.touch_miner, "m", 11)
    assert look() == []


CHANGES = {
    "revoked": ("UPDATE api_keys SET revoked_at_ms = 5", 0),
    "limited": ("UPDATE api_keys SET daily_jobs = 5", 0),
    "deleted": ("DELETE FROM api_keys", 0),
    "drained": ("UPDATE miners SET draining = 1", 1),
    "described": ("UPDATE miners SET capabilities = '[]'", 1),
    "handed over": ("UPDATE miners SET owner = 'x'", 1),
    "forgotten": ("DELETE FROM miners", 1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("by", ["us", "another process"])
def test_a_change_is_seen_at_once_whoever_made_it(store, known, path, change, by):
    statement, place = CHANGES[change]

    def look():
        return known.find_key("a"), known.find_miner("m")

    before = look()
    if by == "us":
        write(store, lambda c: c.execute(statement))
    else:
        elsewhere(path, statement)
    stored = registry.find_key(store.reader, "a"), registry.find_miner(store.reader, "m")
    assert look() == stored
    assert stored[place] != before[place]
    assert stored[1 - place] == before[1 - place]


HARMLESS = "UPDATE miners SET last_seen_at_ms = last_seen_at_ms + 1"
HARMFUL = "UPDATE api_keys SET daily_jobs = coalesce(daily_jobs, 0) + 1"


@pytest.fixture
def other(path, known):
    """Another connection, which our writer knows nothing of."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


def test_in_whatever_order_we_and_others_write_what_is_known_is_what_is_stored(store, known, other):
    def truncate():
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    steps = [
        lambda: write(store, lambda c: c.execute(HARMLESS)),
        lambda: write(store, lambda c: c.execute(HARMFUL)),
        lambda: other.execute(HARMLESS),
        lambda: other.execute(HARMFUL),
        truncate,
    ]
    rng = random.Random(7)
    for _ in range(400):
        for step in rng.choices(steps, k=rng.choice((1, 1, 2, 3))):
            step()
        assert known.find_key("a") == registry.find_key(store.reader, "a")


def test_a_key_that_others_change_is_seen_at_once_while_we_write(store, known, other):
    stop = threading.Event()

    def keep_writing():
        while not stop.is_set():
            write(store, lambda c: c.execute(HARMLESS))

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        for number in range(1, 200):
            other.execute("UPDATE api_keys SET daily_jobs = ?", (number,))
            assert known.find_key("a").limits.daily_jobs == number
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("later", ["ours", "another's"])
@pytest.mark.parametrize("failed", [HARMLESS, HARMFUL])
def test_a_commit_that_fails_hides_no_later_change(store, known, other, monkeypatch, failed, later):
    def fail(_session):
        raise sqlite3.OperationalError("disk I/O error")

    known.find_key("a")
    with monkeypatch.context() as patch:
        patch.setattr(FileSession, "commit", fail)
        with pytest.raises(StoreError):
            write(store, lambda c: c.execute(failed))
    if later == "ours":
        write(store, lambda c: c.execute(HARMFUL))
    else:
        other.execute(HARMFUL)
    assert known.find_key("a").limits.daily_jobs == 1


def test_what_is_made_later_is_found(store, known, path):
    assert known.find_key("b") is None
    assert known.find_miner("n") is None
    write(store, registry.insert_key, ApiKey(**{**_fields(KEY), "prefix": "b"}))
    write(store, registry.upsert_miner, build_miner("n"))
    assert known.find_key("b").prefix == "b"
    assert known.find_miner("n").miner_id == "n"


def _fields(key):
    return {name: getattr(key, name) for name in key.__struct_fields__}


def test_a_miner_that_was_heard_is_no_reason_to_read_it(store, known):
    miner = known.find_miner("m")
    known.note_seen("m", 99)
    known.note_seen("unknown", 99)
    assert known.find_miner("m") == replace(miner, last_seen_at_ms=99)


def test_what_is_remembered_is_bounded(store, known, monkeypatch):
    monkeypatch.setattr(module, "MAX_KNOWN", 2)
    for name in ("m1", "m2", "m3"):
        write(store, registry.upsert_miner, build_miner(name))
    for name in ("m1", "m2", "m3"):
        known.find_miner(name)
    with counted(store) as statements:
        known.find_miner("m3")
        assert statements == []
        known.find_miner("m1")
    assert len(statements) == 1


# --- the shared state ---------------------------------------------------------------------------


def test_every_commit_gives_another_state_and_no_read_does(store):
    seen = {store.state}
    for number in range(50):
        write(store, registry.upsert_miner, build_miner(f"m{number}"))
        store.reader.execute("SELECT count(*) FROM miners").fetchone()
        assert store.state == store.state
        seen.add(store.state)
    assert store.forget_versions()
    write(store, registry.upsert_miner, build_miner("last"))
    seen.add(store.state)
    assert len(seen) == 52


def test_a_file_that_is_open_twice_keeps_its_locks_when_one_of_them_closes(store, path):
    """Else another process would take the WAL's index for abandoned, and begin it anew."""
    other = open_market(path, GENESIS_HASH)
    SharedState(path).close()
    other.close()
    state = store.state
    script = (
        "import fcntl, sys; f = open(sys.argv[1] + '-shm', 'r+b');"
        # The byte that SQLite locks for as long as it has the file open (unixShmSystemLock).
        "fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 128)"
    )
    refused = subprocess.run([sys.executable, "-c", script, path], capture_output=True, check=False)
    assert b"BlockingIOError" in refused.stderr
    elsewhere(path, "UPDATE miners SET owner = owner")
    write(store, registry.upsert_miner, build_miner("m"))
    assert store.state != state
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_threads_that_open_and_close_one_file_leave_it_whole(store, path):
    def open_and_close():
        for _ in range(5):
            open_market(path, GENESIS_HASH).close()

    threads = [threading.Thread(target=open_and_close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = store.state
    write(store, registry.upsert_miner, build_miner("m"))
    assert store.state != state


def test_active_miners_are_counted_once_a_second_unless_one_comes_or_is_heard(store, known, path):
    start_ms = CREATED_MS - 100
    assert known.count_eligible("a", start_ms) == 1  # "m" takes any model
    with counted(store) as statements:
        assert known.count_eligible("b:latest", start_ms + module.COUNTED_MS - 1) == 1
    assert statements == []
    write(store, registry.upsert_miner, build_miner("n", "a"))
    assert (known.count_eligible("a", start_ms), known.count_eligible("b", start_ms)) == (2, 1)
    elsewhere(path, "UPDATE miners SET draining = 1 WHERE miner_id = 'm'")
    assert (known.count_eligible("a", start_ms), known.count_eligible("b", start_ms)) == (1, 0)
    later_ms = start_ms + module.COUNTED_MS + 100
    assert known.count_eligible("a", later_ms) == 0
    write(store, registry.touch_miner, "n", later_ms)
    known.note_seen("n", later_ms)
    assert known.count_eligible("a", later_ms) == 1
    assert known.count_eligible("a", start_ms) == 1, "a clock that was set back"
