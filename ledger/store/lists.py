"""Pages of jobs in node.db, and how many jobs there are. No page and no count reads all jobs."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from ledger.jobs import Job, JobState
from ledger.store.jobs import COLUMNS, read_job
from ledger.store.sessions import Connection, Row

EVERYBODY = "*"
"""Stands for all owners together where jobs are counted; no API key has this prefix."""
MAX_LISTED_CHARS = 4 << 20
"""A page of jobs ends after the job with which its texts exceed this."""


class JobPage(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs are asked for."""

    owner: str | None = None
    """An API key's prefix; None for everybody's."""
    state: JobState | None = None
    before: bytes | None = None
    """Jobs that were submitted before this one."""
    after: bytes | None = None
    """The first jobs that were submitted after this one. It counts if both are given."""
    limit: int
    offset: int = 0
    """The reference API's; it costs what it skips."""


def list_jobs(connection: Connection, page: JobPage) -> list[Job]:
    """Return jobs, newest first; fewer than `limit` where their texts are long."""
    conditions: dict[str, str | bytes | None] = {"owner = ?": page.owner, "state = ?": page.state}
    if page.after is not None:
        conditions["seq > (SELECT seq FROM jobs WHERE id = ?)"] = page.after
    elif page.before is not None:
        conditions["seq < (SELECT seq FROM jobs WHERE id = ?)"] = page.before
    wanted = {text: value for text, value in conditions.items() if value is not None}
    where = f"WHERE {' AND '.join(wanted)}" if wanted else ""
    order = "ASC" if page.after is not None else "DESC"
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM jobs {where} ORDER BY seq {order} LIMIT ? OFFSET ?",  # noqa: S608 - own words
        (*wanted.values(), page.limit, page.offset),
    )
    jobs = _take(rows)
    return jobs[::-1] if page.after is not None else jobs


def _take(rows: Iterable[Row]) -> list[Job]:
    jobs: list[Job] = []
    text_chars = 0
    for row in rows:
        jobs.append(read_job(row))
        text_chars += len(row["prompt"]) + len(row["result"] or "")
        if text_chars > MAX_LISTED_CHARS:
            break
    return jobs


def knows_job(connection: Connection, job_id: bytes) -> bool:
    """Tell whether there is a job with this id."""
    return connection.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,)).fetchone() is not None


def count_jobs(
    connection: Connection, *, owner: str | None = None, state: JobState | None = None
) -> int:
    """Return how many jobs there are, by a count that is kept."""
    only = "" if state is None else " AND state = ?"
    (count,) = connection.execute(
        f"SELECT coalesce(sum(jobs), 0) FROM job_counts WHERE owner = ?{only}",  # noqa: S608 - own
        (EVERYBODY if owner is None else owner, *([] if state is None else [state])),
    ).fetchone()
    return int(count)


def count_open_jobs(connection: Connection) -> dict[str, int]:
    """Return how many jobs are pending and running."""
    return {
        "pending": count_jobs(connection, state="pending"),
        "running": count_jobs(connection, state="running"),
    }


def list_batch(connection: Connection, first_seq: int, count: int) -> tuple[Job, ...]:
    """Return jobs that were submitted together, oldest first.

    Once their texts exceed MAX_LISTED_CHARS the results of the others are left out.
    """
    jobs: list[Job] = []
    text_chars = 0
    for row in connection.execute(
        f"SELECT {COLUMNS} FROM jobs WHERE seq >= ? AND seq < ? ORDER BY seq",  # noqa: S608 - own words
        (first_seq, first_seq + count),
    ):
        text_chars += len(row["result"] or "")
        job = read_job(row)
        jobs.append(job if text_chars <= MAX_LISTED_CHARS else replace(job, result=None))
    return tuple(jobs)
