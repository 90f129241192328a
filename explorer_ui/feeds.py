"""Feeds for readers of Atom (RFC 4287): blocks, receipts, and the receipts of an account.

They hold final things only: an entry that is published never changes. Their ids name what they
are about, not where it was read, so every node of a network publishes the same entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import NotFoundError
from explorer_ui.explain import explain
from explorer_ui.format import money
from explorer_ui.site import Site
from explorer_ui.sources import Views
from ledger.views import BlockView, HeadView, ReceiptFilter, ReceiptView

ENTRIES = 25
ATOM_TYPE = "application/atom+xml; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that became final."""

    urn: str
    path: str
    title: str
    """Untrusted."""
    text: str
    """Untrusted."""
    time_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A feed, newest entry first."""

    urn: str
    title: str
    """Untrusted."""
    own_path: str
    page_path: str
    updated_ms: int
    entries: list[Entry]


class Feeds:
    """Serves `/feeds/…`."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def blocks(self, request: Request) -> Response:
        """Answer `/feeds/blocks.atom`."""

        def read(_head: HeadView) -> list[Entry]:
            return [_describe_block(block) for block in self._views.blocks(limit=ENTRIES)]

        return self._answer(request, "Blocks", "/blocks", read)

    async def receipts(self, request: Request) -> Response:
        """Answer `/feeds/receipts.atom`."""
        return self._answer(
            request,
            "Receipts",
            "/receipts",
            lambda head: self._read_receipts(head, ReceiptFilter()),
        )

    async def account(self, request: Request) -> Response:
        """Answer `/feeds/accounts/{account}.atom`: what it earned by, and what it spent on."""
        key = request.path_params["key"]
        if self._views.account(key) is None:
            raise NotFoundError(explain(key, self._views.head()))

        def read(head: HeadView) -> list[Entry]:
            both = (ReceiptFilter(provider=key), ReceiptFilter(client=key))
            found = {e.urn: e for wanted in both for e in self._read_receipts(head, wanted)}
            return sorted(found.values(), key=lambda entry: (-entry.time_ms, entry.urn))[:ENTRIES]

        return self._answer(request, f"Receipts of {key}", f"/accounts/{key}", read)

    def _read_receipts(self, head: HeadView, wanted: ReceiptFilter) -> list[Entry]:
        # A period with an end has no pending ones.
        final = replace(wanted, to_ms=head.time_ms + 1)
        return [_describe_receipt(row) for row in self._views.receipts(final, limit=ENTRIES)]

    def _answer(
        self, request: Request, title: str, page: str, read: Callable[[HeadView], list[Entry]]
    ) -> Response:
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        entries = read(head)
        feed = Feed(
            urn=f"urn:x-aitbc:{head.genesis}:{page.strip('/').replace('/', ':')}",
            title=f"{title} of {head.network}",
            own_path=f"/feeds{page}.atom",
            page_path=page,
            updated_ms=entries[0].time_ms if entries else head.time_ms,
            entries=entries,
        )
        body = self._site.render("feed.xml", request, feed=feed).encode()
        return self._site.answer(request, body, ATOM_TYPE, tag)


def _describe_block(block: BlockView) -> Entry:
    count = block.transactions
    return Entry(
        urn=f"urn:x-aitbc:block:{block.hash}",
        path=f"/blocks/{block.height}",
        title=f"Block #{block.height:,}",
        text=f"{count:,} {'transaction' if count == 1 else 'transactions'}, signed by "
        f"{block.signed} of {len(block.votes)} authorities.",
        time_ms=block.time_ms,
    )


def _describe_receipt(receipt: ReceiptView) -> Entry:
    payload, transaction = receipt.payload, receipt.transaction
    miner = receipt.miner_id or payload.provider
    return Entry(
        urn=f"urn:x-aitbc:receipt:{payload.receipt_id}",
        path=f"/receipts/{payload.receipt_id}",
        title=f"{payload.model} for {payload.client}",
        text=f"Miner {miner} ran {payload.model} for {payload.client}: "
        f"{money(payload.price_micros)}, final in block #{transaction.height or 0:,}.",
        time_ms=transaction.time_ms,
    )
