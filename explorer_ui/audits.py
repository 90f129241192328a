"""Audits in words: who replayed an answer, how close it came, and what the auditor says of it.

An audit is a second opinion, signed by the one who gives it. Pages say "audited", never "proved".
"""

from __future__ import annotations

from dataclasses import dataclass

from explorer_ui.format import decimal, share
from ledger.payloads import AuditPayload, Ending
from ledger.views import TransactionView

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
