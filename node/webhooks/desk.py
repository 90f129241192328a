"""The webhooks' part of the market: make, list, delete, try. Sending is the dispatcher's."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ledger.errors import MarketError
from ledger.events import EventType, build_ping
from ledger.jobs import Caller, build_job_id
from ledger.store import deliveries as delivery_store
from ledger.store import webhooks as webhook_store
from ledger.store.events import note_ping
from ledger.store.sessions import Connection
from ledger.store.webhooks import MAX_WEBHOOKS_PER_KEY, Webhook, parse_webhook_id
from node.market.desk import Desk
from node.webhooks.guard import check_url
from node.webhooks.sender import format_secret

SECRET_BYTES = 32


class WebhookDesk(Desk):
    """What clients do with their own webhooks, and admins with all."""

    async def create_webhook(
        self, caller: Caller, url: str, events: Sequence[EventType]
    ) -> tuple[Webhook, str]:
        """Store a webhook for the caller's jobs; returns it with its secret, for the only time."""
        check_url(url, self._settings.webhook_reach)
        now_ms = self._clock_ms()
        secret = secrets.token_bytes(SECRET_BYTES)
        webhook = Webhook(
            seq=0,
            id=build_job_id(now_ms=now_ms, entropy=secrets.token_bytes(10)),
            owner=caller.key,
            url=url,
            events=tuple(events),
            created_at_ms=now_ms,
        )

        def create(connection: Connection) -> None:
            if webhook_store.count_webhooks(connection, caller.key) >= MAX_WEBHOOKS_PER_KEY:
                raise MarketError(
                    "WEBHOOK_LIMIT_REACHED",
                    f"this key has {MAX_WEBHOOKS_PER_KEY} webhooks; delete one first",
                )
            webhook_store.insert_webhook(connection, webhook, secret)

        self._has_webhooks = True  # before it is stored: nothing may happen unheard after that
        await self._write(create)
        return webhook, format_secret(secret)

    def webhooks(self, caller: Caller, *, limit: int, before: int | None) -> Sequence[Webhook]:
        """Return the caller's webhooks, an admin everybody's, newest first."""
        owner = None if caller.is_admin else caller.key
        return webhook_store.list_webhooks(
            self._store.reader, owner=owner, limit=limit, before=before
        )

    def webhook(self, caller: Caller, webhook_id: str) -> Webhook:
        """Return a webhook. Raises MarketError WEBHOOK_NOT_FOUND, for those of others too."""
        return _find(self._store.reader, caller, webhook_id)

    async def delete_webhook(self, caller: Caller, webhook_id: str) -> None:
        """Forget a webhook, and what waits for it."""
        await self._write(lambda c: delivery_store.delete_webhook(c, _find(c, caller, webhook_id)))

    async def ping_webhook(self, caller: Caller, webhook_id: str) -> str:
        """Let a webhook hear a test event; returns its message id."""
        now_ms = self._clock_ms()
        name = build_job_id(now_ms=now_ms, entropy=secrets.token_bytes(10))

        def ping(connection: Connection) -> str:
            webhook = _find(connection, caller, webhook_id)
            if webhook.disabled_reason is not None:
                raise MarketError(
                    "WEBHOOK_DISABLED",
                    f"this webhook is disabled ({webhook.disabled_reason}); make a new one",
                )
            event = build_ping(name, webhook.name, at_ms=now_ms)
            return note_ping(connection, webhook, event, now_ms)

        return await self._write(ping, then=self.note_events)


def _find(connection: Connection, caller: Caller, webhook_id: str) -> Webhook:
    name = parse_webhook_id(webhook_id)
    webhook = webhook_store.find_webhook(connection, name) if name else None
    # Whether somebody else has such a webhook is nobody's business.
    if webhook is None or not (caller.is_admin or webhook.owner == caller.key):
        raise MarketError("WEBHOOK_NOT_FOUND", "this key has no webhook with this id")
    return webhook
