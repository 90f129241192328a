"""When an audit is valid: what an auditor measured of one receipt, and who vouches for it.

The auditor signs what it found. The receipt's coordinator signs that it drew this audit and chose
the auditor; without that anybody could fill the chain with audits, or slander a rival. What verdict
follows from the measures is a matter of the method that the audit names, so no rule here judges it:
both stand side by side, and readers can.

The receipt must be on the chain already. Whoever has the chain looks that up (`store/audits.py`);
what it must be is said here (`validate_subject`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ledger.block import Tip
from ledger.errors import InvalidSignatureError, InvalidTransactionError
from ledger.keys import is_account
from ledger.payloads import AuditPayload
from ledger.transaction import Role, Transaction, verify_signers


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSubject:
    """The receipt that an audit is about, as far as the rules ask."""

    coordinator: str
    provider: str
    model_digest: str
    """Empty where the provider reported none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTotals:
    """What the audits of one provider come to, on the chain."""

    passed: int = 0
    failed: int = 0
    tokens: int = 0
    """Replayed in all of them."""
    exact_tokens: int = 0
    """Of these, how many the auditors would have chosen."""
    gap_micros: int = 0
    """Sum of their mean distances."""
    is_suspect: bool = False
    """Whether all mean distances together speak against the provider; see `replay.py`."""

    @property
    def audits(self) -> int:
        """How many there are."""
        return self.passed + self.failed

    @property
    def mean_gap_micros(self) -> int:
        """Mean of the mean distances, 0 without an audit."""
        return self.gap_micros // self.audits if self.audits else 0


def verify_audit(transaction: Transaction, payload: AuditPayload, tip: Tip) -> None:
    """Check an audit for the block after `tip`, apart from its receipt and its uniqueness.

    Raises:
        InvalidTransactionError: its fields contradict each other or belong to another network.
        InvalidSignatureError: a signature is missing, spare or wrong, or its coordinator is none.
    """
    validate_audit(payload, genesis_hash=tip.genesis_hash)
    if not tip.authority_set.allows_coordinator(payload.coordinator):
        raise InvalidSignatureError(f"{payload.coordinator} is not a coordinator of this network")
    verify_signers(transaction, list_audit_signers(payload))


def list_audit_signers(payload: AuditPayload) -> list[tuple[Role, str]]:
    """Return who must sign, in envelope order."""
    return [("auditor", payload.auditor), ("coordinator", payload.coordinator)]


def validate_audit(payload: AuditPayload, *, genesis_hash: bytes) -> None:
    """Check the fields of an audit against each other.

    Raises:
        InvalidTransactionError: they contradict each other or belong to another network.
    """
    genesis = genesis_hash.hex()
    if payload.genesis != genesis:
        raise InvalidTransactionError(f"audit genesis: expected {genesis}, got {payload.genesis}")
    for field, account in (("auditor", payload.auditor), ("coordinator", payload.coordinator)):
        if not is_account(account):
            raise InvalidTransactionError(f"audit {field}: expected an account, got {account}")
    if (told := payload.exact_tokens + payload.outside_tokens) > payload.tokens:
        raise InvalidTransactionError(
            "audit exact_tokens and outside_tokens: expected at most tokens "
            f"{payload.tokens} together, got {told}"
        )


def validate_subject(payload: AuditPayload, subject: AuditSubject) -> None:
    """Check an audit against the receipt that it names.

    Raises:
        InvalidTransactionError: another coordinator issued it, or its provider audits itself.
    """
    if payload.coordinator != subject.coordinator:
        raise InvalidTransactionError(
            f"audit coordinator: expected the receipt's, {subject.coordinator}, "
            f"got {payload.coordinator}"
        )
    if payload.auditor == subject.provider:
        raise InvalidTransactionError(
            f"audit auditor: expected somebody other than the provider, got {payload.auditor}"
        )
