"""node.db: what a node knows in private. Jobs with their texts, miners, API keys, the mempool.

Functions that change something take the writer's connection and run inside its transaction; each
job transition is one UPDATE that also states what it expects, so two of them cannot both win.
Job ids are 16-byte ULIDs; rows are in order of submission.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils
from sqlite_utils.migrations import Migrations

from ledger.errors import MarketError, StoreError
from ledger.jobs import (
    Job,
    JobOrder,
    JobState,
    KeyRole,
    Miner,
    Prices,
    format_job_id,
    list_served_models,
    normalize_model,
    serves_model,
)
from ledger.store.database import Database
from ledger.transaction import Transaction

MAX_QUEUE_POSITION = 1000
"""A queue longer than this is not counted to its end."""
MAX_SWEPT_JOBS = 500
"""Jobs that one sweep ends."""

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
        " attempt INTEGER NOT NULL DEFAULT 0, miner_id TEXT, claimed_by TEXT,"
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


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A stored API key. Its secret is not stored, only the keyed digest of it."""

    prefix: str
    digest: bytes
    role: KeyRole
    client: str
    created_at_ms: int
    revoked_at_ms: int | None


def open_market(path: Path, genesis_hash: bytes) -> Database:
    """Open node.db or create it.

    Raises:
        StoreError: the file belongs to another network.
    """
    database = Database(path, migrations)

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


# --- jobs ---------------------------------------------------------------------------------------


def insert_job(connection: sqlite3.Connection, job: Job) -> None:
    """Store a submitted job."""
    order = job.order
    connection.execute(
        "INSERT INTO jobs (id, state, status_reason, client, owner, model, model_key, prompt,"
        " max_tokens, temperature_micros, top_p_micros, requested_seed, stop, seed, prompt_salt,"
        " result_salt, price_token_micros, price_gpu_second_micros, created_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.id,
            job.state,
            job.status_reason,
            job.client,
            job.owner,
            order.model,
            normalize_model(order.model),
            order.prompt,
            order.max_tokens,
            order.temperature_micros,
            order.top_p_micros,
            order.seed,
            msgspec.json.encode(order.stop).decode(),
            job.seed,
            job.prompt_salt,
            job.result_salt,
            job.prices.tokens,
            job.prices.gpu_seconds,
            job.created_at_ms,
        ),
    )
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'jobs'")


def load_job(connection: sqlite3.Connection, job_id: bytes | None) -> Job:
    """Return a job.

    Raises:
        MarketError: JOB_NOT_FOUND.
    """
    row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        name = format_job_id(job_id) if job_id else "with this id"
        raise MarketError("JOB_NOT_FOUND", f"no job {name} on this node")
    return _job(row)


def list_jobs(
    connection: sqlite3.Connection,
    *,
    owner: str | None,
    state: JobState | None,
    limit: int,
    offset: int,
) -> list[Job]:
    """Return jobs, newest first. `offset` is the reference API's and costs what it skips."""
    wanted = {"owner": owner, "state": state}
    where, values = _where({field: value for field, value in wanted.items() if value is not None})
    rows = connection.execute(
        f"SELECT * FROM jobs {where} ORDER BY seq DESC LIMIT ? OFFSET ?",  # noqa: S608 - own words
        (*values, limit, offset),
    )
    return [_job(row) for row in rows]


def find_available(connection: sqlite3.Connection, miner: Miner) -> Job | None:
    """Return the oldest pending job that fits, one that this miner lost before last."""
    served = list_served_models(miner.capabilities)
    if served is not None and not served:
        return None
    for excluded in ("IS NOT", "IS"):
        oldest, values = _select_oldest(served, f"excluded_miner {excluded} ?", miner.miner_id)
        row = connection.execute(
            f"SELECT * FROM jobs WHERE seq = (SELECT min(seq) FROM ({oldest}))",  # noqa: S608
            values,
        ).fetchone()
        if row:
            return _job(row)
    return None


def _select_oldest(
    served: frozenset[str] | None, condition: str, miner_id: str
) -> tuple[str, list[str]]:
    oldest = f"{condition} ORDER BY seq LIMIT 1"
    if served is None:
        return f"SELECT seq FROM jobs WHERE state = 'pending' AND {oldest}", [miner_id]  # noqa: S608
    # One look into the index for each model: a long queue of others' jobs costs nothing.
    one = (
        "SELECT * FROM (SELECT seq FROM jobs INDEXED BY jobs_pending"  # noqa: S608 - our own words
        f" WHERE state = 'pending' AND model_key = ? AND {oldest})"
    )
    values = [value for model in served for value in (model, miner_id)]
    return " UNION ALL ".join([one] * len(served)), values


def count_ahead(connection: sqlite3.Connection, job: Job) -> int:
    """Return how many pending jobs for the same model are older, up to MAX_QUEUE_POSITION."""
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'pending' AND model_key = ?"
        " AND seq < (SELECT seq FROM jobs WHERE id = ?) LIMIT ?)",
        (normalize_model(job.order.model), job.id, MAX_QUEUE_POSITION),
    ).fetchone()
    return int(count)


def count_pending(connection: sqlite3.Connection, owner: str, limit: int) -> int:
    """Return how many pending jobs an API key has, counting no further than `limit`."""
    # Left alone, SQLite walks through all jobs that the key ever had.
    (count,) = connection.execute(
        "SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY jobs_pending_owner"
        " WHERE state = 'pending' AND owner = ? LIMIT ?)",
        (owner, limit),
    ).fetchone()
    return int(count)


def claim_job(
    connection: sqlite3.Connection,
    job: Job,
    *,
    miner_id: str,
    claimed_by: str,
    now_ms: int,
    lease_expires_at_ms: int,
    heartbeat: bool,
) -> None:
    """Make a pending job running. Raises MarketError if it is not pending any more."""
    _transition(
        connection,
        "UPDATE jobs SET state = 'running', status_reason = 'running', attempt = attempt + 1,"
        " miner_id = ?, claimed_by = ?, started_at_ms = ?, lease_expires_at_ms = ?, heartbeat = ?"
        " WHERE id = ? AND state = 'pending'",
        (miner_id, claimed_by, now_ms, lease_expires_at_ms, heartbeat, job.id),
        lost="JOB_ALREADY_CLAIMED",
    )


def renew_lease(connection: sqlite3.Connection, job: Job, *, lease_expires_at_ms: int) -> None:
    """Move the end of a lease."""
    _transition(
        connection,
        "UPDATE jobs SET lease_expires_at_ms = ?"
        " WHERE id = ? AND state = 'running' AND attempt = ?",
        (lease_expires_at_ms, job.id, job.attempt),
        lost="JOB_LEASE_LOST",
    )


def requeue_job(connection: sqlite3.Connection, job: Job, *, reason: str) -> None:
    """Give a running job back to the queue, where its age puts it first.

    The start of the lost attempt stays until the next claim, so its miner may still deliver.
    """
    _transition(
        connection,
        "UPDATE jobs SET state = 'pending', status_reason = ?, excluded_miner = miner_id,"
        " miner_id = NULL, claimed_by = NULL, lease_expires_at_ms = NULL"
        " WHERE id = ? AND state = 'running' AND attempt = ?",
        (reason, job.id, job.attempt),
        lost="JOB_LEASE_LOST",
    )


def end_job(
    connection: sqlite3.Connection,
    job: Job,
    *,
    state: JobState,
    reason: str,
    now_ms: int,
    error: str | None = None,
) -> None:
    """Fail or cancel a job that has not ended."""
    _transition(
        connection,
        "UPDATE jobs SET state = ?, status_reason = ?, completed_at_ms = ?, error = ?,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = ? AND attempt = ?",
        (state, reason, now_ms, error, job.id, job.state, job.attempt),
        lost="JOB_LEASE_LOST",
    )


def complete_job(
    connection: sqlite3.Connection,
    job: Job,
    *,
    miner_id: str,
    claimed_by: str,
    result: str,
    transaction: Transaction,
    now_ms: int,
) -> int:
    """Store the result and put its receipt into the mempool: both or neither.

    Returns the receipt's place in the mempool.
    """
    payload = transaction.payload
    _transition(
        connection,
        "UPDATE jobs SET state = 'completed', status_reason = 'completed', miner_id = ?,"
        " claimed_by = ?, result = ?, receipt_id = ?, completed_at_ms = ?,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = ? AND attempt = ?",
        (
            miner_id,
            claimed_by,
            result,
            payload.receipt_id,
            payload.completed_at_ms,
            job.id,
            job.state,
            job.attempt,
        ),
        lost="JOB_LEASE_LOST",
    )
    (seq,) = connection.execute(
        "INSERT INTO mempool (id, receipt_id, client, provider, model, received_at_ms, envelope)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (
            bytes(transaction.id),
            payload.receipt_id,
            payload.client,
            payload.provider,
            payload.model,
            now_ms,
            transaction.envelope.decode(),
        ),
    ).fetchone()
    return int(seq)


def list_expired_leases(connection: sqlite3.Connection, now_ms: int) -> list[Job]:
    """Return running jobs whose lease is over."""
    return _expired(connection, "state = 'running' AND lease_expires_at_ms <= ?", now_ms)


def list_stale_jobs(connection: sqlite3.Connection, created_before_ms: int) -> list[Job]:
    """Return pending jobs that were submitted before a time."""
    return _expired(connection, "state = 'pending' AND created_at_ms < ?", created_before_ms)


def _expired(connection: sqlite3.Connection, where: str, limit_ms: int) -> list[Job]:
    rows = connection.execute(
        f"SELECT * FROM jobs WHERE {where} ORDER BY seq LIMIT ?",  # noqa: S608 - both are above
        (limit_ms, MAX_SWEPT_JOBS),
    )
    return [_job(row) for row in rows]


def _transition(
    connection: sqlite3.Connection, statement: str, values: Sequence[object], *, lost: str
) -> None:
    if connection.execute(statement, values).rowcount != 1:
        raise MarketError(lost, "the job changed meanwhile; read it again")


def _where(wanted: dict[str, str]) -> tuple[str, list[str]]:
    conditions = " AND ".join(f"{field} = ?" for field in wanted)
    return f"WHERE {conditions}" if wanted else "", list(wanted.values())


def _job(row: sqlite3.Row) -> Job:
    return Job(
        id=row["id"],
        state=row["state"],
        status_reason=row["status_reason"],
        client=row["client"],
        owner=row["owner"],
        order=JobOrder(
            prompt=row["prompt"],
            model=row["model"],
            max_tokens=row["max_tokens"],
            temperature_micros=row["temperature_micros"],
            top_p_micros=row["top_p_micros"],
            seed=row["requested_seed"],
            stop=msgspec.json.decode(row["stop"], type=tuple[str, ...]),
        ),
        seed=row["seed"],
        prompt_salt=row["prompt_salt"],
        result_salt=row["result_salt"],
        prices=Prices(tokens=row["price_token_micros"], gpu_seconds=row["price_gpu_second_micros"]),
        created_at_ms=row["created_at_ms"],
        started_at_ms=row["started_at_ms"],
        completed_at_ms=row["completed_at_ms"],
        attempt=row["attempt"],
        miner_id=row["miner_id"],
        claimed_by=row["claimed_by"],
        lease_expires_at_ms=row["lease_expires_at_ms"],
        heartbeat=bool(row["heartbeat"]),
        excluded_miner=row["excluded_miner"],
        result=row["result"],
        error=row["error"],
        receipt_id=row["receipt_id"],
    )


# --- miners -------------------------------------------------------------------------------------


def upsert_miner(connection: sqlite3.Connection, miner: Miner) -> None:
    """Store a miner's description, keeping when it was first seen."""
    connection.execute(
        "INSERT INTO miners VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (miner_id) DO UPDATE SET"
        " account = excluded.account, capabilities = excluded.capabilities,"
        " gpu_name = excluded.gpu_name, gpu_memory = excluded.gpu_memory, owner = excluded.owner,"
        " last_seen_at_ms = excluded.last_seen_at_ms",
        (
            miner.miner_id,
            miner.account,
            msgspec.json.encode(miner.capabilities).decode(),
            miner.gpu_name,
            miner.gpu_memory,
            miner.owner,
            miner.registered_at_ms,
            miner.last_seen_at_ms,
        ),
    )


def touch_miner(connection: sqlite3.Connection, miner_id: str, now_ms: int) -> None:
    """Note that a miner was heard."""
    connection.execute(
        "UPDATE miners SET last_seen_at_ms = ? WHERE miner_id = ?", (now_ms, miner_id)
    )


def find_miner(connection: sqlite3.Connection, miner_id: str) -> Miner | None:
    """Return a registered miner."""
    row = connection.execute("SELECT * FROM miners WHERE miner_id = ?", (miner_id,)).fetchone()
    return _miner(row) if row else None


def count_eligible_miners(connection: sqlite3.Connection, model: str, since_ms: int) -> int:
    """Return how many of the miners heard since a time could serve `model`."""
    # Miners of one kind list the same capabilities, so few lists stand for many miners.
    rows = connection.execute(
        "SELECT capabilities, count(*) FROM miners WHERE last_seen_at_ms >= ?"
        " GROUP BY capabilities",
        (since_ms,),
    )
    return sum(
        count for capabilities, count in rows if serves_model(_parse_names(capabilities), model)
    )


def _miner(row: Sequence[Any]) -> Miner:
    return Miner(
        miner_id=row[0],
        account=row[1],
        capabilities=_parse_names(row[2]),
        gpu_name=row[3],
        gpu_memory=row[4],
        owner=row[5],
        registered_at_ms=row[6],
        last_seen_at_ms=row[7],
    )


def _parse_names(text: str) -> tuple[str, ...]:
    return msgspec.json.decode(text, type=tuple[str, ...])


# --- API keys -----------------------------------------------------------------------------------


def insert_key(connection: sqlite3.Connection, key: ApiKey) -> None:
    """Store a new API key."""
    connection.execute(
        "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?)",
        (key.prefix, key.digest, key.role, key.client, key.created_at_ms, key.revoked_at_ms),
    )


def find_key(connection: sqlite3.Connection, prefix: str) -> ApiKey | None:
    """Return the API key with this prefix, revoked or not."""
    row = connection.execute("SELECT * FROM api_keys WHERE prefix = ?", (prefix,)).fetchone()
    return _key(row) if row else None


def list_keys(connection: sqlite3.Connection) -> list[ApiKey]:
    """Return every API key, oldest first."""
    rows = connection.execute("SELECT * FROM api_keys ORDER BY created_at_ms, prefix")
    return [_key(row) for row in rows]


def revoke_key(connection: sqlite3.Connection, prefix: str, now_ms: int) -> bool:
    """Revoke a key for ever. Returns False if there is none to revoke."""
    cursor = connection.execute(
        "UPDATE api_keys SET revoked_at_ms = ? WHERE prefix = ? AND revoked_at_ms IS NULL",
        (now_ms, prefix),
    )
    return cursor.rowcount == 1


def _key(row: Sequence[Any]) -> ApiKey:
    return ApiKey(
        prefix=row[0],
        digest=row[1],
        role=row[2],
        client=row[3],
        created_at_ms=row[4],
        revoked_at_ms=row[5],
    )


# --- mempool ------------------------------------------------------------------------------------


def list_mempool(
    connection: sqlite3.Connection, *, limit: int, after: int = 0
) -> list[tuple[int, bytes, str, bytes]]:
    """Return the oldest waiting transactions as (seq, id, receipt id, envelope)."""
    rows = connection.execute(
        "SELECT seq, id, receipt_id, envelope FROM mempool WHERE seq > ? ORDER BY seq LIMIT ?",
        (after, limit),
    )
    return [(row[0], bytes(row[1]), row[2], row[3].encode()) for row in rows]


def remove_from_mempool(connection: sqlite3.Connection, ids: Iterable[bytes]) -> None:
    """Forget transactions that are final."""
    connection.executemany("DELETE FROM mempool WHERE id = ?", [(i,) for i in ids])
