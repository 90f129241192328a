"""`/v1/key`: what the holder of an API key may ask about it."""

from __future__ import annotations

from collections.abc import Mapping

from api.answers import Answer, answer_json
from api.ports import Market
from api.render import render_key
from api.requests import Request
from api.resource import Operation


class KeyEndpoints:
    """The key of the request, and no other."""

    def __init__(self, market: Market) -> None:
        self._market = market

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        return {"/v1/key": {"GET": Operation(handler=self.show, key="always")}}

    async def show(self, request: Request) -> Answer:
        """`GET /v1/key`."""
        standing = self._market.key_standing(request.caller)
        return answer_json(render_key(request.caller, standing))
