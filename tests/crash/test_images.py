"""Whatever a power cut leaves is opened by the stores and holds what was acknowledged."""

import random
import sqlite3

import pytest

from tests.crash.connection import Connection
from tests.crash.images import SECTOR_BYTES, Disk
from tests.crash.judge import DATABASES
from tests.crash.recording import LAYER, Create, Delete, Sync, Truncate, Write, recorded
from tests.crash.report import run_many
from tests.figures import FIGURES

IMAGES = 150
OLD, NEW = b"a" * 2 * SECTOR_BYTES, b"b" * 2 * SECTOR_BYTES
MAX_DRAWS = 200


def test_no_power_cut_loses_what_was_acknowledged(record_property):
    report = run_many(IMAGES)
    record_property(FIGURES, "\n".join(report.list_lines()))
    assert report.faults == []
    assert report.images >= IMAGES
    # What they are about has happened, to each file.
    assert min(report.unsynced[name] for name in DATABASES) > IMAGES // 10


def test_without_a_sync_at_each_commit_acknowledged_writes_are_lost():
    """synchronous=NORMAL: what is told of here would be told of our stores too."""
    faults = "\n".join(run_many(IMAGES // 3, careless=True).faults)
    for lost in ("votes of height", "block", "no job"):
        assert lost in faults


@pytest.fixture
def disk(tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.db").write_bytes(OLD)
    return Disk(work)


def draw(disk, tmp_path) -> set[tuple[tuple[str, bytes], ...]]:
    """All that is found after one of many power cuts: names and bytes."""
    found = set()
    for number in range(MAX_DRAWS):
        folder = tmp_path / str(number)
        folder.mkdir()
        disk.cut(folder, random.Random(number))
        found.add(tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir())))
    return found


def test_a_write_that_was_not_synced_is_kept_lost_or_torn_between_sectors(disk, tmp_path):
    disk.follow(Write("a.db", 0, NEW))
    half = SECTOR_BYTES
    torn = {OLD[:half] + NEW[half:], NEW[:half] + OLD[half:]}
    assert draw(disk, tmp_path) == {(("a.db", data),) for data in {OLD, NEW, *torn}}
    assert disk.list_unsynced() == {"a.db"}


def test_a_write_that_was_synced_stays(disk, tmp_path):
    disk.follow(Write("a.db", 0, NEW))
    disk.follow(Sync("a.db"))
    assert draw(disk, tmp_path) == {(("a.db", NEW),)}
    assert disk.list_unsynced() == set()


def test_a_file_may_be_as_long_as_it_was(disk, tmp_path):
    disk.follow(Truncate("a.db", 10))
    assert draw(disk, tmp_path) == {(("a.db", OLD),), (("a.db", OLD[:10]),)}


def test_a_new_file_may_be_missing_until_its_first_sync(disk, tmp_path):
    for note in (Sync("a.db"), Create("a.db-wal"), Write("a.db-wal", 0, b"frame")):
        disk.follow(note)
    assert draw(disk, tmp_path) == {
        (("a.db", OLD),),
        (("a.db", OLD), ("a.db-wal", b"")),
        (("a.db", OLD), ("a.db-wal", b"frame")),
    }
    disk.follow(Sync("a.db-wal"))
    (tmp_path / "later").mkdir()
    assert draw(disk, tmp_path / "later") == {(("a.db", OLD), ("a.db-wal", b"frame"))}


def test_a_deleted_file_may_be_back_until_its_directory_is_synced(disk, tmp_path):
    disk.follow(Delete("a.db", is_synced=False))
    assert draw(disk, tmp_path) == {(), (("a.db", OLD),)}
    (tmp_path / "later").mkdir()
    disk.follow(Create("b.db"))
    disk.follow(Sync("b.db"))
    assert draw(disk, tmp_path / "later") == {(("b.db", b""),)}


STATEMENTS = (
    ("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT UNIQUE) STRICT", ()),
    ("INSERT INTO t (b) VALUES (?), (?)", ("one", "two")),
    ("INSERT INTO t (b) VALUES (:b) RETURNING a", {"b": "three"}),
    ("UPDATE t SET b = b || '!' WHERE a > ?", (1,)),
    ("UPDATE t SET b = '' WHERE a > 9", ()),
    ("SELECT a, b FROM t ORDER BY a", ()),
    ("SELECT a FROM t WHERE a > 9", ()),
    ("INSERT INTO t (b) VALUES ('one')", ()),
    ("nonsense", ()),
)


def answer(connection, sql, parameters):
    try:
        cursor = connection.execute(sql, parameters)
    except sqlite3.Error as error:
        return type(error), error.sqlite_errorcode
    names = cursor.description and [column[0] for column in cursor.description]
    rows = cursor.fetchall()
    return names, [dict(row) for row in rows], connection.total_changes, cursor.lastrowid


def test_the_recording_connection_answers_as_the_standard_one(tmp_path):
    standard = sqlite3.connect(tmp_path / "b.db", isolation_level=None)
    standard.row_factory = sqlite3.Row
    with recorded():
        recording = Connection(str(tmp_path / "a.db"), uri=False, layer=LAYER)
        recording.row_factory = sqlite3.Row
        for sql, parameters in STATEMENTS:
            assert answer(recording, sql, parameters) == answer(standard, sql, parameters), sql
        recording.close()
    standard.close()
