"""Audits that were drawn, in node.db. The market's side: what came of them stands in ledger.db.

Functions that change something take the writer's connection and run inside its transaction; each
transition is one UPDATE that also states what it expects. How many are open is bounded, so looks
through them are, too; what has ended is counted and forgotten after a while.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec

from ledger.draws import (
    MAX_AUDIT_AGE_MS,
    MAX_OPEN_AUDITS,
    MAX_OPEN_PER_MODEL,
    MAX_TRIES,
    DrawnAudit,
    ExpiryReason,
    is_open_to,
)
from ledger.errors import MarketError
from ledger.jobs import Miner
from ledger.payloads import Verdict
from ledger.store.sessions import Connection, Row

KEPT_MS = 7 * 86_400_000
"""How long an audit that has ended is remembered, so that its report may be repeated."""
MAX_FORGOTTEN = 100
"""Ended audits that one sweep forgets."""

_OPEN = "state IN ('pending', 'running')"


def draw_audit(connection: Connection, audit: DrawnAudit) -> bool:
    """Store a drawn audit, unless too many are open; tells whether it did."""
    is_open, of_model = connection.execute(
        f"SELECT count(*), count(*) FILTER (WHERE model = ?) FROM audits WHERE {_OPEN}",  # noqa: S608
        (audit.model,),
    ).fetchone()
    if is_open >= MAX_OPEN_AUDITS or of_model >= MAX_OPEN_PER_MODEL:
        return False
    connection.execute(
        "INSERT INTO audits (id, job, receipt_id, model, state, round, excluded, is_offered,"
        " created_at_ms) VALUES (?, ?, ?, ?, 'pending', ?, ?, ?, ?)",
        (
            audit.id,
            audit.job,
            audit.receipt_id,
            audit.model,
            audit.round,
            _write_names(audit.excluded),
            audit.is_offered,
            audit.created_at_ms,
        ),
    )
    _count(connection, "drawn")
    return True


def load_audit(connection: Connection, audit_id: bytes | None) -> DrawnAudit:
    """Return an audit. Raises MarketError AUDIT_NOT_FOUND."""
    row = connection.execute("SELECT * FROM audits WHERE id = ?", (audit_id,)).fetchone()
    if row is None:
        raise MarketError("AUDIT_NOT_FOUND", "no audit with this id on this node")
    return _read(row)


def find_open_audit(connection: Connection, miner: Miner, names: set[str]) -> DrawnAudit | None:
    """Return the oldest audit that waits and that a miner may do."""
    # Those that are not for it are passed over by SQLite: it reads a row in a fraction of the time.
    rows = connection.execute(
        "SELECT * FROM audits WHERE state = 'pending' AND is_offered = 1 AND NOT EXISTS"
        " (SELECT 1 FROM json_each(excluded) AS e JOIN json_each(?) AS n ON n.value = e.value)"
        " ORDER BY seq",
        (_write_names(names),),
    )
    return next((audit for row in rows if is_open_to(audit := _read(row), miner, names)), None)


def claim_audit(
    connection: Connection, audit: DrawnAudit, miner: Miner, *, lease_expires_at_ms: int
) -> None:
    """Give a pending audit to a miner."""
    _change(
        connection,
        "UPDATE audits SET state = 'running', tries = tries + 1, miner_id = ?, auditor = ?,"
        " lease_expires_at_ms = ? WHERE id = ? AND state = 'pending'",
        (miner.miner_id, miner.account, lease_expires_at_ms, audit.id),
    )


def return_audit(connection: Connection, audit: DrawnAudit, *, now_ms: int) -> None:
    """Let a running audit wait again, for somebody else; after the last try it ends."""
    if audit.tries >= MAX_TRIES:
        _expire(connection, audit, "max_tries", now_ms)
        return
    holder = {f"miner {audit.miner_id}", f"account {audit.auditor}"}
    _change(
        connection,
        "UPDATE audits SET state = 'pending', excluded = ?, miner_id = NULL, auditor = NULL,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = 'running' AND tries = ?",
        (_write_names(audit.excluded | holder), audit.id, audit.tries),
    )


def finish_audit(
    connection: Connection,
    audit: DrawnAudit,
    *,
    transaction_id: bytes,
    verdict: Verdict,
    now_ms: int,
) -> None:
    """Note that a running audit is done, and by which transaction."""
    _change(
        connection,
        "UPDATE audits SET state = 'done', transaction_id = ?, ended_at_ms = ?,"
        " lease_expires_at_ms = NULL WHERE id = ? AND state = 'running' AND tries = ?",
        (transaction_id, now_ms, audit.id, audit.tries),
    )
    _count(connection, "passed" if verdict == "pass" else "failed")


def expire_purged(connection: Connection, jobs: Collection[int], *, now_ms: int) -> None:
    """End the audits of jobs whose texts are removed: nobody can replay them any more."""
    for job in jobs:
        rows = connection.execute(
            f"SELECT * FROM audits WHERE job = ? AND {_OPEN}",  # noqa: S608 - ours
            (job,),
        ).fetchall()
        for row in rows:
            _expire(connection, _read(row), "texts_purged", now_ms)


def sweep_audits(connection: Connection, *, is_final: Callable[[str], bool], now_ms: int) -> bool:
    """Offer audits whose receipt is final, and end what has run out; tells whether any waits anew.

    `is_final(receipt_id)` asks the chain.
    """
    is_news = False
    rows = connection.execute(
        f"SELECT * FROM audits WHERE {_OPEN} AND (created_at_ms <= ? OR is_offered = 0"  # noqa: S608
        " OR lease_expires_at_ms <= ?) ORDER BY seq",
        (now_ms - MAX_AUDIT_AGE_MS, now_ms),
    ).fetchall()
    for audit in map(_read, rows):
        if audit.created_at_ms + MAX_AUDIT_AGE_MS <= now_ms:
            _expire(connection, audit, "no_auditor", now_ms)
        elif audit.state == "running" and (audit.lease_expires_at_ms or 0) <= now_ms:
            return_audit(connection, audit, now_ms=now_ms)
            is_news = True
        elif not audit.is_offered and is_final(audit.receipt_id):
            connection.execute("UPDATE audits SET is_offered = 1 WHERE id = ?", (audit.id,))
            is_news = True
    connection.execute(
        "DELETE FROM audits WHERE seq IN (SELECT seq FROM audits WHERE ended_at_ms <= ? LIMIT ?)",
        (now_ms - KEPT_MS, MAX_FORGOTTEN),
    )
    return is_news


def count_open_audits(connection: Connection) -> dict[str, int]:
    """Return how many audits wait and how many are being done."""
    rows = connection.execute(
        f"SELECT state, count(*) FROM audits WHERE {_OPEN} GROUP BY state"  # noqa: S608 - ours
    )
    return {"pending": 0, "running": 0} | dict(rows)


def count_audits(connection: Connection) -> dict[str, int]:
    """Return how many audits this node has drawn, and what became of them, since ever."""
    rows = connection.execute(
        "SELECT name, value FROM counters WHERE substr(name, 1, 7) = 'audits_'"
    )
    return {name.removeprefix("audits_"): value for name, value in rows}


def _expire(connection: Connection, audit: DrawnAudit, reason: ExpiryReason, now_ms: int) -> None:
    connection.execute(
        "UPDATE audits SET state = 'expired', reason = ?, ended_at_ms = ?,"
        " lease_expires_at_ms = NULL WHERE id = ?",
        (reason, now_ms, audit.id),
    )
    _count(connection, "expired")


def _change(connection: Connection, statement: str, values: tuple[object, ...]) -> None:
    if connection.execute(statement, values).rowcount != 1:
        raise MarketError("AUDIT_LEASE_LOST", "the audit changed meanwhile; read it again")


def _count(connection: Connection, event: str) -> None:
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = ?", (f"audits_{event}",))


def _write_names(names: Collection[str]) -> str:
    return msgspec.json.encode(sorted(names)).decode()


def _read(row: Row) -> DrawnAudit:
    return DrawnAudit(
        id=row["id"],
        job=row["job"],
        receipt_id=row["receipt_id"],
        model=row["model"],
        state=row["state"],
        round=row["round"],
        excluded=frozenset(msgspec.json.decode(row["excluded"], type=list[str])),
        created_at_ms=row["created_at_ms"],
        is_offered=bool(row["is_offered"]),
        tries=row["tries"],
        miner_id=row["miner_id"],
        auditor=row["auditor"],
        lease_expires_at_ms=row["lease_expires_at_ms"],
        transaction_id=row["transaction_id"],
    )
