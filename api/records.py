"""Public records: receipts with their proofs, the chain's lists and figures, the node itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from msgspec.structs import replace

from api.answers import IMMUTABLE, REVALIDATED, Answer, answer_json, link, tell_total
from api.conditional import answer_if_changed
from api.errors import RequestError
from api.ports import Views
from api.render import render_receipt
from api.render_chain import (
    render_authorities,
    render_block,
    render_health,
    render_stats,
    render_transaction,
)
from api.requests import Request
from api.resource import ApiSettings, Operation
from ledger.views import MAX_PAGE, ReceiptFilter, SyncProgress

DEFAULT_BLOCKS = 10
DEFAULT_ROWS = 20

_RECEIPT_ID = re.compile(r"rcp_[a-z2-7]{26}")


class RecordEndpoints:
    """`/v1/receipts`, `/v1/genesis`, `/explorer` and `/health`: reads that anybody may do."""

    def __init__(
        self,
        views: Views,
        settings: ApiSettings,
        *,
        genesis: bytes,
        clock_ms: Callable[[], int],
        find_obstacle: Callable[[], RequestError | None],
        find_sync: Callable[[], SyncProgress | None],
    ) -> None:
        self._views = views
        self._settings = settings
        self._genesis = genesis
        self._clock_ms = clock_ms
        self._find_obstacle = find_obstacle
        self._find_sync = find_sync

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        handlers = {
            "/v1/receipts": self.list_receipts,
            "/v1/receipts/{receipt_id}/proof": self.show_proof,
            "/v1/genesis": self.show_genesis,
            "/v1/authorities": self.show_authorities,
            "/explorer/blocks": self.list_blocks,
            "/explorer/transactions": self.list_transactions,
            "/explorer/receipts": self.list_recent_receipts,
            "/explorer/stats": self.show_stats,
            "/health": self.show_health,
            "/health/ready": self.show_readiness,
        }
        paths = {path: {"GET": Operation(handler=handler)} for path, handler in handlers.items()}
        receipt = Operation(handler=self.show_receipt, direct="without_query")
        return {**paths, "/v1/receipts/{receipt_id}": {"GET": receipt}}

    # --- receipts -------------------------------------------------------------------------------

    async def list_receipts(self, request: Request) -> Answer:
        """`GET /v1/receipts`."""
        return self._answer_receipts(request, "/v1/receipts", page="/receipts")

    async def list_recent_receipts(self, request: Request) -> Answer:
        """`GET /explorer/receipts`."""
        return self._answer_receipts(request, "/explorer/receipts", page="/receipts")

    def _answer_receipts(self, request: Request, path: str, *, page: str) -> Answer:
        wanted = ReceiptFilter(
            client=request.text("client"),
            provider=request.text("provider"),
            model=request.text("model"),
        )
        limit, before = read_page(request, DEFAULT_ROWS)
        receipts = self._views.receipts(wanted, limit=limit, before=before)
        cursors = [receipt.transaction.cursor for receipt in receipts]
        links = link(_links(request, path, page, limit, cursors))
        total = tell_total(self._views.count_receipts(wanted))
        shown = [render_receipt(receipt) for receipt in receipts]
        return answer_json(shown, headers=(*links, *total))

    async def show_receipt(self, request: Request) -> Answer:
        """`GET /v1/receipts/{receipt_id}`."""
        receipt_id = request.path_id
        receipt = self._views.receipt(receipt_id) if is_receipt_id(receipt_id) else None
        if receipt is None:
            raise RequestError("RECEIPT_NOT_FOUND", self._explain_unknown())
        links = {"alternate": f"{request.site}/receipts/{receipt_id}"}
        if receipt.transaction.finality == "final":
            links["describedby"] = f"{request.base}/v1/receipts/{receipt_id}/proof"
        answer = answer_json(render_receipt(receipt), headers=link(links))
        return answer_if_changed(request, replace(answer, cache_control=REVALIDATED))

    def _explain_unknown(self) -> str:
        missing = self._views.head().missing
        if not missing:
            return "no receipt with this id on this node"
        return (
            "no receipt with this id yet: this node still fetches the history of blocks "
            f"{missing[0]} to {missing[-1]}"
        )

    async def show_proof(self, request: Request) -> Answer:
        """`GET /v1/receipts/{receipt_id}/proof`: the canonical bundle, to be kept."""
        receipt_id = request.path_id
        bundle = self._views.bundle(receipt_id) if is_receipt_id(receipt_id) else None
        if bundle is not None:
            name = f'attachment; filename="{receipt_id}.proof.json"'.encode()
            answer = Answer(
                body=bundle, headers=((b"content-disposition", name),), cache_control=IMMUTABLE
            )
            return answer_if_changed(request, answer)
        await self.show_receipt(request)
        raise RequestError(
            "RECEIPT_PENDING",
            "this receipt is not final yet; its proof follows with its block",
            headers=((b"retry-after", b"1"),),
        )

    async def show_genesis(self, request: Request) -> Answer:
        """`GET /v1/genesis`: the canonical document that a verifier pins.

        It never changes, but another network may be served at this address one day.
        """
        name = b'attachment; filename="genesis.json"'
        answer = Answer(
            body=self._genesis,
            headers=((b"content-disposition", name),),
            cache_control=REVALIDATED,
        )
        return answer_if_changed(request, answer)

    async def show_authorities(self, request: Request) -> Answer:
        """`GET /v1/authorities`: who seals blocks, since when, and evidence against whom."""
        links = link({"alternate": f"{request.site}/network"})
        return answer_json(render_authorities(self._views.authorities()), headers=links)

    # --- explorer -------------------------------------------------------------------------------

    async def list_blocks(self, request: Request) -> Answer:
        """`GET /explorer/blocks`."""
        limit, before = read_page(request, DEFAULT_BLOCKS)
        blocks = self._views.blocks(limit=limit, before=before)
        cursors = [block.height for block in blocks]
        links = link(_links(request, "/explorer/blocks", "/blocks", limit, cursors))
        total = tell_total(self._views.head().height)
        return answer_json([render_block(block) for block in blocks], headers=(*links, *total))

    async def list_transactions(self, request: Request) -> Answer:
        """`GET /explorer/transactions`."""
        limit, before = read_page(request, DEFAULT_ROWS)
        transactions = self._views.transactions(limit=limit, before=before)
        cursors = [transaction.cursor for transaction in transactions]
        links = _links(request, "/explorer/transactions", "/blocks", limit, cursors)
        return answer_json([render_transaction(t) for t in transactions], headers=link(links))

    async def show_stats(self, request: Request) -> Answer:
        """`GET /explorer/stats`."""
        stats = self._views.stats(self._clock_ms())
        return answer_json(render_stats(stats), headers=link({"alternate": f"{request.site}/"}))

    # --- the node -------------------------------------------------------------------------------

    async def show_health(self, _request: Request) -> Answer:
        """`GET /health`: the node answers."""
        return answer_json(
            render_health(
                self._views.head(), version=self._settings.version, sync=self._find_sync()
            )
        )

    async def show_readiness(self, _request: Request) -> Answer:
        """`GET /health/ready`: the node takes work."""
        obstacle = self._find_obstacle()
        if obstacle is not None:
            raise obstacle
        return answer_json({"status": "ready"})


def read_page(request: Request, default: int) -> tuple[int, int | None]:
    """Return which rows are asked for: how many, below which cursor."""
    return request.clamped("limit", default=default, maximum=MAX_PAGE), request.integer("before")


def is_receipt_id(text: str) -> bool:
    """Tell whether a text has the form of a receipt id."""
    return _RECEIPT_ID.fullmatch(text) is not None


def _links(
    request: Request, path: str, page: str, limit: int, cursors: Sequence[int]
) -> dict[str, str]:
    """Return where the next rows are, and the same rows for people."""
    links = {"alternate": request.site + page}
    if limit and len(cursors) == limit:
        links["next"] = request.address(path, limit=limit, before=cursors[-1])
    return links
