"""Transactions by themselves: how one stands, and handing in one that proves itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

from api.answers import Answer, answer_json, link
from api.errors import RequestError
from api.nomarket import NoMarket
from api.ports import Market, Views
from api.render_chain import render_transaction
from api.requests import Request
from api.resource import Operation
from ledger.transaction import MAX_ENVELOPE_BYTES
from ledger.views import TransactionView

_TRANSACTION_ID = re.compile(r"[0-9a-f]{64}")
_LINE_FEED = 1
"""A file of an envelope may end in one."""


class TransactionEndpoints:
    """`/v1/transactions`: changes of the authority set, and evidence. No key is needed."""

    def __init__(self, market: Market | NoMarket, views: Views) -> None:
        self._market = market
        self._views = views

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        return {
            "/v1/transactions": {
                "POST": Operation(
                    handler=self.submit, max_body_bytes=MAX_ENVELOPE_BYTES + _LINE_FEED
                )
            },
            "/v1/transactions/{transaction_id}": {"GET": Operation(handler=self.show)},
        }

    async def submit(self, request: Request) -> Answer:
        """`POST /v1/transactions`: 202 while it waits for a block, 200 if it is final already."""
        stored = await self._market.submit_transaction(request.body.removesuffix(b"\n"))
        return self._answer(request, stored, status=202 if stored.finality == "pending" else 200)

    async def show(self, request: Request) -> Answer:
        """`GET /v1/transactions/{transaction_id}`."""
        key = request.path_id
        found = self._views.transaction(key) if _TRANSACTION_ID.fullmatch(key) else None
        if found is None:
            raise RequestError("TRANSACTION_NOT_FOUND", "no transaction with this id on this node")
        return self._answer(request, found)

    def _answer(
        self, request: Request, transaction: TransactionView, *, status: int = 200
    ) -> Answer:
        links = link({"alternate": f"{request.site}/txs/{transaction.id}"})
        return answer_json(render_transaction(transaction), status=status, headers=links)
