"""What stands in tests/vectors/audits.json: audits, good and bad.

`verdict` is written by hand. Every case is judged for block 3; `receipt`, where there is one, is
the envelope that block 1 holds. What no single transaction shows, that an auditor audits a receipt
once, is not in here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec

from ledger.block import build_genesis_tip
from ledger.encoding import encode
from ledger.transaction import (
    Signature,
    Transaction,
    build_signed_message,
    build_transaction,
    sign_payload,
)
from tests.builders import (
    build_audit,
    build_audit_payload,
    build_genesis,
    build_key,
    build_payload,
    build_receipt,
    sign_audit,
    sign_receipt,
)

Vectors = dict[str, Any]
Expected = Literal["valid", "refused"]
Row = tuple[str, Expected, Transaction | None, Transaction]
"""(why, verdict, the receipt on the chain, the audit)."""

GENESIS = build_genesis(4)
TIP = replace(build_genesis_tip(GENESIS), height=2)
RECEIPT = build_receipt(GENESIS)
AUDITOR, OTHER, STRANGER = (build_key(name) for name in ("auditor", "authority 1 of epoch 0", "x"))
OF_STRANGER = build_payload(GENESIS, coordinator=STRANGER.account)

EXAMPLE_AUDIT = build_audit(build_genesis(), 2)
"""Of the receipt of the other examples."""


def build_audits() -> Vectors:
    """Return the file's contents."""
    return {
        "genesis": encode(GENESIS).decode(),
        "height": TIP.height + 1,
        "cases": [
            {
                "why": why,
                "signed_message": build_signed_message(audit.payload).decode(),
                "transaction_id": audit.id.hex(),
                "envelope": audit.envelope.decode(),
                **({"receipt": receipt.envelope.decode()} if receipt else {}),
                "verdict": verdict,
            }
            for why, verdict, receipt, audit in _list_cases()
        ],
    }


def _list_cases() -> list[Row]:
    def case(why: str, expected: Expected, /, **changes: Any) -> Row:
        return why, expected, RECEIPT, build_audit(GENESIS, **changes)

    sound = build_audit(GENESIS)

    def sign(*signatures: Signature) -> Transaction:
        return build_transaction(sound.payload, signatures)

    by_auditor, by_coordinator = sign_audit(build_audit_payload(GENESIS))
    forged = sign_payload(sound.payload, STRANGER, "auditor").sig
    by_self = build_audit_payload(GENESIS, auditor=build_key("miner").account)
    elsewhere = build_audit_payload(GENESIS, coordinator=OTHER.account)
    return [
        case("passed", "valid"),
        case("failed", "valid", verdict="fail", ending="early", text_matches=False),
        case("of a single token that is out of reach", "valid", tokens=1, exact_tokens=0,
             outside_tokens=1, max_gap_micros=0, mean_gap_micros=1_000_000, verdict="fail"),
        case("with another model than the provider names", "valid", model_digest="cd" * 32),
        case("more tokens alike than there are", "refused", exact_tokens=11),
        case("more tokens out of reach than there are", "refused", outside_tokens=11),
        case("more tokens of both kinds than there are", "refused", outside_tokens=2),
        case("another network", "refused", genesis="ab" * 32),
        ("an auditor that is no account", "refused", RECEIPT, _sign(auditor="miner-1")),
        ("its receipt is not on the chain", "refused", None, sound),
        ("its receipt is another coordinator's", "refused", RECEIPT,
         build_transaction(elsewhere, sign_audit(elsewhere, coordinator=OTHER))),
        ("by the provider", "refused", RECEIPT,
         build_transaction(by_self, sign_audit(by_self, auditor=build_key("miner")))),
        ("signed by the auditor alone", "refused", RECEIPT, sign(by_auditor)),
        ("signed by the coordinator alone", "refused", RECEIPT, sign(by_coordinator)),
        ("a spare signature", "refused", RECEIPT,
         sign(by_auditor, by_coordinator, sign_payload(sound.payload, STRANGER, "provider"))),
        ("signed by another auditor", "refused", RECEIPT,
         sign(msgspec.structs.replace(by_auditor, sig=forged), by_coordinator)),
        ("a coordinator that nobody lists", "refused",
         _receipt_of_stranger(), _audit_of_stranger()),
    ]  # fmt: skip


def _sign(**changes: Any) -> Transaction:
    payload = build_audit_payload(GENESIS, **changes)
    return build_transaction(payload, sign_audit(payload))


def _receipt_of_stranger() -> Transaction:
    return build_transaction(OF_STRANGER, sign_receipt(OF_STRANGER, coordinator=STRANGER))


def _audit_of_stranger() -> Transaction:
    payload = build_audit_payload(
        GENESIS, coordinator=STRANGER.account, receipt_id=OF_STRANGER.receipt_id
    )
    return build_transaction(payload, sign_audit(payload, coordinator=STRANGER))
