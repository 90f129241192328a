"""What webhooks are to hear, put down where it happens.

A delivery is inserted inside the transaction in which its job ends, or in which its receipt leaves
the mempool for the chain: both or neither, so no crash loses an event or makes a second one. Who
has no webhook costs one look into an index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ledger.events import Event, EventType, build_job_event
from ledger.jobs import Job
from ledger.store.deliveries import count, give_up
from ledger.store.sessions import Connection
from ledger.store.webhooks import Webhook

MAX_WAITING_PER_WEBHOOK = 10_000
MAX_WAITING = 100_000
"""Of all webhooks together, about 50 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalPlace:
    """Where the chain holds a receipt."""

    transaction_id: bytes
    height: int
    time_ms: int
    """Of the block."""


def note_job_end(
    connection: Connection,
    job: Job,
    *,
    state: Literal["cancelled", "failed"],
    reason: str,
    now_ms: int,
) -> None:
    """Let the owner's webhooks hear that a job has failed or was cancelled."""
    kind: EventType = "job.failed" if state == "failed" else "job.cancelled"
    if hearers := _list_hearers(connection, job.owner, kind):
        event = build_job_event(kind, job.id, reason=reason, at_ms=now_ms)
        _insert(connection, hearers, event, due_at_ms=now_ms)


def note_completion(
    connection: Connection, job: Job, *, receipt_id: str, transaction_id: bytes, now_ms: int
) -> None:
    """Let the owner's webhooks hear that a job is completed."""
    if hearers := _list_hearers(connection, job.owner, "job.completed"):
        event = build_job_event(
            "job.completed",
            job.id,
            reason="completed",
            at_ms=now_ms,
            receipt_id=receipt_id,
            transaction_id=transaction_id.hex(),
        )
        _insert(connection, hearers, event, due_at_ms=now_ms)


def note_final(
    connection: Connection,
    receipt_id: str,
    *,
    received_at_ms: int,
    locate: Callable[[str], FinalPlace | None],
) -> bool:
    """Let the webhooks of a job's owner hear that its receipt is final, if it is.

    `received_at_ms` is when the receipt came into the mempool. Tells whether anybody hears.
    """
    row = connection.execute(
        "SELECT id, owner, status_reason FROM jobs WHERE receipt_id = ?", (receipt_id,)
    ).fetchone()
    hearers = _list_hearers(connection, row[1], "receipt.final") if row else []
    place = locate(receipt_id) if hearers else None
    if place is None:
        return False
    event = build_job_event(
        "receipt.final",
        row[0],
        reason=row[2],
        at_ms=place.time_ms,
        receipt_id=receipt_id,
        transaction_id=place.transaction_id.hex(),
        block_height=place.height,
    )
    # The clock of a block may be ahead of ours; what has come in by ours is due at once.
    _insert(connection, hearers, event, due_at_ms=received_at_ms)
    return True


def note_ping(connection: Connection, webhook: Webhook, event: Event, now_ms: int) -> str:
    """Let a webhook hear a test event; returns its message id. One that waits already will do."""
    row = connection.execute(
        "SELECT message_id FROM webhook_deliveries INDEXED BY webhook_deliveries_pings"
        " WHERE webhook = ? AND type = 'webhook.ping'",
        (webhook.seq,),
    ).fetchone()
    if row is not None:
        return str(row[0])
    # As there is one at a time, it needs nobody's room.
    _put(connection, [webhook.seq], event, due_at_ms=now_ms)
    return event.message_id


def _list_hearers(connection: Connection, owner: str, kind: EventType) -> list[tuple[int, int]]:
    """Return the webhooks that hear of an event as (place, how much waits for them)."""
    rows = connection.execute(
        "SELECT seq, events, waiting FROM webhooks WHERE owner = ? AND disabled_reason IS NULL",
        (owner,),
    )
    return [(seq, waiting) for seq, events, waiting in rows if f'"{kind}"' in events]


def _insert(
    connection: Connection,
    hearers: Sequence[tuple[int, int]],
    event: Event,
    *,
    due_at_ms: int,
) -> None:
    for seq, waiting in hearers:
        if waiting >= MAX_WAITING_PER_WEBHOOK:
            _give_up_oldest(connection, seq)
    _make_room(connection, len(hearers))
    _put(connection, [seq for seq, _ in hearers], event, due_at_ms=due_at_ms)


def _put(connection: Connection, webhooks: Sequence[int], event: Event, *, due_at_ms: int) -> None:
    payload = event.payload.decode()
    connection.executemany(
        "INSERT INTO webhook_deliveries (webhook, message_id, type, payload, due_at_ms)"
        " VALUES (?, ?, ?, ?, ?)",
        [(seq, event.message_id, event.type, payload, due_at_ms) for seq in webhooks],
    )
    connection.executemany(
        "UPDATE webhooks SET waiting = waiting + 1 WHERE seq = ?", [(seq,) for seq in webhooks]
    )
    count(connection, "waiting", len(webhooks))


def _make_room(connection: Connection, wanted: int) -> None:
    """Give up the oldest deliveries of those with most, if all together have too many."""
    (waiting,) = connection.execute(
        "SELECT value FROM counters WHERE name = 'webhooks_waiting'"
    ).fetchone()
    for _ in range(waiting + wanted - MAX_WAITING):
        (fullest,) = connection.execute(
            "SELECT seq FROM webhooks WHERE waiting > 0 ORDER BY waiting DESC, seq LIMIT 1"
        ).fetchone()
        _give_up_oldest(connection, fullest)


def _give_up_oldest(connection: Connection, webhook: int) -> None:
    (oldest,) = connection.execute(
        "SELECT min(seq) FROM webhook_deliveries WHERE webhook = ?", (webhook,)
    ).fetchone()
    give_up(connection, webhook, oldest)
