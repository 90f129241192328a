"""`witness.db`: what a witness has co-signed, and what it was shown that contradicts it.

A witness that forgets can be led to co-sign a rewritten history. So the file is made together with
the key and belongs to it, as an authority's votes.db does, and a witness that misses it refuses to
sign. Per log it holds the newest checkpoint alone, and the schema itself refuses a smaller tree,
another root at the same size, and any loss of evidence.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.checkpoint import Checkpoint, read_checkpoint
from ledger.errors import InvalidNoteError, StoreError
from ledger.store.database import create_private, open_writer

MAX_EVIDENCE = 1000
"""Contradictions kept; one is enough, and a hostile log must not fill the disk."""

migrations = Migrations("witness")


@migrations()
def m001_witness(database: sqlite_utils.Database) -> None:
    """The owner, the newest checkpoint of each log, and contradictions."""
    for statement in _SCHEMA:
        database.execute(statement)


_SCHEMA = (
    """CREATE TABLE owner (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        instance TEXT NOT NULL,
        account TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE cosigned (
        origin TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        root BLOB NOT NULL CHECK (length(root) = 32),
        time_s INTEGER NOT NULL,
        note BLOB NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TRIGGER never_go_back BEFORE UPDATE ON cosigned
        WHEN NEW.origin != OLD.origin OR NEW.size < OLD.size OR NEW.time_s < OLD.time_s
        BEGIN SELECT RAISE(ABORT, 'a witness never goes back'); END""",
    """CREATE TRIGGER never_two_roots BEFORE UPDATE ON cosigned
        WHEN NEW.size = OLD.size AND NEW.root != OLD.root
        BEGIN SELECT RAISE(ABORT, 'a tree of one size has one root'); END""",
    """CREATE TRIGGER never_forget BEFORE DELETE ON cosigned
        BEGIN SELECT RAISE(ABORT, 'a witness never forgets'); END""",
    """CREATE TABLE evidence (
        id INTEGER PRIMARY KEY,
        seen_at_ms INTEGER NOT NULL,
        reason TEXT NOT NULL,
        published BLOB NOT NULL UNIQUE,
        cosigned BLOB,
        block BLOB
    ) STRICT""",
    """CREATE TRIGGER never_change_evidence BEFORE UPDATE ON evidence
        BEGIN SELECT RAISE(ABORT, 'evidence never changes'); END""",
    """CREATE TRIGGER never_lose_evidence BEFORE DELETE ON evidence
        BEGIN SELECT RAISE(ABORT, 'evidence is never lost'); END""",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """A checkpoint with the witness' own signature on it."""

    checkpoint: Checkpoint
    time_s: int
    """The time that the signature names, Unix seconds."""
    note: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A signed checkpoint beside what it contradicts. Everything in it is public."""

    seen_at_ms: int
    reason: str
    published: bytes
    """The note as the log signed it."""
    cosigned: bytes | None
    """The note that this witness had co-signed last, with the log's signature on it too."""
    block: bytes | None
    """Canonical header and certificate of the final block that reaches the published size."""


class WitnessStore:
    """An open `witness.db`. One thread uses it at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create(cls, path: Path, *, instance: str, account: str) -> None:
        """Make the file for a new key. It appears whole or not at all.

        Raises:
            StoreError: there is one already, or the disk refuses.
        """
        with create_private(path, migrations) as connection:
            connection.execute("INSERT INTO owner VALUES (1, ?, ?)", (instance, account))

    @classmethod
    def discard_unused(cls, path: Path) -> None:
        """Remove a file whose key was never finished: one that has signed nothing.

        Raises:
            StoreError: it has; its key is gone, and it stays for whoever asks what was signed.
        """
        if not path.exists():
            return
        with contextlib.closing(open_writer(path, migrations)) as connection:
            (used,) = connection.execute("SELECT EXISTS (SELECT 1 FROM cosigned)").fetchone()
        if used:
            raise StoreError(
                f"{path}: belongs to a witness whose key is gone; move it away to start another"
            )
        path.unlink()

    @classmethod
    def open(cls, path: Path, *, instance: str, account: str) -> WitnessStore:
        """Open the file that was made with this key.

        Raises:
            StoreError: it is missing, damaged, or was made for another key.
        """
        if not path.is_file():
            raise StoreError(
                f"{path}: missing, so this witness refuses to sign: it cannot know what it has "
                "signed already. Start another witness with a new key and tell its users; never "
                "restore witness.db from a backup"
            )
        connection = open_writer(path, migrations)
        try:
            owner = connection.execute("SELECT instance, account FROM owner").fetchone()
        except sqlite3.Error as error:
            connection.close()
            raise StoreError(f"{path}: cannot be read: {error}") from error
        if owner is None or tuple(owner) != (instance, account):
            connection.close()
            raise StoreError(
                f"{path}: was not made with the key of {account}; use the data directory as it was "
                "created, witness.db is never copied between witnesses"
            )
        return cls(path, connection)

    def newest(self, origin: str) -> Cosigned | None:
        """Return the checkpoint of this log that was co-signed last.

        Raises:
            StoreError: the file is damaged.
        """
        row = self._read("SELECT size, root, time_s, note FROM cosigned WHERE origin = ?", origin)
        if not row:
            return None
        size, root, time_s, note = row[0]
        checkpoint = Checkpoint(origin=origin, size=size, root=root)
        try:
            said = read_checkpoint(note)
        except InvalidNoteError as error:
            raise StoreError(f"{self.path}: the checkpoint of {origin} is damaged") from error
        if said != checkpoint:
            raise StoreError(f"{self.path}: the checkpoint of {origin} and its note differ")
        return Cosigned(checkpoint=checkpoint, time_s=time_s, note=note)

    def record(self, cosigned: Cosigned) -> None:
        """Remember a co-signed checkpoint, durably. Only then may its note leave.

        Raises:
            StoreError: it goes back behind an earlier one, or the disk refuses.
        """
        checkpoint = cosigned.checkpoint
        self._write(
            "INSERT INTO cosigned VALUES (?, ?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET"
            " size = excluded.size, root = excluded.root, time_s = excluded.time_s,"
            " note = excluded.note",
            checkpoint.origin,
            checkpoint.size,
            checkpoint.root,
            cosigned.time_s,
            cosigned.note,
        )

    def keep(self, evidence: Evidence) -> None:
        """Keep a contradiction; the same note again, or one above the bound, changes nothing.

        Raises:
            StoreError: the disk refuses.
        """
        self._write(
            "INSERT INTO evidence (seen_at_ms, reason, published, cosigned, block)"
            " SELECT ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM evidence) < ?"
            " ON CONFLICT (published) DO NOTHING",
            evidence.seen_at_ms,
            evidence.reason,
            evidence.published,
            evidence.cosigned,
            evidence.block,
            MAX_EVIDENCE,
        )

    def evidence(self) -> list[Evidence]:
        """Return every contradiction, oldest first."""
        rows = self._read(
            "SELECT seen_at_ms, reason, published, cosigned, block FROM evidence ORDER BY id"
        )
        return [Evidence(**dict(row)) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _read(self, statement: str, *values: object) -> list[sqlite3.Row]:
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be read: {error}") from error

    def _write(self, statement: str, *values: object) -> None:
        # One statement is one transaction, durable when it returns.
        try:
            self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: nothing was stored: {error}") from error
