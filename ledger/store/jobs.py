"""Jobs in node.db.

Functions that change something take the writer's connection and run inside its transaction; each
transition is one UPDATE that also states what it expects, so two of them cannot both win. Triggers
count what it changes (`market.py`). Rows are in order of submission.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec.structs import replace

from ledger.errors import MarketError
from ledger.jobs import (
    FinishReason,
    Job,
    JobOrder,
    Prices,
    format_job_id,
    normalize_model,
)
from ledger.store.events import note_completion, note_job_end
from ledger.store.mempool import insert_transaction
from ledger.store.sessions import Connection, Row, insert_row
from ledger.transaction import ReceiptPayload, Transaction

COLUMNS = (
    "id, state, status_reason, client, owner, prompt, model, max_tokens, temperature_micros,"
    " top_p_micros, requested_seed, stop, seed, prompt_salt, result_salt, price_token_micros,"
    " price_gpu_second_micros, created_at_ms, started_at_ms, completed_at_ms, attempt, miner_id,"
    " provider, claimed_by, lease_expires_at_ms, heartbeat, excluded_miner, result, error,"
    " output_token_ids, receipt_id, finish_reason, texts_purged_at_ms"
)
"""What `read_job` reads, by place: to find 33 columns by name costs more than all the rest."""
MAX_SWEPT_JOBS = 500
"""Jobs that one sweep ends."""
_BY_ID = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"  # noqa: S608 - own words
_BY_PLACE = f"SELECT {COLUMNS} FROM jobs WHERE seq = ?"  # noqa: S608
_NO_STOP = "[]"
_CHANGED = "the job changed meanwhile; read it again"


def insert_job(connection: Connection, job: Job) -> int:
    """Store a submitted job. Returns its place in the order of submission."""
    order = job.order
    return insert_row(
        connection,
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


def load_job(connection: Connection, job_id: bytes | None) -> Job:
    """Return a job.

    Raises:
        MarketError: JOB_NOT_FOUND.
    """
    row = connection.execute(_BY_ID, (job_id,)).fetchone()
    if row is None:
        name = format_job_id(job_id) if job_id else "with this id"
        raise MarketError("JOB_NOT_FOUND", f"no job {name} on this node")
    return read_job(row)


def find_place(connection: Connection, job_id: bytes) -> int:
    """Return the place of a job that is known, in the order of submission."""
    (seq,) = connection.execute("SELECT seq FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return int(seq)


def load_job_at(connection: Connection, place: int) -> Job:
    """Return the job at a place that `find_place` gave."""
    return read_job(connection.execute(_BY_PLACE, (place,)).fetchone())


def claim_job(
    connection: Connection,
    job: Job,
    *,
    miner_id: str,
    provider: str,
    claimed_by: str,
    now_ms: int,
    lease_expires_at_ms: int,
    heartbeat: bool,
) -> Job:
    """Make a pending job running; returns it.

    Raises MarketError if it is not pending any more, or has had another attempt meanwhile.
    """
    claimed = connection.execute(
        "UPDATE jobs SET state = 'running', status_reason = 'running', attempt = attempt + 1,"
        " miner_id = ?, provider = ?, claimed_by = ?, started_at_ms = ?,"
        " lease_expires_at_ms = ?, heartbeat = ?"
        " WHERE id = ? AND state = 'pending' AND attempt = ?",
        (
            miner_id,
            provider,
            claimed_by,
            now_ms,
            lease_expires_at_ms,
            heartbeat,
            job.id,
            job.attempt,
        ),
    )
    if claimed.rowcount != 1:
        raise MarketError("JOB_ALREADY_CLAIMED", _CHANGED)
    return replace(
        job,
        state="running",
        status_reason="running",
        attempt=job.attempt + 1,
        miner_id=miner_id,
        provider=provider,
        claimed_by=claimed_by,
        started_at_ms=now_ms,
        lease_expires_at_ms=lease_expires_at_ms,
        heartbeat=heartbeat,
    )


def renew_lease(connection: Connection, job: Job, *, lease_expires_at_ms: int) -> None:
    """Move the end of a lease."""
    _transition(
        connection,
        "UPDATE jobs SET lease_expires_at_ms = ?"
        " WHERE id = ? AND state = 'running' AND attempt = ?",
        (lease_expires_at_ms, job.id, job.attempt),
    )


def requeue_job(connection: Connection, job: Job, *, reason: str) -> None:
    """Give a running job back to the queue, where its age puts it first.

    The start of the lost attempt stays until the next claim, so its miner may still deliver.
    """
    _transition(
        connection,
        "UPDATE jobs SET state = 'pending', status_reason = ?, excluded_miner = miner_id,"
        " miner_id = NULL, claimed_by = NULL, lease_expires_at_ms = NULL"
        " WHERE id = ? AND state = 'running' AND attempt = ?",
        (reason, job.id, job.attempt),
    )


def end_job(
    connection: Connection,
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
    )
    note_job_end(connection, job, state=state, reason=reason, now_ms=now_ms)


def complete_job(
    connection: Connection,
    job: Job,
    *,
    miner_id: str,
    claimed_by: str,
    result: str,
    output_token_ids: bytes | None = None,
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
        " claimed_by = ?, result = ?, output_token_ids = ?, finish_reason = ?, receipt_id = ?,"
        " completed_at_ms = ?, lease_expires_at_ms = NULL"
        " WHERE id = ? AND state = ? AND attempt = ?",
        (
            miner_id,
            claimed_by,
            result,
            output_token_ids,
            finish_reason,
            payload.receipt_id,
            payload.completed_at_ms,
            job.id,
            job.state,
            job.attempt,
        ),
    )
    note_completion(
        connection,
        job,
        receipt_id=payload.receipt_id,
        transaction_id=transaction.id,
        now_ms=now_ms,
    )
    return insert_transaction(connection, transaction, now_ms=now_ms)


def list_expired_leases(connection: Connection, now_ms: int) -> list[Job]:
    """Return running jobs whose lease is over, those that ended first before others."""
    return _select(
        connection,
        "INDEXED BY jobs_leases WHERE state = 'running' AND lease_expires_at_ms <= ?"
        " ORDER BY lease_expires_at_ms",
        now_ms,
    )


def list_stale_jobs(connection: Connection, created_before_ms: int) -> list[Job]:
    """Return pending jobs that were submitted before a time, oldest first."""
    # Left alone, SQLite looks at the time of every pending job.
    return _select(
        connection,
        "INDEXED BY jobs_waiting WHERE state = 'pending' AND created_at_ms < ?"
        " ORDER BY created_at_ms",
        created_before_ms,
    )


def list_held_jobs(connection: Connection, miner_id: str) -> list[Job]:
    """Return jobs that a miner runs."""
    return _select(
        connection, "INDEXED BY jobs_miner WHERE state = 'running' AND miner_id = ?", miner_id
    )


def forgive_losses(connection: Connection, miner_id: str) -> int:
    """Let pending jobs forget that this miner lost them, so it cannot deliver them late either.

    Returns how many did; there may be more.
    """
    return connection.execute(
        "UPDATE jobs SET excluded_miner = NULL WHERE seq IN (SELECT seq FROM jobs"
        " INDEXED BY jobs_lost WHERE state = 'pending' AND excluded_miner = ? LIMIT ?)",
        (miner_id, MAX_SWEPT_JOBS),
    ).rowcount


def _select(connection: Connection, where: str, value: int | str) -> list[Job]:
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM jobs {where} LIMIT ?",  # noqa: S608 - all are above
        (value, MAX_SWEPT_JOBS),
    )
    return [read_job(row) for row in rows]


def _transition(
    connection: Connection,
    statement: str,
    values: Sequence[object],
) -> None:
    """Change a job that is still as it was expected to be."""
    if connection.execute(statement, values).rowcount != 1:
        raise MarketError("JOB_LEASE_LOST", _CHANGED)


def read_job(row: Row) -> Job:
    """Return the job of a row of COLUMNS."""
    (
        job_id,
        state,
        status_reason,
        client,
        owner,
        prompt,
        model,
        max_tokens,
        temperature_micros,
        top_p_micros,
        requested_seed,
        stop,
        seed,
        prompt_salt,
        result_salt,
        price_token_micros,
        price_gpu_second_micros,
        created_at_ms,
        started_at_ms,
        completed_at_ms,
        attempt,
        miner_id,
        provider,
        claimed_by,
        lease_expires_at_ms,
        heartbeat,
        excluded_miner,
        result,
        error,
        output_token_ids,
        receipt_id,
        finish_reason,
        texts_purged_at_ms,
    ) = row
    return Job(
        id=job_id,
        state=state,
        status_reason=status_reason,
        client=client,
        owner=owner,
        order=JobOrder(
            prompt=prompt,
            model=model,
            max_tokens=max_tokens,
            temperature_micros=temperature_micros,
            top_p_micros=top_p_micros,
            seed=requested_seed,
            stop=msgspec.json.decode(stop, type=tuple[str, ...]) if stop != _NO_STOP else (),
        ),
        seed=seed,
        prompt_salt=prompt_salt,
        result_salt=result_salt,
        prices=Prices(tokens=price_token_micros, gpu_seconds=price_gpu_second_micros),
        created_at_ms=created_at_ms,
        started_at_ms=started_at_ms,
        completed_at_ms=completed_at_ms,
        attempt=attempt,
        miner_id=miner_id,
        provider=provider,
        claimed_by=claimed_by,
        lease_expires_at_ms=lease_expires_at_ms,
        heartbeat=bool(heartbeat),
        excluded_miner=excluded_miner,
        result=result,
        error=error,
        output_token_ids=output_token_ids,
        receipt_id=receipt_id,
        finish_reason=finish_reason,
        texts_purged_at_ms=texts_purged_at_ms,
    )
