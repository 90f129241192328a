"""Webhooks in node.db: whom clients want told of their jobs. What they are told: deliveries.py.

Secrets are readable here, since the node signs with them. What changes something runs inside the
writer's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from ledger.events import EventType
from ledger.jobs import format_ulid, parse_ulid
from ledger.store.sessions import Connection, Row

MAX_WEBHOOKS_PER_KEY = 10
WEBHOOK_PREFIX = "whk_"
_TOP = 1 << 62

_COLUMNS = (
    "seq, id, owner, url, events, created_at_ms, disabled_reason, waiting, given_up, last_delivery"
)


class LastDelivery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the last attempt went, for the webhook's owner."""

    message_id: str
    type: str
    at: str
    attempts: int
    delivered: bool
    http_status: int | None = None
    error: str | None = None
    """One word of a closed set; never a word of the receiver's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One webhook, without its secret."""

    seq: int
    id: bytes
    owner: str
    """Prefix of the API key whose jobs it hears of."""
    url: str
    events: tuple[EventType, ...]
    created_at_ms: int
    disabled_reason: str | None = None
    """Why it hears nothing any more."""
    waiting: int = 0
    given_up: int = 0
    """Events that it never heard, and never will."""
    last: LastDelivery | None = None

    @property
    def name(self) -> str:
        """The id as the API spells it."""
        return WEBHOOK_PREFIX + format_ulid(self.id)


def parse_webhook_id(text: str) -> bytes | None:
    """Return the 16 bytes of a webhook's id, or None if `text` is not one."""
    known = text.startswith(WEBHOOK_PREFIX)
    return parse_ulid(text.removeprefix(WEBHOOK_PREFIX)) if known else None


def insert_webhook(connection: Connection, webhook: Webhook, secret: bytes) -> None:
    """Store a new webhook; its place is chosen here."""
    connection.execute(
        "INSERT INTO webhooks (id, owner, url, events, secret, created_at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (
            webhook.id,
            webhook.owner,
            webhook.url,
            msgspec.json.encode(webhook.events).decode(),
            secret,
            webhook.created_at_ms,
        ),
    )


def count_webhooks(connection: Connection, owner: str) -> int:
    """Return how many webhooks an API key has."""
    row = connection.execute("SELECT count(*) FROM webhooks WHERE owner = ?", (owner,)).fetchone()
    return int(row[0])


def has_webhooks(connection: Connection) -> bool:
    """Tell whether anybody has one."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM webhooks)").fetchone()[0])


def find_webhook(connection: Connection, webhook_id: bytes) -> Webhook | None:
    """Return the webhook with this id."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM webhooks WHERE id = ?",  # noqa: S608 - own words
        (webhook_id,),
    ).fetchone()
    return _webhook(row) if row else None


def list_webhooks(
    connection: Connection, *, owner: str | None, limit: int, before: int | None = None
) -> list[Webhook]:
    """Return webhooks, newest first, below the place `before`; `owner` narrows the list."""
    values: list[int | str] = [_TOP if before is None else before]
    if owner is not None:
        values.append(owner)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM webhooks WHERE seq < ?"  # noqa: S608 - own words
        f" {'' if owner is None else 'AND owner = ?'} ORDER BY seq DESC LIMIT ?",
        (*values, limit),
    )
    return [_webhook(row) for row in rows]


def _webhook(row: Row) -> Webhook:
    last = row["last_delivery"]
    return Webhook(
        seq=row["seq"],
        id=row["id"],
        owner=row["owner"],
        url=row["url"],
        events=msgspec.json.decode(row["events"], type=tuple[EventType, ...]),
        created_at_ms=row["created_at_ms"],
        disabled_reason=row["disabled_reason"],
        waiting=row["waiting"],
        given_up=row["given_up"],
        last=msgspec.json.decode(last, type=LastDelivery) if last else None,
    )
