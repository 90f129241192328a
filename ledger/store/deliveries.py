"""Deliveries in node.db: what waits to be told to webhooks, from `store/events.py` on.

One is deleted once it is delivered or given up. What changes something runs inside the writer's
transaction, and does nothing if the delivery is gone meanwhile: its webhook may be deleted while an
attempt is under way.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ledger.events import PING, format_time
from ledger.store.sessions import Connection, Row
from ledger.store.webhooks import LastDelivery, Webhook


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A webhook as whoever delivers needs it."""

    seq: int
    url: str
    secret: bytes
    failures: int
    """Attempts that failed since one did not."""
    failing_since_ms: int | None
    is_revoked: bool
    """Whether its owner's API key is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event on its way to one webhook."""

    seq: int
    webhook: int
    message_id: str
    type: str
    payload: bytes
    attempts: int
    """That failed."""
    due_at_ms: int


def delete_webhook(connection: Connection, webhook: Webhook) -> None:
    """Forget a webhook, and with it what it has not heard."""
    _drop(connection, webhook.seq)
    connection.execute("DELETE FROM webhooks WHERE seq = ?", (webhook.seq,))


def disable_webhook(connection: Connection, seq: int, reason: str) -> None:
    """Let a webhook hear nothing from now on; what waits is given up."""
    dropped = _drop(connection, seq)
    connection.execute(
        "UPDATE webhooks SET disabled_reason = ?, given_up = given_up + ? WHERE seq = ?",
        (reason, dropped, seq),
    )
    count(connection, "given_up", dropped)


def read_figures(connection: Connection) -> dict[str, int]:
    """Return the figures of all webhooks: `waiting` now; `delivered`, `given_up`, `failed` ever.

    All count deliveries but the last, which counts attempts.
    """
    rows = connection.execute(
        "SELECT name, value FROM counters WHERE substr(name, 1, 9) = 'webhooks_'"
    )
    return {name.removeprefix("webhooks_"): int(value) for name, value in rows}


def list_waiting(connection: Connection, *, above: int, limit: int) -> list[tuple[int, str, int]]:
    """Return webhooks with deliveries as (place, url, held until), by place."""
    rows = connection.execute(
        "SELECT seq, url, held_until_ms FROM webhooks WHERE waiting > 0 AND seq > ?"
        " ORDER BY seq LIMIT ?",
        (above, limit),
    )
    return [tuple(row) for row in rows]


def list_next(connection: Connection, webhook: int, *, limit: int) -> list[Delivery]:
    """Return the deliveries of a webhook that are due first, a test event before all others."""
    # Left alone, SQLite looks for the one test event among all that wait.
    pings = "INDEXED BY webhook_deliveries_pings WHERE webhook = ? AND type = 'webhook.ping'"
    others = "INDEXED BY webhook_deliveries_due WHERE webhook = ? AND type <> 'webhook.ping'"
    return [
        _delivery(row)
        for where in (pings, others)
        for row in connection.execute(
            "SELECT seq, webhook, message_id, type, payload, attempts, due_at_ms"  # noqa: S608
            f" FROM webhook_deliveries {where} ORDER BY due_at_ms, seq LIMIT ?",
            (webhook, limit),
        )
    ]


def load_standing(connection: Connection, webhook: int) -> Standing | None:
    """Return what delivering to a webhook needs; None if it is gone or disabled."""
    row = connection.execute(
        "SELECT seq, url, secret, failures, failing_since_ms, EXISTS (SELECT 1 FROM api_keys"
        " WHERE prefix = webhooks.owner AND revoked_at_ms IS NOT NULL)"
        " FROM webhooks WHERE seq = ? AND disabled_reason IS NULL",
        (webhook,),
    ).fetchone()
    if row is None:
        return None
    return Standing(
        seq=row[0],
        url=row[1],
        secret=row[2],
        failures=row[3],
        failing_since_ms=row[4],
        is_revoked=bool(row[5]),
    )


def note_delivered(connection: Connection, delivery: Delivery, last: LastDelivery) -> None:
    """Note that a delivery has arrived; the webhook is held no longer."""
    if not _remove(connection, delivery.webhook, delivery.seq):
        return
    connection.execute(
        "UPDATE webhooks SET failures = 0, failing_since_ms = NULL, held_until_ms = 0,"
        " last_delivery = ? WHERE seq = ?",
        (_encode(last), delivery.webhook),
    )
    count(connection, "delivered", 1)


def note_failure(
    connection: Connection,
    delivery: Delivery,
    last: LastDelivery,
    *,
    now_ms: int,
    retry_at_ms: int | None,
    held_until_ms: int,
) -> None:
    """Note that an attempt has failed; None for `retry_at_ms` gives the delivery up."""
    updated = connection.execute(
        "UPDATE webhook_deliveries SET attempts = attempts + 1, due_at_ms = ? WHERE seq = ?",
        (retry_at_ms or 0, delivery.seq),
    )
    if updated.rowcount != 1:
        return
    if retry_at_ms is None:
        give_up(connection, delivery.webhook, delivery.seq)
    connection.execute(
        "UPDATE webhooks SET failures = failures + 1, last_delivery = ?, held_until_ms = ?,"
        " failing_since_ms = coalesce(failing_since_ms, ?) WHERE seq = ?",
        (_encode(last), held_until_ms, now_ms, delivery.webhook),
    )
    count(connection, "failed", 1)


def hasten(connection: Connection, webhook: int, now_ms: int) -> None:
    """Let everything that waits for a webhook be due."""
    connection.execute(
        "UPDATE webhook_deliveries SET due_at_ms = ? WHERE webhook = ? AND due_at_ms > ?",
        (now_ms, webhook, now_ms),
    )


def describe_attempt(
    delivery: Delivery, *, now_ms: int, delivered: bool, http_status: int | None, error: str | None
) -> LastDelivery:
    """Return what a webhook's owner is shown of an attempt."""
    return LastDelivery(
        message_id=delivery.message_id,
        type=delivery.type,
        at=format_time(now_ms),
        attempts=delivery.attempts + 1,
        delivered=delivered,
        http_status=http_status,
        error=error,
    )


def is_ping(delivery: Delivery) -> bool:
    """Tell whether it is a test event."""
    return delivery.type == PING


def give_up(connection: Connection, webhook: int, delivery: int) -> None:
    """Forget a delivery that will not be made."""
    if _remove(connection, webhook, delivery):
        connection.execute("UPDATE webhooks SET given_up = given_up + 1 WHERE seq = ?", (webhook,))
        count(connection, "given_up", 1)


def _remove(connection: Connection, webhook: int, delivery: int) -> bool:
    """Forget a delivery. False if it is gone already: its webhook was deleted, or it made room."""
    deleted = connection.execute("DELETE FROM webhook_deliveries WHERE seq = ?", (delivery,))
    if deleted.rowcount != 1:
        return False
    connection.execute("UPDATE webhooks SET waiting = waiting - 1 WHERE seq = ?", (webhook,))
    count(connection, "waiting", -1)
    return True


def _drop(connection: Connection, webhook: int) -> int:
    deleted = connection.execute("DELETE FROM webhook_deliveries WHERE webhook = ?", (webhook,))
    connection.execute("UPDATE webhooks SET waiting = 0 WHERE seq = ?", (webhook,))
    count(connection, "waiting", -deleted.rowcount)
    return deleted.rowcount


def count(connection: Connection, name: str, number: int) -> None:
    """Add to a figure of `read_figures`."""
    connection.execute(
        "UPDATE counters SET value = value + ? WHERE name = ?", (number, f"webhooks_{name}")
    )


def _encode(last: LastDelivery) -> str:
    return msgspec.json.encode(last).decode()


def _delivery(row: Row) -> Delivery:
    return Delivery(
        seq=row[0],
        webhook=row[1],
        message_id=row[2],
        type=row[3],
        payload=row[4].encode(),
        attempts=row[5],
        due_at_ms=row[6],
    )
