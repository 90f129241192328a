"""Jobs in node.db.

Functions that change something take the writer's connection and run inside its transaction; each
transition is one UPDATE that also states what it expects, so two of them cannot both win. Rows are
in order of submission.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Literal

import msgspec

from ledger.errors import MarketError
from ledger.jobs import (
    FinishReason,
    Job,
    JobOrder,
    JobState,
    Miner,
    Prices,
    format_job_id,
    list_served_models,
    normalize_model,
)
from ledger.store.events import note_completion, note_job_end
from ledger.store.mempool import insert_transaction
from ledger.transaction import ReceiptPayload, Transaction

MAX_QUEUE_POSITION = 1000
"""A queue longer than this is not counted to its end."""
MAX_LISTED_CHARS = 4 << 20
"""A page of jobs ends after the job with which its texts exceed this."""
MAX_SWEPT_JOBS = 500
"""Jobs that one sweep ends."""


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
    """Return jobs, newest first; fewer than `limit` where their texts are long.

    `offset` is the reference API's and costs what it skips.
    """
    wanted = {"owner": owner, "state": state}
    where, values = _where({field: value for field, value in wanted.items() if value is not None})
    rows = connection.execute(
        f"SELECT * FROM jobs {where} ORDER BY seq DESC LIMIT ? OFFSET ?",  # noqa: S608 - own words
        (*values, limit, offset),
    )
    jobs: list[Job] = []
    text_chars = 0
    for row in rows:
        jobs.append(_job(row))
        text_chars += len(row["prompt"]) + len(row["result"] or "")
        if text_chars > MAX_LISTED_CHARS:
            break
    return jobs


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


def count_open_jobs(connection: sqlite3.Connection, limit: int) -> dict[str, int]:
    """Return how many jobs are pending and running, counting no further than `limit`."""
    return {
        state: int(
            connection.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM jobs INDEXED BY {index}"  # noqa: S608 - ours
                f" WHERE state = '{state}' LIMIT ?)",
                (limit,),
            ).fetchone()[0]
        )
        for state, index in (("pending", "jobs_queue"), ("running", "jobs_leases"))
    }


def claim_job(
    connection: sqlite3.Connection,
    job: Job,
    *,
    miner_id: str,
    provider: str,
    claimed_by: str,
    now_ms: int,
    lease_expires_at_ms: int,
    heartbeat: bool,
) -> None:
    """Make a pending job running. Raises MarketError if it is not pending any more."""
    _transition(
        connection,
        "UPDATE jobs SET state = 'running', status_reason = 'running', attempt = attempt + 1,"
        " miner_id = ?, provider = ?, claimed_by = ?, started_at_ms = ?,"
        " lease_expires_at_ms = ?, heartbeat = ?"
        " WHERE id = ? AND state = 'pending'",
        (miner_id, provider, claimed_by, now_ms, lease_expires_at_ms, heartbeat, job.id),
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
    state: Literal["cancelled", "failed"],
    reason: str,
    now_ms: int,
    error: str | None = None,
) -> None:
    """Fail or cancel a job that has not ended, and let its owner's webhooks hear it."""
    _transition(
        connection,
        "UPDATE jobs SET state = ?, status_reason = ?, completed_at_ms = ?, error = ?,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = ? AND attempt = ?",
        (state, reason, now_ms, error, job.id, job.state, job.attempt),
        lost="JOB_LEASE_LOST",
    )
    note_job_end(connection, job, state=state, reason=reason, now_ms=now_ms)


def complete_job(
    connection: sqlite3.Connection,
    job: Job,
    *,
    miner_id: str,
    claimed_by: str,
    result: str,
    transaction: Transaction,
    now_ms: int,
    finish_reason: FinishReason | None = None,
) -> int:
    """Store the result and put its receipt into the mempool: both or neither.

    The owner's webhooks hear it. Returns the receipt's place in the mempool.
    """
    payload = transaction.payload
    assert isinstance(payload, ReceiptPayload), "a job ends with a receipt"
    _transition(
        connection,
        "UPDATE jobs SET state = 'completed', status_reason = 'completed', miner_id = ?,"
        " claimed_by = ?, result = ?, finish_reason = ?, receipt_id = ?, completed_at_ms = ?,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = ? AND attempt = ?",
        (
            miner_id,
            claimed_by,
            result,
            finish_reason,
            payload.receipt_id,
            payload.completed_at_ms,
            job.id,
            job.state,
            job.attempt,
        ),
        lost="JOB_LEASE_LOST",
    )
    note_completion(
        connection,
        job,
        receipt_id=payload.receipt_id,
        transaction_id=transaction.id,
        now_ms=now_ms,
    )
    return insert_transaction(connection, transaction, now_ms=now_ms)


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
        provider=row["provider"],
        claimed_by=row["claimed_by"],
        lease_expires_at_ms=row["lease_expires_at_ms"],
        heartbeat=bool(row["heartbeat"]),
        excluded_miner=row["excluded_miner"],
        result=row["result"],
        error=row["error"],
        receipt_id=row["receipt_id"],
        finish_reason=row["finish_reason"],
    )
