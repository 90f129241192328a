"""Blocks and transactions: is the network sealing, who signed, what stands in this block?"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from explorer_ui.audits import AuditFacts, describe_audit
from explorer_ui.authorities import (
    ChangeFacts,
    EvidenceFacts,
    describe_change,
    describe_evidence,
)
from explorer_ui.errors import NotFoundError, parse_position
from explorer_ui.explain import explain, is_hash
from explorer_ui.facts import Fact, list_facts
from explorer_ui.receipts import Proof, read_proof
from explorer_ui.site import IMMUTABLE, REVALIDATE, Address, Frame, Site
from explorer_ui.sources import Views
from ledger.encoding import encode
from ledger.payloads import find_receipt_id
from ledger.transaction import AuditPayload, AuthoritySetPayload, Envelope, EvidencePayload
from ledger.views import BlockView, TransactionView

PAGE_ROWS = 25
JSON_TYPE = "application/json"
MAX_HEIGHT_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BlocksPage:
    """One page of the list of blocks."""

    blocks: list[BlockView]
    newest: bool
    """Whether this page begins at the head."""
    newer: int | None
    """`before` of the page above, None where that is the first page."""
    older: int | None
    """`before` of the page below, None at the chain's beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPage:
    """One block with a page of its transactions."""

    block: BlockView
    transactions: list[TransactionView]
    continued: bool
    """Whether transactions before these were left out."""
    after: int | None
    """Leaf after which the next page begins, None at the block's end."""
    is_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionPage:
    """One transaction and what stands behind it."""

    proof: Proof
    facts: list[tuple[str, list[Fact]]]
    receipt_id: str | None
    """None where it is no receipt."""
    audit: AuditFacts | None
    """None where it is no audit."""
    change: ChangeFacts | None
    """What a change of the authority set does; None of other types, or where that is not known."""
    evidence: EvidenceFacts | None
    """None where it is no evidence."""


class Blocks:
    """Serves `/blocks`, `/blocks/…` and `/txs/…`."""

    def __init__(self, *, site: Site, views: Views) -> None:
        self._site = site
        self._views = views

    async def list(self, request: Request) -> Response:
        """Answer `/blocks`, newest first, from below height `before`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        before = parse_position(request, "before")
        blocks = self._views.blocks(limit=PAGE_ROWS, before=before)
        above = before + PAGE_ROWS if before is not None else None
        last = blocks[-1].height if blocks else 1
        page = BlocksPage(
            blocks=blocks,
            newest=before is None or before > head.height,
            newer=above if above is not None and above <= head.height else None,
            older=last if last > 1 else None,
        )
        frame = Frame(
            title="Blocks",
            section="blocks",
            json_path="/explorer/blocks",
            feed_path="/feeds/blocks.atom",
        )
        return self._site.page("blocks.html", request, frame=frame, page=page, head=head, tag=tag)

    async def block(self, request: Request) -> Response:
        """Answer `/blocks/{height}`; a block hash leads there."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        key = request.path_params["key"]
        block = self._find(key)
        if key != str(block.height):
            return redirect(request, f"/blocks/{block.height}")
        after = parse_position(request, "after")
        rows = self._views.block_transactions(block.height, limit=PAGE_ROWS, after=after)
        more = bool(rows) and rows[-1].leaf != block.tree_size - 1
        page = BlockPage(
            block=block,
            transactions=rows,
            continued=after is not None and after >= block.first_leaf,
            after=rows[-1].leaf if more else None,
            is_head=block.height == head.height,
        )
        frame = Frame(
            title=f"Block #{block.height:,}",
            section="blocks",
            crumbs=(("Blocks", "/blocks"),),
            json_path=f"/blocks/{block.height}.json",
        )
        return self._site.page("block.html", request, frame=frame, page=page, head=head, tag=tag)

    async def block_json(self, request: Request) -> Response:
        """Answer `/blocks/{height or hash}.json`: exactly the bytes of header and certificate.

        An answer by hash may be kept for ever; what has a height depends on the network.
        """
        key = request.path_params["key"]
        block = self._find(key)
        cache = IMMUTABLE if key == block.hash else REVALIDATE
        tag = f'W/"{block.hash}"'
        if (unchanged := self._site.unchanged(request, tag, cache)) is not None:
            return unchanged
        raw = self._views.raw_block(block.height)
        if raw is None:
            raise NotFoundError(explain(key, self._views.head()))
        return self._site.answer(request, raw, JSON_TYPE, tag, cache=cache)

    async def transaction(self, request: Request) -> Response:
        """Answer `/txs/{id}`."""
        head = self._views.head()
        tag = self._site.tag(request, head)
        if (unchanged := self._site.unchanged(request, tag)) is not None:
            return unchanged
        transaction = self._find_transaction(request)
        page = self._build_transaction_page(transaction)
        height = transaction.height
        above = ((f"Block #{height:,}", f"/blocks/{height}"),) if height is not None else ()
        frame = Frame(
            title="Transaction",
            section="blocks",
            crumbs=(("Blocks", "/blocks"), *above),
            json_path=f"/txs/{transaction.id}.json",
        )
        return self._site.page(
            "transaction.html", request, frame=frame, page=page, head=head, tag=tag
        )

    def _build_transaction_page(self, transaction: TransactionView) -> TransactionPage:
        payload = transaction.payload
        audit = change = evidence = None
        if isinstance(payload, AuditPayload):
            audit = describe_audit(transaction, payload)
        elif isinstance(payload, AuthoritySetPayload):
            change = describe_change(self._views, transaction, payload)
        elif isinstance(payload, EvidencePayload):
            evidence = describe_evidence(self._views, payload)
        return TransactionPage(
            proof=read_proof(self._views, transaction),
            facts=list_facts(payload),
            receipt_id=find_receipt_id(payload),
            audit=audit,
            change=change,
            evidence=evidence,
        )

    async def transaction_json(self, request: Request) -> Response:
        """Answer `/txs/{id}.json`: the envelope, and where it stands."""
        transaction = self._find_transaction(request)
        final = transaction.finality == "final"
        body = encode(
            {
                "envelope": Envelope(
                    payload=transaction.payload, signatures=transaction.signatures
                ),
                "height": transaction.height,
                "id": transaction.id,
                "leaf": transaction.leaf,
                "status": transaction.finality,
                "time_ms": transaction.time_ms,
            }
        )
        if not final:
            return self._site.answer(request, body, JSON_TYPE, None)
        tag = f'W/"{transaction.id}"'
        unchanged = self._site.unchanged(request, tag, IMMUTABLE)
        return unchanged or self._site.answer(request, body, JSON_TYPE, tag, cache=IMMUTABLE)

    def _find(self, key: str) -> BlockView:
        block = None
        if key.isascii() and key.isdigit() and len(key) <= MAX_HEIGHT_DIGITS:
            block = self._views.block(int(key))
        elif is_hash(key):
            block = self._views.block_by_hash(key)
        if block is None:
            raise NotFoundError(explain(key, self._views.head()))
        return block

    def _find_transaction(self, request: Request) -> TransactionView:
        key = request.path_params["key"]
        transaction = self._views.transaction(key) if is_hash(key) else None
        if transaction is None:
            raise NotFoundError(explain(key, self._views.head()))
        return transaction


def redirect(request: Request, path: str) -> Response:
    """Send the client to another page of this node."""
    return Response(status_code=303, headers={"Location": Address(request)(path)})
