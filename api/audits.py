"""Audits that stand on the chain, or wait for it: those of a receipt, and those of an account."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from api.answers import Answer, answer_json, link
from api.errors import RequestError
from api.ports import Views
from api.records import is_receipt_id, read_page
from api.render_audits import render_audit, render_audit_totals
from api.requests import Request
from api.resource import Operation
from api.statements import parse_account
from ledger.views import TransactionView

DEFAULT_AUDITS = 20


class AuditEndpoints:
    """Reads that anybody may do."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def paths(self) -> Mapping[str, Mapping[str, Operation]]:
        """Return the operations by path."""
        return {
            "/v1/receipts/{receipt_id}/audits": {"GET": Operation(handler=self.list_of_receipt)},
            "/v1/accounts/{account}/audits": {"GET": Operation(handler=self.show_of_account)},
        }

    async def list_of_receipt(self, request: Request) -> Answer:
        """`GET /v1/receipts/{receipt_id}/audits`: pending ones first, then newest first."""
        receipt_id = request.path_id
        if not is_receipt_id(receipt_id) or self._views.receipt(receipt_id) is None:
            raise RequestError("RECEIPT_NOT_FOUND", "no receipt with this id on this node")
        limit, before = read_page(request, DEFAULT_AUDITS)
        audits = self._views.audits(receipt_id, limit=limit, before=before)
        path = f"/v1/receipts/{receipt_id}/audits"
        links = {"alternate": f"{request.site}/receipts/{receipt_id}"}
        links |= _lead_on(request, path, limit, audits)
        return answer_json([render_audit(audit) for audit in audits], headers=link(links))

    async def show_of_account(self, request: Request) -> Answer:
        """`GET /v1/accounts/{account}/audits`: what final audits of its answers come to."""
        account = parse_account(request)
        limit, before = read_page(request, DEFAULT_AUDITS)
        audits = self._views.provider_audits(account, limit=limit, before=before)
        path = f"/v1/accounts/{account}/audits"
        links = link(_lead_on(request, path, limit, audits))
        shown = {
            "account": account,
            **render_audit_totals(self._views.audit_totals(account)),
            "audits": [render_audit(audit) for audit in audits],
        }
        return answer_json(shown, headers=links)


def _lead_on(
    request: Request, path: str, limit: int, audits: Sequence[TransactionView]
) -> dict[str, str]:
    if not limit or len(audits) < limit:
        return {}
    return {"next": request.address(path, limit=limit, before=audits[-1].cursor)}
