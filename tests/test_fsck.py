"""fsck finds every kind of damage: each column of each table, rows too few and rows too many."""

import contextlib
import shutil
import sqlite3

import pytest
import sqlite_utils
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.errors import StoreError
from ledger.store.chain import ChainStore, locate_node, migrations
from ledger.store.fsck import verify_chain
from tests.builders import (
    Chain,
    build_audit,
    build_chain,
    build_evidence,
    build_genesis,
    build_members,
    build_receipt,
)

SIZES = (2, 1, 4)


def build_changed_chain() -> Chain:
    """Blocks of receipts, one with evidence and a change of authorities, one by the new ones."""
    chain = build_chain(1, blocks=SIZES)
    chain.change_authorities(
        build_members(2, epoch=1),
        build_evidence(chain.genesis, chain.members[0]),
        build_receipt(chain.genesis, 8),
    )
    chain.append(
        build_receipt(chain.genesis, 9),
        build_audit(chain.genesis, 3),
        build_audit(chain.genesis, 1, verdict="fail"),
    )
    return chain


CHAIN = build_changed_chain()
HEIGHT, LEAVES = len(CHAIN.blocks), len(CHAIN.transactions)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A file with a whole chain, to be copied before it is damaged."""
    path = tmp_path_factory.mktemp("sound") / "ledger.db"
    with contextlib.closing(ChainStore(path, CHAIN.genesis)) as store:
        for block, certificate in zip(CHAIN.blocks, CHAIN.certificates, strict=True):
            store.append(block, certificate).result()
    return path


@pytest.fixture
def path(sound, tmp_path):
    copy = tmp_path / "ledger.db"
    shutil.copy(sound, copy)
    return copy


def verify(path, genesis=CHAIN.genesis):
    return verify_chain(path, genesis, lambda _height, _last: None)


def damage(path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for statement in statements:
            assert connection.execute(statement).rowcount > 0, statement
        connection.commit()


def test_a_sound_file_is_verified_block_by_block(path):
    seen = []
    tip = verify_chain(path, CHAIN.genesis, lambda height, last: seen.append((height, last)))
    assert tip == CHAIN.tip
    assert seen == [(height, HEIGHT) for height in range(1, HEIGHT + 1)]


def test_a_chain_without_blocks_is_sound(tmp_path):
    path = tmp_path / "ledger.db"
    ChainStore(path, CHAIN.genesis).close()
    assert verify(path) == build_chain(1).tip


def test_a_file_is_verified_while_a_node_writes_it(path):
    with contextlib.closing(ChainStore(path, CHAIN.genesis)):
        assert verify(path) == CHAIN.tip


# --- every column -----------------------------------------------------------------------------

OTHER = {
    "INTEGER": "{column} + 1",
    "BLOB": "randomblob(32)",
    "TEXT": "substr({column}, 1, length({column}) - 1) || 'Q'",
}


def list_columns() -> list[tuple[str, str, str]]:
    """(table, column, type) of everything that a ledger stores, from the schema itself."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        migrations.apply(sqlite_utils.Database(connection))
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '*sqlite_*'"
        ).fetchall()
        return [
            (table, column[1], column[2])
            for (table,) in tables
            if table != "pin"  # a whole chain has none: tests/test_pin.py
            for column in connection.execute(f"PRAGMA table_info({table})")
        ]


COLUMNS = [place for place in list_columns() if place[:2] != ("genesis", "id")]


@pytest.mark.parametrize(("table", "column", "kind"), COLUMNS, ids=lambda value: value)
def test_a_change_of_any_column_is_found(path, table, column, kind):
    """Of the last row, since a key there collides with no other."""
    value = OTHER[kind].format(column=column)
    last = f"(SELECT max(rowid) FROM {table})"
    damage(path, f"UPDATE {table} SET {column} = {value} WHERE rowid = {last}")
    with pytest.raises(StoreError):
        verify(path)


@pytest.mark.parametrize("table", sorted({table for table, _, _ in list_columns()}))
def test_a_missing_row_is_found_in_every_table(path, table):
    damage(path, f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})")
    with pytest.raises(StoreError):
        verify(path)


# --- rows that do not belong ------------------------------------------------------------------

COPY_OF_RECEIPT = (
    "INSERT INTO receipts SELECT {leaf}, 'rcp_extra', job_id, client, provider, coordinator, model,"
    " unit_type, units_micros, price_micros, started_at_ms, completed_at_ms FROM receipts LIMIT 1"
)
COPY_OF_TRANSACTION = (
    "INSERT INTO transactions SELECT {leaf}, randomblob(32), {height}, type, envelope"
    " FROM transactions LIMIT 1"
)
COPY_OF_BLOCK = (
    "INSERT INTO blocks SELECT {height}, randomblob(32), time_ms, first_leaf, transactions,"
    " size_bytes, header, certificate FROM blocks WHERE height = 3"
)
EXTRA = {
    "a block above the tip": COPY_OF_BLOCK.format(height=HEIGHT + 1),
    "a block far above the tip": COPY_OF_BLOCK.format(height=40),
    "a block below genesis": COPY_OF_BLOCK.format(height=0),
    "a block of negative height": COPY_OF_BLOCK.format(height=-7),
    "a transaction above the tree": COPY_OF_TRANSACTION.format(leaf=LEAVES, height=3),
    "a transaction of no leaf": COPY_OF_TRANSACTION.format(leaf=-1, height=1),
    "a receipt without a transaction": COPY_OF_RECEIPT.format(leaf=LEAVES),
    "a receipt of no leaf": COPY_OF_RECEIPT.format(leaf=-1),
    "a tree node": f"INSERT INTO tree_nodes VALUES ({locate_node(5, 0)}, randomblob(32))",
    "an authority set": "INSERT INTO authority_sets SELECT 2, randomblob(32), 2, document, NULL"
    " FROM authority_sets LIMIT 1",
    "an authority set of no epoch": "INSERT INTO authority_sets SELECT -1, randomblob(32), 2,"
    " document, NULL FROM authority_sets LIMIT 1",
    "an authority set that a receipt made": "INSERT INTO authority_sets SELECT 2, randomblob(32),"
    " 2, document, 0 FROM authority_sets LIMIT 1",
    "evidence in a receipt": "INSERT INTO evidence SELECT 0, accused, height, view FROM evidence",
    "evidence without a transaction": "INSERT INTO evidence SELECT 99, accused, height, view"
    " FROM evidence",
    "an audit in a receipt": "INSERT INTO audits SELECT 0, receipt_id, 'x', verdict, tokens,"
    " exact_tokens, mean_gap_micros, provider, method,"
    " model_digest, same_model FROM audits LIMIT 1",
    "an audit without a transaction": "INSERT INTO audits SELECT 99, receipt_id, 'x', verdict,"
    " tokens, exact_tokens, mean_gap_micros, provider, method,"
    " model_digest, same_model FROM audits LIMIT 1",
    "totals of nobody": "INSERT INTO audit_totals VALUES ('x', 0, 0, 0, 0, 0)",
    "a counter": "INSERT INTO counters VALUES ('other', 0)",
}


@pytest.mark.parametrize("statement", EXTRA.values(), ids=EXTRA.keys())
def test_a_row_that_does_not_belong_is_found(path, statement):
    damage(path, statement)
    with pytest.raises(StoreError):
        verify(path)


# --- rewritten and cut chains -----------------------------------------------------------------


def rewrite(path, chain) -> None:
    """Replace all contents by those of another chain under the same keys."""
    path.unlink()
    with contextlib.closing(ChainStore(path, chain.genesis)) as store:
        for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
            store.append(block, certificate).result()


def test_a_tail_that_was_cut_off_cleanly_is_a_shorter_chain(path):
    """No file can tell what it has lost; whoever keeps a header or a receipt can."""
    rewrite(path, build_chain(1, blocks=SIZES[:2]))
    assert verify(path).height == 2


def test_half_a_cut_is_found(path):
    damage(path, "DELETE FROM blocks WHERE height >= 3", "UPDATE counters SET value = 3")
    with pytest.raises(StoreError, match=f"transactions: expected 3 rows, got {LEAVES}"):
        verify(path)


def test_a_block_in_the_middle_that_is_missing_is_named(path):
    damage(path, "DELETE FROM blocks WHERE height = 2")
    with pytest.raises(StoreError, match="block 2: it is missing"):
        verify(path)


def test_two_swapped_transactions_are_found(path):
    damage(
        path,
        "UPDATE transactions SET leaf = -1 WHERE leaf = 3",
        "UPDATE transactions SET leaf = 3 WHERE leaf = 4",
        "UPDATE transactions SET leaf = 4 WHERE leaf = -1",
    )
    with pytest.raises(StoreError, match="block 3: header tree_root"):
        verify(path)


def test_two_swapped_certificates_are_found(path):
    damage(
        path,
        "UPDATE blocks SET certificate = (SELECT b.certificate FROM blocks b"
        " WHERE b.height = 3 - blocks.height) WHERE height < 3",
    )
    with pytest.raises(StoreError, match="block 1: certificate"):
        verify(path)


def test_a_certificate_without_a_quorum_is_found(tmp_path):
    chain = build_chain(4, blocks=(1, 1))
    path = tmp_path / "ledger.db"
    rewrite_from = ChainStore(path, chain.genesis)
    with contextlib.closing(rewrite_from) as store:
        for block, certificate in zip(chain.blocks, chain.certificates, strict=True):
            store.append(block, certificate).result()
    verify(path, chain.genesis)
    # Of four votes three are needed: drop two of the first block, which the tail check never sees.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (text,) = connection.execute("SELECT certificate FROM blocks WHERE height = 1").fetchone()
        head, votes = text.split("[[", 1)
        kept = votes.split("],[")[:2]
        connection.execute(
            "UPDATE blocks SET certificate = ? WHERE height = 1",
            (f"{head}[[{'],['.join(kept)}]]}}",),
        )
        connection.commit()
    with pytest.raises(StoreError, match="expected at least 3 votes of 4, got 2"):
        verify(path, chain.genesis)


# --- files ------------------------------------------------------------------------------------


def test_the_file_of_another_network_is_refused(path):
    with pytest.raises(StoreError, match="not that of this genesis"):
        verify(path, build_genesis(network="other-net"))


def test_a_missing_file_is_one_clear_error(tmp_path):
    with pytest.raises(StoreError, match="unable to open"):
        verify(tmp_path / "ledger.db")


@pytest.mark.parametrize("content", [b"", b"nonsense" * 4096])
def test_a_file_that_is_no_ledger_is_one_clear_error(tmp_path, content):
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a readable ledger"):
        verify(path)


def test_text_that_is_not_utf8_is_found(path):
    damage(path, "UPDATE transactions SET envelope = CAST(x'ff' AS TEXT) WHERE leaf = 2")
    with pytest.raises(StoreError):
        verify(path)


def test_an_index_that_misses_a_row_is_found(path):
    """The page that explorer and API would look a client's receipts up in."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        sql = "SELECT sql FROM sqlite_schema WHERE name = 'receipts_client'"
        (statement,) = connection.execute(sql).fetchone()
        partial = f"{statement} WHERE leaf <> 3"
        connection.execute("DROP INDEX receipts_client")
        connection.execute(partial)
        connection.execute(
            "UPDATE sqlite_schema SET sql = ? WHERE name = 'receipts_client'", (statement,)
        )
    with pytest.raises(StoreError, match=r"SQLite finds the file damaged.*receipts_client"):
        verify(path)


def test_names_in_the_schema_that_are_no_text_are_one_clear_error(path):
    """SQLite quotes them in its message, which cannot be read then."""
    content = path.read_bytes()
    place = content.index(b"CREATE TABLE blocks")
    path.write_bytes(content[:place] + b"\xe5" + content[place + 1 :])
    with pytest.raises(StoreError, match="not a readable ledger"):
        verify(path)


@settings(max_examples=60)
@given(st.data())
def test_no_flipped_bit_of_the_file_goes_unnoticed_or_crashes(sound, tmp_path_factory, data):
    """Either the bit carries nothing (free space, SQLite's own counters), or it is found."""
    content = bytearray(sound.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1), "byte")
    content[place] ^= 1 << data.draw(st.integers(0, 7), "bit")
    path = tmp_path_factory.mktemp("flip") / "ledger.db"
    path.write_bytes(content)
    try:
        verify(path)
    except StoreError:
        return
    assert dump(path) == dump(sound)


def dump(path) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [
            (table, *row)
            for table in sorted({table for table, _, _ in list_columns()})
            for row in connection.execute(f"SELECT * FROM {table} ORDER BY rowid")
        ]


def test_an_older_file_learns_what_its_audits_weigh(path):
    def read():
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT * FROM audits ORDER BY leaf").fetchall()

    today = read()
    assert today
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX audits_provider")
        for column in ("method", "model_digest", "same_model"):
            connection.execute(f"ALTER TABLE audits DROP COLUMN {column}")
        connection.execute("CREATE INDEX audits_provider ON audits (provider)")
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm008_weighing'")
        connection.commit()
    ChainStore(path, CHAIN.genesis).close()
    assert read() == today
    verify(path)
