"""`votes.db`: what an authority has said, so that it never says the opposite.

An authority that forgets its votes can vote twice, and enough such members fork the chain. So the
file is made together with the key and belongs to that key, on that network, for ever. It is never
backed up or restored, and a node that misses it does not vote.

The schema itself refuses a second vote of a kind in one view (R1), nullify next to finalize (R2),
and any change or early loss of a vote.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.encoding import decode, decode_base64url, encode, encode_base64url
from ledger.errors import LedgerError, StoreError
from ledger.keys import SIGNATURE_BYTES
from ledger.store.database import create_private, open_writer
from ledger.vote import QuorumCertificate, Vote, VoteRecord, encode_block, parse_block

KEEP_HEIGHTS = 16
"""Heights below the open one that stay, so that a ledger which lost its tail finds its votes."""

migrations = Migrations("votes")


@migrations()
def m001_votes(database: sqlite_utils.Database) -> None:
    """The owner, its votes, and the bodies and certificates they rest on."""
    for statement in _SCHEMA:
        database.execute(statement)


_SCHEMA = (
    """CREATE TABLE owner (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        instance TEXT NOT NULL,
        account TEXT NOT NULL,
        genesis_hash BLOB NOT NULL CHECK (length(genesis_hash) = 32),
        forgotten_below INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE vote (
        height INTEGER NOT NULL,
        view INTEGER NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('notarize', 'nullify', 'finalize')),
        block_hash BLOB CHECK (length(block_hash) = 32),
        member INTEGER NOT NULL,
        signature BLOB NOT NULL CHECK (length(signature) = 64),
        PRIMARY KEY (height, view, kind),
        CHECK ((kind = 'nullify') = (block_hash IS NULL))
    ) STRICT, WITHOUT ROWID""",
    """CREATE TRIGGER never_nullify_and_finalize BEFORE INSERT ON vote
        WHEN EXISTS (
            SELECT 1 FROM vote WHERE height = NEW.height AND view = NEW.view
            AND (kind, NEW.kind) IN (VALUES ('nullify', 'finalize'), ('finalize', 'nullify'))
        )
        BEGIN SELECT RAISE(ABORT, 'R2: never both nullify and finalize in one view'); END""",
    """CREATE TRIGGER never_change_a_vote BEFORE UPDATE ON vote
        BEGIN SELECT RAISE(ABORT, 'a vote never changes'); END""",
    """CREATE TRIGGER never_lose_a_vote BEFORE DELETE ON vote
        WHEN OLD.height >= (SELECT forgotten_below FROM owner)
        BEGIN SELECT RAISE(ABORT, 'a vote of a height this recent is not forgotten'); END""",
    """CREATE TABLE block (
        height INTEGER NOT NULL,
        block_hash BLOB NOT NULL CHECK (length(block_hash) = 32),
        document BLOB NOT NULL,
        PRIMARY KEY (height, block_hash)
    ) STRICT""",
    """CREATE TABLE certificate (
        height INTEGER NOT NULL,
        view INTEGER NOT NULL,
        kind TEXT NOT NULL,
        document BLOB NOT NULL,
        PRIMARY KEY (height, view, kind)
    ) STRICT""",
)


class VoteStore:
    """An open `votes.db`. One thread uses it at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._forgotten_below = -1
        """What the file says at least; not known before the first record."""

    @classmethod
    def create(cls, path: Path, *, instance: str, account: str, genesis_hash: bytes) -> VoteStore:
        """Make the file for a new key. It appears whole or not at all.

        `instance` is drawn at random for the key and kept in the key file too.

        Raises:
            StoreError: there is one already, or the disk refuses.
        """
        with create_private(path, migrations) as connection:
            adopt_owner(connection, instance=instance, account=account, genesis_hash=genesis_hash)
        return cls.open(path, instance=instance, account=account, genesis_hash=genesis_hash)

    @classmethod
    def open(cls, path: Path, *, instance: str, account: str, genesis_hash: bytes) -> VoteStore:
        """Open the file that was made with this key.

        Raises:
            StoreError: it is missing, damaged, or was made for another key or network.
        """
        if not path.is_file():
            raise StoreError(
                f"{path}: missing, so this authority refuses to vote: it cannot know what it has "
                "already signed. Have the other authorities replace its key (an authority_set "
                "transaction); never restore votes.db from a backup. A network of one authority "
                "has to be started anew"
            )
        connection = open_writer(path, migrations)
        try:
            check_owner(
                path, connection, instance=instance, account=account, genesis_hash=genesis_hash
            )
        except StoreError:
            connection.close()
            raise
        return cls(path, connection)

    def record(self, record: VoteRecord) -> None:
        """Add to what is stored of a height, durably, in one transaction; all of it or nothing.

        After an error the authority must not go on: stop the process.

        Raises:
            StoreError: a vote contradicts an earlier one, or the disk refuses.
        """
        height = record.height
        certificates = [(height, c.view, c.kind, encode(c)) for c in record.certificates]
        blocks = [(height, block.hash, encode_block(block)) for block in record.blocks]
        write = self._connection
        try:
            write.execute("BEGIN IMMEDIATE")
            write.executemany(
                "INSERT INTO vote VALUES (?, ?, ?, ?, ?, ?)",
                [_vote_row(height, vote) for vote in record.votes],
            )
            write.executemany("INSERT OR IGNORE INTO block VALUES (?, ?, ?)", blocks)
            write.executemany("INSERT OR IGNORE INTO certificate VALUES (?, ?, ?, ?)", certificates)
            # Once per height: a height has many records, and each is waited for.
            if height - KEEP_HEIGHTS > self._forgotten_below:
                self._forget_below(height - KEEP_HEIGHTS)
            write.execute("COMMIT")
            self._forgotten_below = max(self._forgotten_below, height - KEEP_HEIGHTS)
        except sqlite3.Error as error:
            if write.in_transaction:
                write.execute("ROLLBACK")
            raise StoreError(f"{self.path}: votes of height {height} refused: {error}") from error

    @property
    def forgotten_below(self) -> int:
        """Lowest height whose votes are remembered.

        Raises:
            StoreError: the file cannot be read.
        """
        return read_forgotten_below(self.path, self._connection)

    def load(self, height: int) -> VoteRecord:
        """Return all that is stored of `height`: at a restart, of the one after the tip.

        Raises:
            StoreError: the height is so old that its votes are forgotten, or a row is damaged.
        """
        read = self._connection.execute
        try:
            votes = read(
                "SELECT kind, view, block_hash, member, signature FROM vote WHERE height = ? "
                "ORDER BY view, kind",
                (height,),
            ).fetchall()
            blocks = read("SELECT document FROM block WHERE height = ?", (height,)).fetchall()
            certificates = read(
                "SELECT document FROM certificate WHERE height = ? ORDER BY view, kind", (height,)
            ).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: cannot be read: {error}") from error
        if height < self.forgotten_below:
            raise StoreError(
                f"{self.path}: height {height} was decided long ago and its votes are forgotten; "
                "ledger.db is older than votes.db. Fetch the blocks after it from another node"
            )
        try:
            return VoteRecord(
                height=height,
                votes=tuple(_parse_vote(*row) for row in votes),
                blocks=tuple(parse_block(document) for (document,) in blocks),
                certificates=tuple(decode(data, QuorumCertificate) for (data,) in certificates),
            )
        except LedgerError as error:
            raise StoreError(f"{self.path}: height {height} is damaged: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _forget_below(self, height: int) -> None:
        # A vote on a height means that all below it are final and durable in the ledger.
        write = self._connection.execute
        write("UPDATE owner SET forgotten_below = max(forgotten_below, ?)", (height,))
        write("DELETE FROM vote WHERE height < ?", (height,))
        write("DELETE FROM block WHERE height < ?", (height,))
        write("DELETE FROM certificate WHERE height < ?", (height,))


def read_forgotten_below(path: Path, connection: sqlite3.Connection) -> int:
    """Return the lowest height whose votes are remembered.

    Raises:
        StoreError: the file cannot be read.
    """
    try:
        row = connection.execute("SELECT forgotten_below FROM owner").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    return int(row[0])


def adopt_owner(
    connection: sqlite3.Connection, *, instance: str, account: str, genesis_hash: bytes
) -> None:
    """Make an empty database that of one key on one network."""
    connection.execute(
        "INSERT INTO owner VALUES (1, ?, ?, ?, 0)", (instance, account, genesis_hash)
    )


def check_owner(
    path: Path,
    connection: sqlite3.Connection,
    *,
    instance: str,
    account: str,
    genesis_hash: bytes,
) -> None:
    """Check that the database was made with this key on this network.

    Raises:
        StoreError: it was not, or it cannot be read.
    """
    try:
        owner = connection.execute("SELECT instance, account, genesis_hash FROM owner").fetchone()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    expected = {"instance": instance, "account": account, "genesis": genesis_hash}
    for (name, wanted), found in zip(expected.items(), owner or [None] * 3, strict=True):
        if found != wanted:
            raise StoreError(
                f"{path}: was not made with this node's key on this network: expected "
                f"{name} {_show(wanted)}, got {_show(found)}. Use the data directory as it "
                "was created; votes.db is never copied between nodes"
            )


def _vote_row(height: int, vote: Vote) -> tuple[int, int, str, bytes | None, int, bytes]:
    block_hash = bytes.fromhex(vote.block_hash) if vote.block_hash else None
    signature = decode_base64url(vote.sig, size_bytes=SIGNATURE_BYTES)
    return height, vote.view, vote.kind, block_hash, vote.member, signature


def _parse_vote(
    kind: str, view: int, block_hash: bytes | None, member: int, signature: bytes
) -> Vote:
    fields = {
        "kind": kind,
        "view": view,
        "block_hash": (block_hash or b"").hex(),
        "member": member,
        "sig": encode_base64url(signature),
    }
    return decode(encode(fields), Vote)


def _show(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)
