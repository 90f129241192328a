"""Audits that a coordinator has drawn: from a completed job to what the auditor signs.

    draw -> pending -> running -> done      (one `audit` transaction)
               |          |-> pending      given back, or the lease is over; not by the same again
               |----------|-> expired      nobody took it in time, too many tries, texts are gone

Pure rules: who may audit what, in which state, and what the transaction says. The clock and all
random bytes are arguments. A failed audit draws one more, by somebody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from ledger.encoding import encode_base64url
from ledger.errors import InvalidFieldError, MarketError
from ledger.hashing import decode_tokens
from ledger.jobs import (
    Caller,
    Job,
    Lease,
    Miner,
    format_ulid,
    list_served_models,
    normalize_model,
    parse_ulid,
)
from ledger.payloads import AuditPayload, Ending, ReceiptPayload, Verdict
from ledger.transaction import Signature

AuditState = Literal["done", "expired", "pending", "running"]
ExpiryReason = Literal["no_auditor", "max_tries", "texts_purged"]

MAX_OPEN_AUDITS = 200
"""Audits that are pending or running at once; while there are so many, no others are drawn. Whoever
looks for one looks at them all."""
MAX_OPEN_PER_MODEL = 50
"""So that a model that nobody else serves does not keep all others from being audited."""
MAX_AUDIT_AGE_MS = 3_600_000
"""From the draw to the end: an audit that nobody does by then expires."""
AUDIT_LEASE_MS = 600_000
"""A replay takes a fraction of the time that the answer took."""
MAX_TRIES = 3
MAX_ROUNDS = 2
"""One audit, and one more by somebody else if it fails."""
MAX_CLOCK_ERROR_MS = 86_400_000
"""How far an auditor's clock may be from the coordinator's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnAudit:
    """One audit that was drawn, with everything its coordinator knows about it. Private."""

    id: bytes
    job: int
    """Place of the job in node.db."""
    receipt_id: str
    model: str
    """As the job asked for it."""
    state: AuditState
    round: int
    excluded: frozenset[str]
    """Names (`list_names`) that its auditor must not have: the provider's, and of those who gave
    it back or have audited this receipt."""
    created_at_ms: int
    is_offered: bool = False
    """Whether its receipt is final."""
    tries: int = 0
    miner_id: str | None = None
    """The auditor, while it runs and when it is done."""
    auditor: str | None = None
    """The auditor's account when it claimed."""
    lease_expires_at_ms: int | None = None
    transaction_id: bytes | None = None
    """Once it is done."""

    @property
    def audit_id(self) -> str:
        """The id as the API spells it."""
        return "aud_" + format_ulid(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditClaim:
    """What an auditor gets when it claims an audit."""

    audit: DrawnAudit
    job: Job
    receipt: ReceiptPayload
    coordinator: str
    lease: Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What an auditor says it measured."""

    miner_id: str
    model_digest: str
    method: str
    prompt_tokens: int
    tokens: int
    exact_tokens: int
    outside_tokens: int
    max_gap_micros: int
    mean_gap_micros: int
    ending: Ending
    text_matches: bool
    verdict: Verdict
    audited_at_ms: int
    signature: Signature


MEASURED = (
    "model_digest", "method", "prompt_tokens", "tokens", "exact_tokens", "outside_tokens",
    "max_gap_micros", "mean_gap_micros", "ending", "text_matches", "verdict", "audited_at_ms",
)  # fmt: skip
"""Fields of an audit that its auditor fills."""


def list_measured(audit: AuditReport | AuditPayload) -> Mapping[str, object]:
    """Return what the auditor says, by field."""
    return {name: getattr(audit, name) for name in MEASURED}


def parse_audit_id(text: str) -> bytes | None:
    """Return the 16 bytes of an audit id, or None if `text` is not one."""
    return parse_ulid(text.removeprefix("aud_")) if text.startswith("aud_") else None


def list_names(
    *, miner_id: str, accounts: Iterable[str | None], keys: Iterable[str | None]
) -> set[str]:
    """Return all by which somebody is known: two who share one may be the same.

    An empty key is a name too: callers without a key cannot be told apart.
    """
    return (
        {f"miner {miner_id}"}
        | {f"account {account}" for account in accounts if account is not None}
        | {f"key {key}" for key in keys if key is not None}
    )


def name_auditor(miner: Miner, caller: Caller) -> set[str]:
    """Return the names of a miner that asks for audits."""
    return list_names(
        miner_id=miner.miner_id, accounts=[miner.account], keys=[miner.owner, caller.key]
    )


def is_open_to(audit: DrawnAudit, miner: Miner, names: set[str]) -> bool:
    """Tell whether a miner may do an audit that waits."""
    served = list_served_models(miner.capabilities)
    return (
        audit.state == "pending"
        and audit.is_offered
        and is_auditor(miner)
        and (served is None or normalize_model(audit.model) in served)
        and not audit.excluded & names
    )


def is_auditor(miner: Miner) -> bool:
    """Tell whether a miner is offered audits at all: it asked for them, and can sign."""
    return miner.audits and miner.account is not None and not miner.draining


def check_claimable(audit: DrawnAudit, miner: Miner, names: set[str]) -> None:
    """Raise unless a miner may claim an audit. One that holds it already may again."""
    if audit.state == "running" and audit.miner_id == miner.miner_id:
        return
    if audit.state != "pending":
        raise _state_error(audit, otherwise="AUDIT_ALREADY_CLAIMED")
    if not is_open_to(audit, miner, names):
        raise MarketError(
            "AUDIT_NOT_ELIGIBLE",
            f"miner {miner.miner_id} may not do this audit: expected a miner with a key and "
            "audits: true that serves the model and has nothing to do with the answer",
        )


def check_held(audit: DrawnAudit, miner_id: str) -> None:
    """Raise unless a miner does this audit now."""
    if audit.state != "running" or audit.miner_id != miner_id:
        raise _state_error(audit, otherwise="AUDIT_LEASE_LOST")


def _state_error(audit: DrawnAudit, *, otherwise: str) -> MarketError:
    codes = {"done": "AUDIT_ALREADY_COMPLETED", "expired": "AUDIT_EXPIRED"}
    return MarketError(codes.get(audit.state, otherwise), f"{audit.audit_id} is {audit.state}")


def build_audit(
    audit: DrawnAudit,
    report: AuditReport,
    *,
    genesis_hash: bytes,
    coordinator: str,
    answer_tokens: int,
    now_ms: int,
) -> AuditPayload:
    """Return what the transaction of this report says; the auditor must have signed just this.

    Whether the measures are true the coordinator cannot tell; it holds them to what it knows.

    Raises:
        MarketError: VALIDATION_FAILED, the report is not possible.
    """
    if report.tokens != answer_tokens:
        raise InvalidFieldError(
            "tokens",
            f"expected {answer_tokens}, the number of output_token_ids, got {report.tokens}",
        )
    if abs(report.audited_at_ms - now_ms) > MAX_CLOCK_ERROR_MS:
        raise InvalidFieldError("audited_at_ms", f"expected within a day of now {now_ms}")
    try:
        return msgspec.convert(
            {
                "v": 1,
                "type": "audit",
                "genesis": genesis_hash.hex(),
                "receipt_id": audit.receipt_id,
                "auditor": audit.auditor,
                "coordinator": coordinator,
                **list_measured(report),
            },
            AuditPayload,
        )
    except msgspec.ValidationError as error:
        raise MarketError("VALIDATION_FAILED", f"audit: {error}") from error


def build_audit_order(claim: AuditClaim) -> dict[str, object]:
    """Return the JSON part of a claim that lets an auditor check the texts and sign the audit."""
    return {
        "audit_id": claim.audit.audit_id,
        "genesis": claim.receipt.genesis,
        "auditor": claim.audit.auditor,
        "coordinator": claim.coordinator,
        "receipt": msgspec.to_builtins(claim.receipt),
        "prompt_salt": encode_base64url(claim.job.prompt_salt),
        "result_salt": encode_base64url(claim.job.result_salt),
        "output_token_ids": decode_tokens(claim.job.output_token_ids or b""),
    }
