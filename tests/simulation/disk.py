"""A node's two databases, in memory, and the power cuts that they survive.

The tables, triggers and statements are the production ones. Opening a file a thousand times would
cost more than all else, so an empty one is made once and copied. A power cut strikes at a COMMIT:
before it, and nothing of the transaction is left, or after it, and all of it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlite_utils.migrations import Migrations

from ledger.block import Block, Certificate, Genesis, VerifiedBlock, hash_genesis
from ledger.store import chain, votes
from ledger.store.appending import append_block, append_verified
from ledger.store.chain import adopt_genesis, check_tail, load_tip
from ledger.store.database import apply_schema
from ledger.store.votes import VoteStore, adopt_owner, check_owner

LEDGER, VOTES = Path("ledger.db"), Path("votes.db")


class PowerCutError(Exception):
    """The machine is off."""


class Moment(Enum):
    BEFORE_COMMIT = "before the commit"
    AFTER_COMMIT = "after the commit"


class Connection(sqlite3.Connection):
    """A database whose next commit may be cut short."""

    cut: Moment | None = None

    def execute(self, sql: str, *parameters) -> sqlite3.Cursor:
        if sql != "COMMIT" or self.cut is None:
            return super().execute(sql, *parameters)
        moment, self.cut = self.cut, None
        if moment is Moment.AFTER_COMMIT:
            super().execute(sql)
        raise PowerCutError(moment.value)


class Disk:
    """What survives a crash. An account of "" votes for nothing and has no `votes.db`."""

    def __init__(self, genesis: Genesis, account: str) -> None:
        self.genesis = genesis
        self.account = account
        self.ledger = _open(_empty_ledger(genesis))
        self._owner = name_owner(account, hash_genesis(genesis))
        self.votes = make_votes(**self._owner) if account else None

    def boot(self) -> VoteStore | None:
        """Do what a node does when it starts: recover, and check what is there."""
        for connection in (self.ledger, self.votes):
            if connection is not None:
                connection.cut = None
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        adopt_genesis(self.ledger, self.genesis, LEDGER)
        check_tail(self.ledger, LEDGER)
        if self.votes is None:
            return None
        check_owner(VOTES, self.votes, **self._owner)
        return VoteStore(VOTES, self.votes)

    def append(self, block: Block, certificate: Certificate) -> None:
        """Do what `ChainStore.append` does."""
        self._write(lambda c: append_block(c, block, certificate, load_tip(c), {}))

    def append_verified(self, block: VerifiedBlock) -> None:
        """Do what `ChainStore.append_verified` does."""
        self._write(lambda c: append_verified(c, [block]))

    def _write(self, work: Callable[[Connection], object]) -> None:
        self.ledger.execute("BEGIN IMMEDIATE")
        try:
            work(self.ledger)
        except BaseException:
            self.ledger.execute("ROLLBACK")
            raise
        self.ledger.execute("COMMIT")

    def lose_votes(self) -> None:
        """What nobody must ever do: replace `votes.db` by an empty one."""
        if self.votes is not None:
            self.votes.close()
            self.votes = make_votes(**self._owner)

    def close(self) -> None:
        self.ledger.close()
        if self.votes is not None:
            self.votes.close()


def name_owner(account: str, genesis_hash: bytes) -> dict[str, Any]:
    """Return whose `votes.db` it is."""
    instance = f"instance of {account}"
    return {"instance": instance, "account": account, "genesis_hash": genesis_hash}


def make_votes(**owner: Any) -> Connection:
    """Make an empty `votes.db`."""
    connection = _open(_empty_votes())
    adopt_owner(connection, **owner)
    return connection


@lru_cache
def _empty_votes() -> bytes:
    return _build(VOTES, votes.migrations).serialize()


@lru_cache
def _empty_ledger(genesis: Genesis) -> bytes:
    connection = _build(LEDGER, chain.migrations)
    adopt_genesis(connection, genesis, LEDGER)
    return connection.serialize()


def _build(path: Path, migrations: Migrations) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    apply_schema(path, connection, migrations)
    return connection


def _open(image: bytes) -> Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None, factory=Connection)
    connection.deserialize(image)
    connection.execute("PRAGMA foreign_keys = ON")
    connection.row_factory = sqlite3.Row
    return connection
