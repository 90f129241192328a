"""Jobs as everybody may see them.

No text, parameter, salt or key of a job is read here, so no page can show what is its owner's.
"""

from __future__ import annotations

from ledger.jobs import JobState, Queue, format_job_id, parse_job_id
from ledger.store.jobs import load_job
from ledger.store.queue import count_ahead
from ledger.store.registry import count_eligible_miners
from ledger.store.sessions import Connection, Row
from ledger.views.models import MAX_PAGE, JobView

_END = 1 << 62
_SELECT = (
    "SELECT seq, id, state, status_reason, client, model, attempt, miner_id, created_at_ms,"
    " started_at_ms, completed_at_ms, receipt_id, texts_purged_at_ms FROM jobs"
)


def list_jobs(
    market: Connection,
    state: JobState | None,
    *,
    limit: int,
    before: int | None = None,
    after: int | None = None,
) -> list[JobView]:
    """Return jobs below cursor `before`, or next above `after`, newest first."""
    limit = max(0, min(limit, MAX_PAGE))
    only = "" if state is None else " AND state = ?"
    values = [] if state is None else [state]
    if after is not None:
        statement, place = f"{_SELECT} WHERE seq > ?{only} ORDER BY seq LIMIT ?", after
    else:
        statement = f"{_SELECT} WHERE seq < ?{only} ORDER BY seq DESC LIMIT ?"
        place = _END if before is None else before
    rows = market.execute(statement, (place, *values, limit)).fetchall()
    return [_view(row) for row in (rows if after is None else reversed(rows))]


def find_job(market: Connection, job_id: str) -> JobView | None:
    """Return the job with this id."""
    row = market.execute(f"{_SELECT} WHERE id = ?", (parse_job_id(job_id),)).fetchone()
    return _view(row) if row else None


def find_queue(market: Connection, job_id: str, *, active_since_ms: int) -> Queue | None:
    """Return where a job stands; None of one that does not wait."""
    job = find_job(market, job_id)
    if job is None or job.state != "pending":
        return None
    ahead = count_ahead(market, load_job(market, parse_job_id(job_id)))
    eligible = count_eligible_miners(market, job.model, active_since_ms)
    return Queue(position=ahead + 1, eligible_miners=eligible)


def _view(row: Row) -> JobView:
    is_waiting = row["state"] == "pending"
    return JobView(
        job_id=format_job_id(row["id"]),
        cursor=row["seq"],
        state=row["state"],
        reason=row["status_reason"],
        client=row["client"],
        model=row["model"],
        attempt=row["attempt"],
        miner_id=row["miner_id"],
        created_at_ms=row["created_at_ms"],
        # A job that went back to the queue remembers when its lost attempt began.
        started_at_ms=None if is_waiting else row["started_at_ms"],
        completed_at_ms=row["completed_at_ms"],
        receipt_id=row["receipt_id"],
        texts_purged=row["texts_purged_at_ms"] is not None,
    )
