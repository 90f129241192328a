"""What is counted of jobs in node.db: by owner and state, and each key's row in the queue.

Only the transitions in `jobs.py` call this, each in its own transaction: a job that is counted
where it is not would make quotas and turns wrong for ever.
"""

from __future__ import annotations

import sqlite3

from ledger.jobs import Job, JobState, normalize_model

EVERYBODY = "*"
"""Stands for all owners together; no API key has this prefix."""


def count_in(connection: sqlite3.Connection, job: Job, state: JobState) -> None:
    """Count a job in the state that it begins in."""
    connection.execute(
        "INSERT INTO job_counts VALUES (?, ?, 1), (?, ?, 1)"
        " ON CONFLICT (owner, state) DO UPDATE SET jobs = jobs + 1",
        (job.owner, state, EVERYBODY, state),
    )
    if state == "pending":
        _enter_queue(connection, job)


def count_move(connection: sqlite3.Connection, job: Job, before: JobState, after: JobState) -> None:
    """Count a job in the state that it has reached, and no more in the one that it has left."""
    # One statement with four rows costs half of two with two: what it looks up is few rows.
    connection.execute(
        "INSERT INTO job_counts VALUES (?, ?, 1), (?, ?, 1), (?, ?, -1), (?, ?, -1)"
        " ON CONFLICT (owner, state) DO UPDATE SET jobs = jobs + excluded.jobs",
        (job.owner, after, EVERYBODY, after, job.owner, before, EVERYBODY, before),
    )
    if before == "pending":
        _leave_queue(connection, job)
    if after == "pending":
        _enter_queue(connection, job)


def _enter_queue(connection: sqlite3.Connection, job: Job) -> None:
    connection.execute(
        "INSERT INTO queues (owner, model_key, turn, pending) VALUES (?, ?,"
        " coalesce((SELECT turn FROM owners WHERE owner = ?), 0), 1)"
        " ON CONFLICT (owner, model_key) DO UPDATE SET pending = pending + 1",
        (job.owner, normalize_model(job.order.model), job.owner),
    )


def _leave_queue(connection: sqlite3.Connection, job: Job) -> None:
    row = (job.owner, normalize_model(job.order.model))
    connection.execute(
        "UPDATE queues SET pending = pending - 1 WHERE owner = ? AND model_key = ?", row
    )
    connection.execute("DELETE FROM queues WHERE owner = ? AND model_key = ? AND pending = 0", row)
