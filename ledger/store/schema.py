"""The tables of ledger.db, as every release of a node has left and found them."""

from __future__ import annotations

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.store import accounts, rollups

migrations = Migrations("ledger")

RECEIPT_FILTERS = (
    ("client", "model"),
    ("client", "provider"),
    ("client", "provider", "model"),
    ("provider", "model"),
)
"""Several columns that a list is narrowed by. Each set has an index of its own, in which receipts
with the same values are ordered by leaf: whatever a page asks for, it is one range of an index."""


@migrations()
def m001_chain(db: sqlite_utils.Database) -> None:
    """Blocks, transactions, receipts, tree nodes, authority sets and counters."""
    for statement in (
        "CREATE TABLE genesis (id INTEGER PRIMARY KEY CHECK (id = 1), hash BLOB NOT NULL,"
        " document TEXT NOT NULL) STRICT",
        "CREATE TABLE blocks (height INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,"
        " time_ms INTEGER NOT NULL, first_leaf INTEGER NOT NULL, transactions INTEGER NOT NULL,"
        " size_bytes INTEGER NOT NULL, header TEXT NOT NULL, certificate TEXT NOT NULL) STRICT",
        "CREATE TABLE transactions (leaf INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
        " height INTEGER NOT NULL REFERENCES blocks, type TEXT NOT NULL,"
        " envelope TEXT NOT NULL) STRICT",
        "CREATE TABLE receipts (leaf INTEGER PRIMARY KEY REFERENCES transactions,"
        " receipt_id TEXT NOT NULL UNIQUE, job_id TEXT NOT NULL, client TEXT NOT NULL,"
        " provider TEXT NOT NULL, coordinator TEXT NOT NULL, model TEXT NOT NULL,"
        " unit_type TEXT NOT NULL, units_micros INTEGER NOT NULL, price_micros INTEGER NOT NULL,"
        " started_at_ms INTEGER NOT NULL, completed_at_ms INTEGER NOT NULL) STRICT",
        "CREATE INDEX receipts_client ON receipts (client)",
        "CREATE INDEX receipts_provider ON receipts (provider)",
        "CREATE INDEX receipts_model ON receipts (model)",
        "CREATE TABLE tree_nodes (position INTEGER PRIMARY KEY, hash BLOB NOT NULL) STRICT",
        "CREATE TABLE authority_sets (epoch INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,"
        " from_height INTEGER NOT NULL, document TEXT NOT NULL) STRICT",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    ):
        db.execute(statement)


@migrations()
def m002_authorities(db: sqlite_utils.Database) -> None:
    """Which transaction made a set, and evidence by the accused."""
    for statement in (
        "ALTER TABLE authority_sets ADD COLUMN leaf INTEGER REFERENCES transactions",
        "CREATE TABLE evidence (leaf INTEGER PRIMARY KEY REFERENCES transactions,"
        " accused TEXT NOT NULL, height INTEGER NOT NULL, view INTEGER NOT NULL) STRICT",
        "CREATE INDEX evidence_accused ON evidence (accused)",
        "CREATE UNIQUE INDEX authority_sets_leaf ON authority_sets (leaf)",
    ):
        db.execute(statement)


@migrations()
def m003_pin(db: sqlite_utils.Database) -> None:
    """Where the chain began, as long as what is below is missing."""
    db.execute(
        "CREATE TABLE pin (id INTEGER PRIMARY KEY CHECK (id = 1), document TEXT NOT NULL) STRICT"
    )


@migrations()
def m004_audits(db: sqlite_utils.Database) -> None:
    """Audits, and what they come to for each provider."""
    for statement in (
        "CREATE TABLE audits (leaf INTEGER PRIMARY KEY REFERENCES transactions,"
        " receipt_id TEXT NOT NULL, auditor TEXT NOT NULL, verdict TEXT NOT NULL,"
        " tokens INTEGER NOT NULL, exact_tokens INTEGER NOT NULL,"
        " mean_gap_micros INTEGER NOT NULL, provider TEXT,"
        " UNIQUE (receipt_id, auditor)) STRICT",
        "CREATE INDEX audits_receipt ON audits (receipt_id)",
        "CREATE INDEX audits_provider ON audits (provider)",
        "CREATE TABLE audit_totals (provider TEXT PRIMARY KEY, passed INTEGER NOT NULL,"
        " failed INTEGER NOT NULL, tokens INTEGER NOT NULL, exact_tokens INTEGER NOT NULL,"
        " mean_gap_micros INTEGER NOT NULL) STRICT",
    ):
        db.execute(statement)


@migrations()
def m005_accounts(db: sqlite_utils.Database) -> None:
    """Totals of accounts, and an index for each way to narrow a list of receipts."""
    for columns in RECEIPT_FILTERS:
        name = "_".join(columns)
        db.execute(f"CREATE INDEX receipts_{name} ON receipts ({', '.join(columns)})")
    db.execute(accounts.SCHEMA)
    accounts.fill_accounts(db.conn)


@migrations()
def m006_rollups(db: sqlite_utils.Database) -> None:
    """What happened in each five minutes, hour and day."""
    for statement in rollups.SCHEMA:
        db.execute(statement)
    rollups.fill_rollups(db.conn)


@migrations()
def m007_auditors(db: sqlite_utils.Database) -> None:
    """Who has audited anything, found by the account."""
    db.execute("CREATE INDEX audits_auditor ON audits (auditor)")


@migrations()
def m008_weighing(db: sqlite_utils.Database) -> None:
    """What decides whether an audit weighs: its method, and whether both ran the same model."""
    for statement in (
        "ALTER TABLE audits ADD COLUMN method TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE audits ADD COLUMN model_digest TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE audits ADD COLUMN same_model INTEGER",
        "UPDATE audits SET (method, model_digest) = (SELECT"
        " json_extract(envelope, '$.payload.method'),"
        " json_extract(envelope, '$.payload.model_digest')"
        " FROM transactions t WHERE t.leaf = audits.leaf)",
        "UPDATE audits SET same_model = (SELECT audits.model_digest ="
        " json_extract(envelope, '$.payload.model_digest')"
        " FROM receipts r JOIN transactions USING (leaf) WHERE r.receipt_id = audits.receipt_id)"
        " WHERE provider IS NOT NULL",
        # It holds all that is weighed, so that weighing 2,000 audits reads no other page.
        "DROP INDEX audits_provider",
        "CREATE INDEX audits_provider ON audits"
        " (provider, leaf, mean_gap_micros, same_model, method)",
    ):
        db.execute(statement)
