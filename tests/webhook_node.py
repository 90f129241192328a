"""A market with webhooks and a dispatcher that tests step by hand."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from ipaddress import ip_address

from ledger.events import EVENT_TYPES
from ledger.jobs import Caller
from ledger.store.deliveries import read_figures
from ledger.store.webhooks import Webhook
from node.webhooks.dispatcher import Dispatcher
from node.webhooks.sender import Sender
from node.webhooks.transport import CheckedTransport, NameUnknownError
from tests.market_node import CLIENT, SETTINGS, MarketNode

LOOPBACK_SETTINGS = replace(SETTINGS, webhook_reach="loopback", max_pending_per_key=100_000)


class Names:
    """A resolver whose answers a test chooses; numbers mean themselves, as everywhere."""

    def __init__(self, **answers: str) -> None:
        self.answers = {name.replace("_", "."): [answer] for name, answer in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host, port):
        self.asked.append(host)
        found = self.answers.get(host, [host])
        answer = found.pop(0) if len(found) > 1 else found[0]
        try:
            return [ip_address(each) for each in answer.split()]
        except ValueError:
            raise NameUnknownError from None


class WebhookNode(MarketNode):
    """Its clock stands still, and `chance` is what is drawn."""

    def __init__(self, root, *, reach="loopback", names=None, tls=None, **options):
        self.chance = 0.0
        self.names = names or Names()
        self._reach = reach
        self._tls = tls or ssl.create_default_context()
        super().__init__(root, settings=replace(LOOPBACK_SETTINGS, webhook_reach=reach), **options)

    def _open(self):
        super()._open()
        self.transport = CheckedTransport(self._reach, resolve=self.names, tls=self._tls)
        self.sender = Sender(self.transport, lambda: self.now_ms)
        self.dispatcher = Dispatcher(
            store=self.store,
            sender=self.sender,
            news=self.coordinator.events_waiting,
            clock_ms=lambda: self.now_ms,
            draw=lambda: self.chance,
        )

    def _close(self):
        self.do(self.transport.aclose())
        super()._close()

    def hook(self, url: str, *events: str, caller: Caller = CLIENT) -> tuple[Webhook, str]:
        """Make a webhook; returns it with its secret."""
        made, secret = self.do(self.coordinator.create_webhook(caller, url, events or EVENT_TYPES))
        return self.look(made, caller), secret

    def look(self, webhook: Webhook, caller: Caller = CLIENT) -> Webhook:
        return self.coordinator.webhook(caller, webhook.name)

    def ping(self, webhook: Webhook) -> str:
        return self.do(self.coordinator.ping_webhook(CLIENT, webhook.name))

    def cancelled(self, **order) -> str:
        """A job that has ended; returns its id."""
        job = self.submit(**order)
        self.do(self.coordinator.cancel(CLIENT, job.job_id))
        return job.job_id

    def deliver(self) -> int | None:
        """Make every attempt that is due now; returns when the next one is."""

        async def deliver():
            while True:
                next_ms = await self.dispatcher.start_due()
                if not self.dispatcher.tasks:
                    return next_ms
                await asyncio.gather(*self.dispatcher.tasks)

        return self.do(deliver())

    @property
    def figures(self) -> dict[str, int]:
        return read_figures(self.store.reader)
