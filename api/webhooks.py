"""Webhooks: which server is to be told of the end of a key's jobs."""

from __future__ import annotations

from collections.abc import Mapping

from api.answers import Answer, answer_json, link
from api.bodies import parse_webhook
from api.ports import Market
from api.render import Json, format_time
from api.requests import Request
from api.resource import Handler, Operation
from ledger.store.webhooks import Webhook
from ledger.views import MAX_PAGE

MAX_WEBHOOK_BODY_BYTES = 8 << 10


class WebhookEndpoints:
    """`/v1/webhooks`: a client's own, an admin's all. A key is needed in every mode."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""

        def own(handler: Handler, *, max_body_bytes: int | None = None) -> Operation:
            return Operation(
                handler=handler, role="client", key="always", max_body_bytes=max_body_bytes
            )

        one = "/v1/webhooks/{webhook_id}"
        return {
            "/v1/webhooks": {
                "POST": own(self.create, max_body_bytes=MAX_WEBHOOK_BODY_BYTES),
                "GET": own(self.list_webhooks),
            },
            one: {"GET": own(self.show), "DELETE": own(self.delete)},
            f"{one}/ping": {"POST": own(self.ping)},
        }

    async def create(self, request: Request) -> Answer:
        """`POST /v1/webhooks`: the only answer that holds the secret."""
        url, events = parse_webhook(request.body)
        webhook, secret = await self._market.create_webhook(request.caller, url, events)
        place = f"{request.base}/v1/webhooks/{webhook.name}".encode()
        shown = render_webhook(webhook) | {"secret": secret}
        return answer_json(shown, status=201, headers=((b"location", place),))

    async def list_webhooks(self, request: Request) -> Answer:
        """`GET /v1/webhooks`."""
        limit = request.clamped("limit", default=MAX_PAGE, maximum=MAX_PAGE)
        before = request.integer("before")
        webhooks = self._market.webhooks(request.caller, limit=limit, before=before)
        more = {}
        if limit and len(webhooks) == limit:
            place = webhooks[-1].seq
            more["next"] = request.address("/v1/webhooks", limit=limit, before=place)
        return answer_json([render_webhook(each) for each in webhooks], headers=link(more))

    async def show(self, request: Request) -> Answer:
        """`GET /v1/webhooks/{webhook_id}`."""
        return answer_json(render_webhook(self._market.webhook(request.caller, request.path_id)))

    async def delete(self, request: Request) -> Answer:
        """`DELETE /v1/webhooks/{webhook_id}`."""
        await self._market.delete_webhook(request.caller, request.path_id)
        return Answer(status=204)

    async def ping(self, request: Request) -> Answer:
        """`POST /v1/webhooks/{webhook_id}/ping`: how it went is shown with the webhook."""
        message_id = await self._market.ping_webhook(request.caller, request.path_id)
        return answer_json({"message_id": message_id}, status=202)


def render_webhook(webhook: Webhook) -> Json:
    """Return a webhook as its owner sees it; its secret is not even known here."""
    shown: Json = {
        "id": webhook.name,
        "url": webhook.url,
        "events": webhook.events,
        "created_at": format_time(webhook.created_at_ms),
        "status": "active" if webhook.disabled_reason is None else "disabled",
        "waiting": webhook.waiting,
        "given_up": webhook.given_up,
    }
    if webhook.disabled_reason is not None:
        shown["disabled_reason"] = webhook.disabled_reason
    if webhook.last is not None:
        shown["last_delivery"] = webhook.last
    return shown
