"""An audit that a coordinator orders: checked, and answered with a signed payload."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ledger.encoding import Hex32
from ledger.keys import KeyPair
from ledger.payloads import AuditPayload
from ledger.proof import Disclosure
from ledger.replay import METHOD, Measures, judge_measures
from ledger.transaction import ReceiptPayload, sign_payload
from miner.audit.case import Case
from miner.errors import BadAnswerError
from miner.wire import Identifier, JobParams, Text

MAX_TOKEN_IDS = 1_000_000
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class AuditOffer(msgspec.Struct, frozen=True, kw_only=True):
    """An audit that this miner may claim."""

    audit_id: Identifier
    model: str


class AuditOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An audit that is ours now: everything that is needed to do and sign it."""

    audit_id: Identifier
    genesis: Hex32
    auditor: str
    receipt: dict[str, Any]
    prompt: Text
    result: Text
    prompt_salt: str
    result_salt: str
    output_token_ids: Annotated[tuple[TokenId, ...], msgspec.Meta(max_length=MAX_TOKEN_IDS)]
    params: JobParams = JobParams()


def build_case(order: AuditOrder, *, genesis: str, account: str) -> Case:
    """Refuse an order that is for another chain or auditor, or about one's own answer.

    Raises:
        BadAnswerError: it is, or its receipt is none.
    """
    try:
        receipt = msgspec.convert(order.receipt, ReceiptPayload)
    except msgspec.ValidationError as error:
        raise BadAnswerError(f"audit order: receipt: {error}") from error
    for name, got, expected in (
        ("genesis", order.genesis, genesis),
        ("receipt genesis", receipt.genesis, genesis),
        ("auditor", order.auditor, account),
    ):
        if got != expected:
            raise BadAnswerError(f"audit order: {name}: expected {expected}, got {got:.100}")
    if receipt.provider == account:
        raise BadAnswerError("audit order: the answer is this miner's own")
    shown = Disclosure(
        prompt=order.prompt,
        prompt_salt=order.prompt_salt,
        result=order.result,
        result_salt=order.result_salt,
        output_token_ids=order.output_token_ids,
    )
    return Case(receipt=receipt, shown=shown, stop=order.params.stop_sequences)


def build_audit(
    case: Case, measures: Measures, *, model_digest: str, account: str, now_ms: int
) -> AuditPayload:
    """Return what the auditor signs; the verdict follows from the measures."""
    receipt = case.receipt
    claims = judge_measures(
        measures,
        prompt_tokens=receipt.prompt_tokens,
        completion_tokens=receipt.completion_tokens,
    )
    passed = all(claim.status != "failed" for claim in claims)
    return AuditPayload(
        genesis=receipt.genesis,
        receipt_id=receipt.receipt_id,
        auditor=account,
        coordinator=receipt.coordinator,
        model_digest=model_digest,
        method=METHOD,
        **msgspec.structs.asdict(measures),
        verdict="pass" if passed else "fail",
        audited_at_ms=now_ms,
    )


_FIXED = frozenset({"v", "type", "genesis", "receipt_id", "auditor", "coordinator"})
"""Fields of an audit that its coordinator knows."""


def build_report(payload: AuditPayload, *, miner_id: str, key: KeyPair) -> dict[str, Any]:
    """The body that hands in an audit, signed."""
    signature = sign_payload(payload, key, "auditor")
    measured = {
        name: value for name, value in msgspec.structs.asdict(payload).items() if name not in _FIXED
    }
    return measured | {
        "miner_id": miner_id,
        "signature": {"alg": "Ed25519", "key_id": signature.key_id, "sig": signature.sig},
    }
