"""JSON of audits: what an auditor is offered and given, and what everybody may read."""

from __future__ import annotations

from api.render import Json, format_micros, format_time, render_lease, render_text
from ledger.audits import AuditTotals
from ledger.draws import AuditClaim, DrawnAudit, build_audit_order, list_measured
from ledger.payloads import AuditPayload
from ledger.transaction import MICROS
from ledger.views import TransactionView


def render_offer(audit: DrawnAudit) -> Json:
    """Return an audit that waits; nothing of it is private."""
    return {
        "audit_id": audit.audit_id,
        "receipt_id": audit.receipt_id,
        "model": audit.model,
        "created_at": format_time(audit.created_at_ms),
    }


def render_audit_claim(claim: AuditClaim) -> Json:
    """Return everything that an auditor needs to replay an answer and to sign what it found."""
    return {
        **build_audit_order(claim),
        **render_text(claim.job),
        "lease": render_lease(claim.lease),
    }


def render_audit(transaction: TransactionView) -> Json:
    """Return an audit as it stands, or will stand, on the chain."""
    payload = transaction.payload
    assert isinstance(payload, AuditPayload), "only audits are shown as audits"
    shown: Json = {
        "transaction_id": transaction.id,
        "receipt_id": payload.receipt_id,
        "auditor": payload.auditor,
        "coordinator": payload.coordinator,
        **list_measured(payload),
        "status": transaction.finality,
    }
    if transaction.height is not None:
        shown["block_height"] = transaction.height
    return shown


def render_audit_totals(totals: AuditTotals) -> Json:
    """Return what the audits of a provider come to; rates only where there is something."""
    shown: Json = {
        "passed": totals.passed,
        "failed": totals.failed,
        "tokens": totals.tokens,
        "exact_tokens": totals.exact_tokens,
    }
    if totals.audits:
        shown["exact_rate"] = format_micros(totals.exact_tokens * MICROS // totals.tokens)
        shown["mean_gap"] = format_micros(totals.mean_gap_micros)
        shown["suspect"] = totals.is_suspect
    return shown
