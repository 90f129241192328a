"""Make a ledger of many millions of receipts out of copies of a really signed one, to time reads.

    .venv/bin/python -m scripts.multiply build/generated-250000 build/multiplied-40 --times 40

The copies follow the originals in leaves, heights and time, have ids of their own, and count in
every total. Nothing else about them is true: their signatures, hashes and tree nodes do not verify,
and no node may seal upon them. So nothing but the time of reads may be measured on such a ledger.

What is copied, and how, follows from the names of tables and columns as they are in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from blake3 import blake3

from ledger import merkle
from ledger.block import Certificate, build_tip, hash_header, parse_header
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.store.reading import load_authority_set, read_node
from ledger.store.votes import VoteStore
from ledger.vote import VoteRecord, cast_vote
from node.datadir import DataDirectory, load_key
from node.files import write_public

DAY_MS = 86_400_000
CACHE_KB = 2_000_000
"""Ids come in no order, so an index of theirs is written page by page unless it is in memory."""
MAX_SUM = 2**63 - 1
"""Where the sums of a ledger stop."""

_COPIED = frozenset({"leaf", "height", "start_ms"})
"""A table with one of these columns is copied, rows and all."""
_NOT_COPIED = frozenset({"authority_sets"})
_SUMMED = ("accounts", "audit_totals", "counters")
_MOVED = {
    **dict.fromkeys(("leaf", "first_leaf"), "leaves"),
    "height": "blocks",
    **dict.fromkeys(("time_ms", "start_ms", "started_at_ms", "completed_at_ms"), "millis"),
}
_RENAMED = frozenset({"id", "hash", "receipt_id", "job_id"})
_TEXT_ID = re.compile(r"(?<=\")((?:rcp|job)_)([0-9A-Za-z]{26})(?=\")")
_LOWER = bytes(b"abcdefghijklmnopqrstuvwxyz234567"[byte & 31] for byte in range(256))
_UPPER = bytes(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ"[byte & 31] for byte in range(256))


class Multiplied(msgspec.Struct, frozen=True, kw_only=True):
    """What a directory was made of; `multiplied.json` in it says so once it is whole."""

    times: int
    leaves: int


def multiply(source: DataDirectory, target: DataDirectory, *, times: int) -> int:
    """Make `target` out of `source`, unless it is there and whole. Returns its leaves.

    Raises:
        StoreError: the target is of something else, or broken off.
    """
    note = target.root / "multiplied.json"
    if note.exists():
        known = msgspec.json.decode(note.read_bytes(), type=Multiplied)
        if known.times != times:
            raise StoreError(f"{target.root}: holds {known.times} times its source, not {times}")
        return known.leaves
    if target.root.exists():
        raise StoreError(f"{target.root}: was broken off; remove it")
    with contextlib.closing(sqlite3.connect(source.ledger)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(source.root, target.root, ignore=shutil.ignore_patterns("node.lock", "*.log"))
    with contextlib.closing(sqlite3.connect(target.ledger, isolation_level=None)) as connection:
        leaves = _fill(connection, source.ledger, times)
        _seal_newest(connection, target)
        connection.execute("PRAGMA journal_mode = WAL")
    os.sync()
    write_public(note, msgspec.json.encode(Multiplied(times=times, leaves=leaves)) + b"\n")
    return leaves


def _fill(connection: sqlite3.Connection, source: Path, times: int) -> int:
    for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KB}"):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("ATTACH ? AS source", (str(source),))
    connection.create_function("renamed", 2, _rename, deterministic=True)
    connection.create_function("told_otherwise", 2, _tell_otherwise, deterministic=True)
    connection.create_function("moved_header", 4, _move_header, deterministic=True)
    size = _measure(connection)
    # An index is made of sorted rows in a tenth of the time that it takes to grow.
    indexes = connection.execute(
        "SELECT name, sql FROM main.sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"
        " AND sql NOT LIKE 'CREATE UNIQUE%'"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f"DROP INDEX main.{name}")
    for number in range(1, times):
        print(f"copy {number} of {times - 1}", file=sys.stderr)
        for table, columns in _list_tables(connection):
            if _COPIED & columns.keys() and table not in _NOT_COPIED:
                _copy(connection, table, columns, size, number)
    _fill_tree(connection, leaves=size["leaves"] * times)
    _multiply_sums(connection, times)
    for _, statement in indexes:
        connection.execute(statement)
    return size["leaves"] * times


def _measure(connection: sqlite3.Connection) -> Mapping[str, int]:
    """Return how far one copy is from the one before."""
    leaves, blocks, first_ms, last_ms = connection.execute(
        "SELECT (SELECT max(leaf) + 1 FROM source.transactions), max(height), min(time_ms),"
        " max(time_ms) FROM source.blocks"
    ).fetchone()
    # Whole days, so that hours and days stay what they are.
    days = (last_ms - first_ms) // DAY_MS + 1
    return {"leaves": leaves, "blocks": blocks, "millis": days * DAY_MS}


def _list_tables(connection: sqlite3.Connection) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each table with the types of its columns."""
    names = connection.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")
    for (table,) in names.fetchall():
        rows = connection.execute(f"PRAGMA main.table_info({table})")
        yield table, {row[1]: row[2] for row in rows.fetchall()}


def _copy(
    connection: sqlite3.Connection,
    table: str,
    columns: Mapping[str, str],
    size: Mapping[str, int],
    number: int,
) -> None:
    values = ", ".join(_express(table, column, size, number) for column in columns)
    connection.execute(
        f"INSERT OR IGNORE INTO main.{table} ({', '.join(columns)})"  # noqa: S608 - the file's own
        f" SELECT {values} FROM source.{table}"
    )


def _express(table: str, column: str, size: Mapping[str, int], number: int) -> str:
    """Return what stands in a column of a copied row."""
    if column in _MOVED:
        return f"{column} + {number * size[_MOVED[column]]}"
    if column in _RENAMED and table != "tree_nodes":
        return f"renamed({column}, {number})"
    if column == "envelope":
        return f"told_otherwise({column}, {number})"
    if column == "header":
        moved = ", ".join(str(number * size[name]) for name in ("leaves", "blocks", "millis"))
        return f"moved_header({column}, {moved})"
    return column


def _rename(name: bytes | str, number: int) -> bytes | str:
    """Return another hash, or another id of the same form."""
    digest = blake3(name.encode() if isinstance(name, str) else name)
    digest.update(number.to_bytes(4, "big"))
    if isinstance(name, bytes):
        return digest.digest(len(name))
    kind, _, rest = name.partition("_")
    # The first digit of a ULID is at most 7.
    table, kept = (_LOWER, 0) if rest[-1].islower() or rest.islower() else (_UPPER, 1)
    drawn = digest.digest(len(rest) - kept).translate(table).decode()
    return f"{kind}_{rest[:kept]}{drawn}"


def _tell_otherwise(envelope: bytes | str, number: int) -> bytes | str:
    """Let an envelope speak of the copy's ids, if it is text."""
    if isinstance(envelope, bytes):
        return envelope
    return _TEXT_ID.sub(lambda match: str(_rename(match[0], number)), envelope)


def _move_header(header: bytes | str, leaves: int, blocks: int, millis: int) -> bytes | str:
    fields = msgspec.json.decode(header, type=dict[str, object])
    for name, step in (("tree_size", leaves), ("height", blocks), ("time_ms", millis)):
        fields[name] = int(str(fields[name])) + step
    moved = msgspec.json.encode(fields)
    return moved if isinstance(header, bytes) else moved.decode()


def _fill_tree(connection: sqlite3.Connection, *, leaves: int) -> None:
    """Let a proof find all nodes on its way, however wrong they are."""
    connection.execute(
        "INSERT OR IGNORE INTO main.tree_nodes (position, hash) WITH RECURSIVE places (position) AS"
        " (SELECT 0 UNION ALL SELECT position + 1 FROM places LIMIT ?)"
        " SELECT position, randomblob(32) FROM places",
        (2 * leaves,),
    )


def _multiply_sums(connection: sqlite3.Connection, times: int) -> None:
    tables = dict(_list_tables(connection))
    for table in _SUMMED:
        sums = [column for column, kind in tables[table].items() if kind == "INTEGER"]
        updates = ", ".join(f"{name} = min({name} * {times}, {MAX_SUM})" for name in sums)
        connection.execute(f"UPDATE main.{table} SET {updates}")  # noqa: S608 - the file's own


def _seal_newest(connection: sqlite3.Connection, data: DataDirectory) -> None:
    """Make the newest block true, upon what is below it: a node that starts verifies it."""
    rows = connection.execute("SELECT header FROM main.blocks ORDER BY height DESC LIMIT 2")
    newest, before = (parse_header(header.encode()) for (header,) in rows.fetchall())
    root = merkle.compute_root(newest.tree_size, lambda *node: read_node(connection, *node))
    newest = msgspec.structs.replace(newest, tree_root=root.hex())
    authorities = load_authority_set(connection, bytes.fromhex(before.next_set_hash))
    tip = build_tip(before, authority_set=authorities, limits=data.load_genesis().limits)
    key, instance = load_key(data.authority_key)
    digest = hash_header(newest)
    vote = cast_vote(key, member=0, tip=tip, kind="finalize", view=0, block_hash=digest.hex())
    certificate = Certificate(view=0, votes=((0, vote.sig),))
    votes = VoteStore.open(
        data.votes, instance=instance, account=key.account, genesis_hash=tip.genesis_hash
    )
    with contextlib.closing(votes):
        votes.record(VoteRecord(height=newest.height, votes=(vote,)))
    connection.execute(
        "UPDATE main.blocks SET hash = ?, header = ?, certificate = ? WHERE height = ?",
        (digest, encode(newest).decode(), encode(certificate).decode(), newest.height),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="a generated directory that no node runs on")
    parser.add_argument("target", type=Path, help="a new directory")
    parser.add_argument("--times", type=int, required=True)
    options = parser.parse_args(arguments)
    try:
        leaves = multiply(
            DataDirectory(options.source), DataDirectory(options.target), times=options.times
        )
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.target}: {leaves:,} transactions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
