"""One receipt: did the job run, what did it cost, is its receipt genuine?"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.audits import MAX_SHOWN, AuditFacts, describe_audits
from explorer_ui.errors import NotFoundError
from explorer_ui.explain import explain
from explorer_ui.facts import Fact, PathStep, list_facts, list_path
from explorer_ui.format import unit_price, units
from explorer_ui.qr import QrCode, draw_qr
from explorer_ui.site import Frame, Site
from explorer_ui.sources import Views
from ledger.proof import NOT_PROVED
from ledger.transaction import Envelope
from ledger.views import (
    BlockView,
    HeadView,
    InclusionView,
    ReceiptView,
    TransactionView,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptPage:
    """One receipt and all that stands behind it."""

    receipt: ReceiptView
    proof: Proof
    amount: str
    """What was billed, with its unit."""
    unit_price: str | None
    """Credits per unit, None where that is no short decimal."""
    audits: list[AuditFacts]
    """The newest ones."""
    facts: list[tuple[str, list[Fact]]]
    qr: QrCode | None
    """Of the address where others find this receipt, or of its id."""
    qr_address: str | None
    """None where the code holds the id."""
    job_here: bool
    """Whether this node coordinated its job, and so has a page of it."""
    not_proved: tuple[str, ...]


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
    """Serves `/receipts/{id}`."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def receipt(self, request: Request) -> Response:
        """Answer `/receipts/{id}`."""
        head = self._views.head()
        audits = self._views.audits(request.path_params["key"], limit=MAX_SHOWN)
        tag = self._site.tag(request, head, [audit.id for audit in audits])
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        receipt = self._find(request, head)
        payload = receipt.payload
        address = self._site.public(f"/receipts/{payload.receipt_id}")
        page = ReceiptPage(
            receipt=receipt,
            proof=read_proof(self._views, receipt.transaction),
            amount=units(payload.units_micros, payload.unit_type),
            unit_price=unit_price(payload.price_micros, payload.units_micros),
            audits=describe_audits(audits),
            facts=list_facts(payload),
            qr=draw_qr(address or payload.receipt_id),
            qr_address=address,
            job_here=self._views.job(payload.job_id) is not None,
            not_proved=NOT_PROVED,
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
