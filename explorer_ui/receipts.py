"""Receipts: did the job run, what did it cost, is its receipt genuine?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.errors import NotFoundError, PageError, parse_position
from explorer_ui.explain import MAX_QUERY, Explanation, explain
from explorer_ui.facts import Fact, PathStep, list_facts, list_path
from explorer_ui.format import unit_price, units
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.proof import NOT_PROVED
from ledger.transaction import Envelope
from ledger.views import (
    BlockView,
    HeadView,
    InclusionView,
    ReceiptFilter,
    ReceiptView,
    StatsView,
    TransactionView,
)

PAGE_ROWS = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptsPage:
    """One page of the list of receipts."""

    receipts: list[ReceiptView]
    model: str
    """The filters as given, empty where open."""
    miner: str
    client: str
    newest: bool
    older: int | None
    """`before` of the page below, None at the end."""
    stats: StatsView

    @property
    def filtered(self) -> bool:
        """Whether any filter narrows the list."""
        return bool(self.model or self.miner or self.client)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPage:
    """One receipt and all that stands behind it."""

    receipt: ReceiptView
    proof: Proof
    amount: str
    """What was billed, with its unit."""
    unit_price: str | None
    """Credits per unit, None where that is no short decimal."""
    facts: list[tuple[str, list[Fact]]]
    not_proved: tuple[str, ...]
    origin: str
    """Scheme, host and prefix of this node, for commands to copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A transaction's way into the chain, as far as it has come."""

    transaction: TransactionView
    block: BlockView | None
    """None while pending."""
    inclusion: InclusionView | None
    path: list[PathStep]

    @property
    def envelope(self) -> Envelope:
        """What was signed, with the signatures."""
        transaction = self.transaction
        return Envelope(payload=transaction.payload, signatures=transaction.signatures)


class Receipts:
    """Serves `/receipts` and `/receipts/{id}`."""

    def __init__(self, *, site: Site, views: Views, clock_ms: Callable[[], int]) -> None:
        self._site = site
        self._views = views
        self._clock_ms = clock_ms

    async def list(self, request: Request) -> Response:
        """Answer `/receipts`, newest first, narrowed by model, miner and client."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        model, miner, client = (_parse_name(request, name) for name in ("model", "miner", "client"))
        before = parse_position(request, "before")
        wanted = ReceiptFilter(model=model or None, provider=miner or None, client=client or None)
        rows = self._views.receipts(wanted, limit=PAGE_ROWS + 1, before=before)
        page = ReceiptsPage(
            receipts=rows[:PAGE_ROWS],
            model=model,
            miner=miner,
            client=client,
            newest=before is None,
            older=rows[PAGE_ROWS - 1].transaction.cursor if len(rows) > PAGE_ROWS else None,
            stats=self._views.stats(self._clock_ms()),
        )
        frame = Frame(title="Receipts", section="receipts", json_path="/explorer/receipts")
        return self._site.page("receipts.html", request, frame=frame, page=page, head=head, tag=tag)

    async def receipt(self, request: Request) -> Response:
        """Answer `/receipts/{id}`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        receipt = self._find(request, head)
        payload = receipt.payload
        page = ReceiptPage(
            receipt=receipt,
            proof=read_proof(self._views, receipt.transaction),
            amount=units(payload.units_micros, payload.unit_type),
            unit_price=unit_price(payload.price_micros, payload.units_micros),
            facts=list_facts(payload),
            not_proved=NOT_PROVED,
            origin=str(request.base_url).rstrip("/"),
        )
        frame = Frame(
            title=f"Receipt {payload.receipt_id[:12]}…",
            section="receipts",
            crumbs=(("Receipts", "/receipts"),),
            json_path=f"/v1/receipts/{payload.receipt_id}",
        )
        return self._site.page("receipt.html", request, frame=frame, page=page, head=head, tag=tag)

    def _find(self, request: Request, head: HeadView) -> ReceiptView:
        key = request.path_params["key"]
        receipt = self._views.receipt(key)
        if receipt is None:
            raise NotFoundError(explain(key, head))
        return receipt


def read_proof(views: Views, transaction: TransactionView) -> Proof:
    """Return what stands behind a transaction: its block, and its path to that block's root."""
    if transaction.leaf is None or transaction.height is None:
        return Proof(transaction=transaction, block=None, inclusion=None, path=[])
    inclusion = views.inclusion(transaction.leaf, transaction.height)
    return Proof(
        transaction=transaction,
        block=views.block(transaction.height),
        inclusion=inclusion,
        path=list_path(inclusion),
    )


def _parse_name(request: Request, parameter: str) -> str:
    name = request.query_params.get(parameter, "").strip()
    if len(name) > MAX_QUERY:
        raise PageError(
            Explanation(
                finding=f"The {parameter} to look for is longer than {MAX_QUERY} characters.",
                advice="No name on this chain is that long. Shorten it, or leave it out.",
            )
        )
    return name
