"""node.db: what a node knows in private. Its schema; the rows are read and written beside it.

Functions on rows get a `sessions.Connection`, which says how statements are written.

    jobs.py       jobs with their texts
    draws.py      audits of completed jobs, until they are transactions
    queue.py      whose pending job a miner is offered
    lists.py      pages of jobs, and how many there are
    repeats.py    what an Idempotency-Key was used for
    limits.py     what an API key may submit, and has
    texts.py      removes the texts of jobs that ended long ago
    registry.py   miners and API keys
    known.py      those of them that are asked for with every request
    mempool.py    transactions on their way into a block
    webhooks.py   whom clients want told of their jobs
    events.py, deliveries.py
                  what they are to hear; how that gets there

Job ids are 16-byte ULIDs, rows are in order of submission. Jobs are counted, and each key's row in
the queue is kept, by triggers: whatever changes a job's state, its counts change with it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.errors import StoreError
from ledger.store import registry
from ledger.store.database import Database, make_private
from ledger.store.known import COUNTS

migrations = Migrations("node")


@migrations()
def m001_market(db: sqlite_utils.Database) -> None:
    """Jobs, miners, API keys, mempool."""
    for statement in (
        "CREATE TABLE node (id INTEGER PRIMARY KEY CHECK (id = 1),"
        " genesis_hash BLOB NOT NULL) STRICT",
        "CREATE TABLE jobs (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
        " state TEXT NOT NULL, status_reason TEXT NOT NULL, client TEXT NOT NULL,"
        " owner TEXT NOT NULL, model TEXT NOT NULL, model_key TEXT NOT NULL,"
        " prompt TEXT NOT NULL, max_tokens INTEGER NOT NULL, temperature_micros INTEGER NOT NULL,"
        " top_p_micros INTEGER NOT NULL, requested_seed INTEGER, stop TEXT NOT NULL,"
        " seed INTEGER NOT NULL, prompt_salt BLOB NOT NULL, result_salt BLOB NOT NULL,"
        " price_token_micros INTEGER NOT NULL, price_gpu_second_micros INTEGER NOT NULL,"
        " created_at_ms INTEGER NOT NULL, started_at_ms INTEGER, completed_at_ms INTEGER,"
        " attempt INTEGER NOT NULL DEFAULT 0, miner_id TEXT, provider TEXT, claimed_by TEXT,"
        " lease_expires_at_ms INTEGER, heartbeat INTEGER NOT NULL DEFAULT 0, excluded_miner TEXT,"
        " result TEXT, error TEXT,"
        " receipt_id TEXT UNIQUE) STRICT",
        "CREATE INDEX jobs_pending ON jobs (model_key, seq) WHERE state = 'pending'",
        "CREATE INDEX jobs_pending_owner ON jobs (owner) WHERE state = 'pending'",
        "CREATE INDEX jobs_queue ON jobs (seq) WHERE state = 'pending'",
        "CREATE INDEX jobs_leases ON jobs (lease_expires_at_ms) WHERE state = 'running'",
        "CREATE INDEX jobs_state ON jobs (state, seq)",
        "CREATE INDEX jobs_owner ON jobs (owner, seq)",
        "CREATE INDEX jobs_created ON jobs (created_at_ms)",
        "CREATE TABLE miners (miner_id TEXT PRIMARY KEY, account TEXT, capabilities TEXT NOT NULL,"
        " gpu_name TEXT, gpu_memory TEXT, owner TEXT NOT NULL,"
        " registered_at_ms INTEGER NOT NULL, last_seen_at_ms INTEGER NOT NULL) STRICT",
        "CREATE INDEX miners_account ON miners (account)",
        "CREATE INDEX miners_seen ON miners (last_seen_at_ms)",
        "CREATE TABLE api_keys (prefix TEXT PRIMARY KEY, digest BLOB NOT NULL,"
        " role TEXT NOT NULL, client TEXT NOT NULL, created_at_ms INTEGER NOT NULL,"
        " revoked_at_ms INTEGER) STRICT",
        "CREATE TABLE mempool (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
        " receipt_id TEXT NOT NULL UNIQUE, client TEXT NOT NULL, provider TEXT NOT NULL,"
        " model TEXT NOT NULL, received_at_ms INTEGER NOT NULL, envelope TEXT NOT NULL) STRICT",
        "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
        "INSERT INTO counters VALUES ('jobs', 0)",
    ):
        db.execute(statement)


@migrations()
def m002_mempool(db: sqlite_utils.Database) -> None:
    """Let the mempool hold every type of transaction: the columns of receipts may be empty.

    A place is never given twice, so whoever remembers one has seen all before it.
    """
    for statement in (
        "ALTER TABLE mempool RENAME TO mempool_of_receipts",
        "CREATE TABLE mempool (seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE,"
        " receipt_id TEXT UNIQUE, client TEXT, provider TEXT, model TEXT,"
        " received_at_ms INTEGER NOT NULL, envelope TEXT NOT NULL,"
        " CHECK ((receipt_id IS NULL) = (client IS NULL)"
        " AND (receipt_id IS NULL) = (provider IS NULL)"
        " AND (receipt_id IS NULL) = (model IS NULL))) STRICT",
        "INSERT INTO mempool SELECT * FROM mempool_of_receipts",
        "DROP TABLE mempool_of_receipts",
    ):
        db.execute(statement)


@migrations()
def m003_finish_reason(db: sqlite_utils.Database) -> None:
    """Let a job remember why its answer ended."""
    db.execute("ALTER TABLE jobs ADD COLUMN finish_reason TEXT")


@migrations()
def m004_webhooks(db: sqlite_utils.Database) -> None:
    """Webhooks with their secrets, and what they are to be told.

    A place is never given twice: whoever has a delivery in hand cannot meet another one under it.
    """
    for statement in (
        "CREATE TABLE webhooks (seq INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE,"
        " owner TEXT NOT NULL, url TEXT NOT NULL, events TEXT NOT NULL, secret BLOB NOT NULL,"
        " created_at_ms INTEGER NOT NULL, disabled_reason TEXT,"
        " failures INTEGER NOT NULL DEFAULT 0, failing_since_ms INTEGER,"
        " held_until_ms INTEGER NOT NULL DEFAULT 0, waiting INTEGER NOT NULL DEFAULT 0,"
        " given_up INTEGER NOT NULL DEFAULT 0, last_delivery TEXT) STRICT",
        "CREATE INDEX webhooks_owner ON webhooks (owner, seq)",
        "CREATE INDEX webhooks_waiting ON webhooks (seq) WHERE waiting > 0",
        "CREATE TABLE webhook_deliveries (seq INTEGER PRIMARY KEY AUTOINCREMENT,"
        " webhook INTEGER NOT NULL REFERENCES webhooks, message_id TEXT NOT NULL,"
        " type TEXT NOT NULL, payload TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,"
        " due_at_ms INTEGER NOT NULL) STRICT",
        "CREATE INDEX webhook_deliveries_webhook ON webhook_deliveries (webhook)",
        "CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook, due_at_ms, seq)",
        "CREATE INDEX webhook_deliveries_pings ON webhook_deliveries (webhook)"
        " WHERE type = 'webhook.ping'",
        "INSERT INTO counters VALUES ('webhooks_waiting', 0), ('webhooks_delivered', 0),"
        " ('webhooks_failed', 0), ('webhooks_given_up', 0)",
    ):
        db.execute(statement)


@migrations()
def m005_limits(db: sqlite_utils.Database) -> None:
    """Turns among keys, counts, quotas, repeated requests, purged texts, drained miners."""
    for statement in (
        "CREATE TABLE owners (owner TEXT PRIMARY KEY, turn INTEGER NOT NULL DEFAULT 0,"
        " day INTEGER NOT NULL DEFAULT 0, jobs INTEGER NOT NULL DEFAULT 0,"
        " tokens INTEGER NOT NULL DEFAULT 0) STRICT, WITHOUT ROWID",
        "CREATE TABLE queues (id INTEGER PRIMARY KEY, owner TEXT NOT NULL,"
        " model_key TEXT NOT NULL, turn INTEGER NOT NULL, pending INTEGER NOT NULL,"
        " UNIQUE (owner, model_key)) STRICT",
        "CREATE INDEX queues_turn ON queues (turn)",
        "CREATE INDEX queues_model ON queues (model_key, turn)",
        "INSERT INTO counters VALUES ('turns', 0)",
        "INSERT INTO queues (owner, model_key, turn, pending) SELECT owner, model_key, 0, count(*)"
        " FROM jobs WHERE state = 'pending' GROUP BY owner, model_key ORDER BY min(seq)",
        "CREATE TABLE job_counts (owner TEXT NOT NULL, state TEXT NOT NULL, jobs INTEGER NOT NULL,"
        " PRIMARY KEY (owner, state)) STRICT, WITHOUT ROWID",
        "INSERT INTO job_counts SELECT owner, state, count(*) FROM jobs GROUP BY owner, state",
        "INSERT INTO job_counts SELECT '*', state, count(*) FROM jobs GROUP BY state",
        "DROP INDEX jobs_pending",
        "DROP INDEX jobs_pending_owner",
        "DROP INDEX jobs_queue",
        "CREATE INDEX jobs_turns ON jobs (owner, model_key, seq) WHERE state = 'pending'",
        "CREATE INDEX jobs_waiting ON jobs (created_at_ms) WHERE state = 'pending'",
        "CREATE INDEX jobs_lost ON jobs (excluded_miner)"
        " WHERE state = 'pending' AND excluded_miner IS NOT NULL",
        "CREATE INDEX jobs_miner ON jobs (miner_id) WHERE state = 'running'",
        "CREATE INDEX jobs_owner_state ON jobs (owner, state, seq)",
        "ALTER TABLE jobs ADD COLUMN texts_purged_at_ms INTEGER",
        "CREATE INDEX jobs_texts ON jobs (completed_at_ms)"
        " WHERE completed_at_ms IS NOT NULL AND texts_purged_at_ms IS NULL",
        "ALTER TABLE api_keys ADD COLUMN max_pending INTEGER",
        "ALTER TABLE api_keys ADD COLUMN daily_jobs INTEGER",
        "ALTER TABLE api_keys ADD COLUMN daily_tokens INTEGER",
        "ALTER TABLE miners ADD COLUMN draining INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE repeats (owner TEXT NOT NULL, key TEXT NOT NULL, digest BLOB NOT NULL,"
        " first_seq INTEGER NOT NULL, jobs INTEGER NOT NULL, created_at_ms INTEGER NOT NULL,"
        " PRIMARY KEY (owner, key)) STRICT, WITHOUT ROWID",
        "CREATE INDEX repeats_created ON repeats (created_at_ms)",
    ):
        db.execute(statement)


@migrations()
def m006_audits(db: sqlite_utils.Database) -> None:
    """Audits that were drawn, who does them, and the token ids that they replay."""
    for statement in (
        "ALTER TABLE jobs ADD COLUMN output_token_ids BLOB",
        "ALTER TABLE miners ADD COLUMN audits INTEGER NOT NULL DEFAULT 0",
        "CREATE TABLE audits (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,"
        " job INTEGER NOT NULL REFERENCES jobs, receipt_id TEXT NOT NULL, model TEXT NOT NULL,"
        " state TEXT NOT NULL, reason TEXT, round INTEGER NOT NULL, excluded TEXT NOT NULL,"
        " is_offered INTEGER NOT NULL DEFAULT 0, created_at_ms INTEGER NOT NULL,"
        " tries INTEGER NOT NULL DEFAULT 0, miner_id TEXT, auditor TEXT,"
        " lease_expires_at_ms INTEGER, transaction_id BLOB, ended_at_ms INTEGER) STRICT",
        "CREATE INDEX audits_open ON audits (seq) WHERE state IN ('pending', 'running')",
        "CREATE INDEX audits_job ON audits (job)",
        "CREATE INDEX audits_receipt ON audits (receipt_id) WHERE transaction_id IS NOT NULL",
        "CREATE INDEX audits_ended ON audits (ended_at_ms) WHERE ended_at_ms IS NOT NULL",
        "INSERT INTO counters VALUES ('audits_drawn', 0), ('audits_passed', 0),"
        " ('audits_failed', 0), ('audits_expired', 0)",
    ):
        db.execute(statement)


@migrations()
def m007_counting(db: sqlite_utils.Database) -> None:
    """Let triggers count jobs by owner and state ('*' is everybody), and keep the queue's rows.

    Statements of their own, eleven for the life of a job, cost more than all its other writes.
    """
    count = (
        "INSERT INTO job_counts VALUES {} ON CONFLICT (owner, state)"
        " DO UPDATE SET jobs = jobs + excluded.jobs"
    )
    added = "(new.owner, new.state, 1), ('*', new.state, 1)"
    removed = "(old.owner, old.state, -1), ('*', old.state, -1)"
    enter = (
        "INSERT INTO queues (owner, model_key, turn, pending) VALUES (new.owner, new.model_key,"
        " coalesce((SELECT turn FROM owners WHERE owner = new.owner), 0), 1)"
        " ON CONFLICT (owner, model_key) DO UPDATE SET pending = pending + 1"
    )
    place = "owner = old.owner AND model_key = old.model_key"
    leave = (
        f"UPDATE queues SET pending = pending - 1 WHERE {place};"  # noqa: S608 - own words
        f" DELETE FROM queues WHERE {place} AND pending = 0"
    )
    for name, event, work in (
        ("jobs_made", "INSERT ON jobs", count.format(added)),
        ("jobs_queued", "INSERT ON jobs WHEN new.state = 'pending'", enter),
        (
            "jobs_moved",
            "UPDATE OF state ON jobs WHEN new.state <> old.state",
            count.format(f"{added}, {removed}"),
        ),
        (
            "jobs_taken",
            "UPDATE OF state ON jobs WHEN old.state = 'pending' AND new.state <> 'pending'",
            leave,
        ),
        (
            "jobs_returned",
            "UPDATE OF state ON jobs WHEN new.state = 'pending' AND old.state <> 'pending'",
            enter,
        ),
    ):
        db.execute(f"CREATE TRIGGER {name} AFTER {event} BEGIN {work}; END")
    db.execute("DELETE FROM counters WHERE name = 'jobs'")


@migrations()
def m008_changes(db: sqlite_utils.Database) -> None:
    """Let triggers count changes of API keys and miners, for who remembers them (`known.py`).

    That a miner was seen is none: it happens all the time.
    """
    miner = "account, capabilities, gpu_name, gpu_memory, owner, registered_at_ms, draining, audits"
    for table, counter, updates in (
        ("api_keys", "changed_keys", "UPDATE"),
        ("miners", "changed_miners", f"UPDATE OF {miner}"),
    ):
        db.execute("INSERT INTO counters VALUES (?, 0)", (counter,))
        for event in ("INSERT", updates, "DELETE"):
            name = f"{counter}_by_{event.split()[0].lower()}"
            count = f"UPDATE counters SET value = value + 1 WHERE name = '{counter}'"  # noqa: S608
            db.execute(f"CREATE TRIGGER {name} AFTER {event} ON {table} BEGIN {count}; END")


@migrations()
def m009_outcomes(db: sqlite_utils.Database) -> None:
    """Let triggers count for each miner how its attempts ended: with a result, or without one.

    An attempt without one failed, was given back, or its lease ran out; of jobs that ended before,
    only the last one is known.
    """
    for column in ("completed", "lost"):
        db.execute(f"ALTER TABLE miners ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    registry.recount_attempts(db.conn)
    for name, condition, work in (
        (
            "attempts_completed",
            "new.state = 'completed' AND old.state <> 'completed'",
            "SET completed = completed + 1 WHERE miner_id = new.miner_id",
        ),
        (
            "attempts_lost",
            "old.state = 'running' AND new.state IN ('failed', 'pending')",
            "SET lost = lost + 1 WHERE miner_id = old.miner_id",
        ),
    ):
        db.execute(
            f"CREATE TRIGGER {name} AFTER UPDATE OF state ON jobs WHEN {condition}"
            f" BEGIN UPDATE miners {work}; END"
        )


@migrations()
def m010_waiting(db: sqlite_utils.Database) -> None:
    """Name where a transaction is looked for that may wait. PostgreSQL has more there."""
    db.execute("CREATE VIEW waiting AS SELECT * FROM mempool")


def open_market(path: Path, genesis_hash: bytes) -> Database:
    """Open node.db or create it.

    Raises:
        StoreError: the file belongs to another network.
    """
    make_private(path)
    database = Database(path, migrations, watched=COUNTS)

    def adopt(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR IGNORE INTO node VALUES (1, ?)", (genesis_hash,))
        (stored,) = connection.execute("SELECT genesis_hash FROM node").fetchone()
        if stored != genesis_hash:
            raise StoreError(
                f"{path}: belongs to network {stored.hex()[:16]}…, genesis.json names "
                f"{genesis_hash.hex()[:16]}…; use the data directory of this network"
            )

    try:
        database.write(adopt).result()
    except StoreError:
        database.close()
        raise
    return database
