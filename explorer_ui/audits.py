"""Audits in words: who replayed an answer, how close it came, and what the auditor says of it.

An audit is a second opinion, signed by the one who gives it. Pages say "audited", never "proved".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from explorer_ui.format import decimal, share
from explorer_ui.sources import Views
from ledger.audits import AuditTotals
from ledger.payloads import AuditPayload, Ending
from ledger.views import TransactionView

MAX_SHOWN = 10
"""Audits of one page; the API lists them all."""

_ENDINGS: dict[Ending, str] = {
    "end_token": "The answer ends where the model ended it.",
    "stop_sequence": "The answer ends with a stop sequence of the job.",
    "max_tokens": "The answer ends at the job's limit of tokens.",
    "context": "The answer ends at the end of the model's context.",
    "early": "The answer ends early: before a limit, an end token or a stop sequence.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFacts:
    """One audit as pages tell it."""

    transaction: TransactionView
    payload: AuditPayload
    exact: str
    """Share of the tokens that the auditor would have chosen itself."""
    mean_gap: str
    max_gap: str
    ending: str

    @property
    def passed(self) -> bool:
        """Whether the auditor has nothing to object."""
        return self.payload.verdict == "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSummary:
    """What the audits of one account's answers come to, and the newest of them."""

    totals: AuditTotals
    exact: str
    mean_gap: str
    newest: list[AuditFacts]


def summarize_audits(views: Views, account: str) -> AuditSummary:
    """Return what others found of an account's answers."""
    totals = views.audit_totals(account)
    return AuditSummary(
        totals=totals,
        exact=share(totals.exact_tokens, totals.tokens),
        mean_gap=decimal(totals.mean_gap_micros),
        newest=describe_audits(views.provider_audits(account, limit=MAX_SHOWN)),
    )


def describe_audits(transactions: Iterable[TransactionView]) -> list[AuditFacts]:
    """Return what each of some audits says."""
    return [
        describe_audit(transaction, transaction.payload)
        for transaction in transactions
        if isinstance(transaction.payload, AuditPayload)
    ]


def describe_audit(transaction: TransactionView, payload: AuditPayload) -> AuditFacts:
    """Return what an audit says."""
    return AuditFacts(
        transaction=transaction,
        payload=payload,
        exact=share(payload.exact_tokens, payload.tokens),
        mean_gap=decimal(payload.mean_gap_micros),
        max_gap=decimal(payload.max_gap_micros),
        ending=_ENDINGS[payload.ending],
    )
