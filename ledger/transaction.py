r"""Transactions: signed statements about the market, each named by the hash of its payload.

    envelope = JCS({"payload": {…}, "signatures": [{"key_id", "role", "sig"}, …]})
    signed message = `aitbc/tx/v1\n` ‖ JCS(payload)
    transaction id = BLAKE3(signed message)

The id leaves the signatures out, so it is known before anybody signs. Signatures are sorted by
(role, key_id) and distinct. What payloads there are is said in `payloads.py`; which signatures each
needs, and what its fields may say together, is decided in `rules.py`.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NewType

import msgspec

from ledger.encoding import decode, encode, prepare
from ledger.errors import EncodingError, InvalidSignatureError, InvalidTransactionError
from ledger.hashing import TRANSACTION_DOMAIN, hash_object
from ledger.keys import KeyPair, verify_signature
from ledger.payloads import (
    MICROS,
    AccountText,
    AuditPayload,
    AuthoritySetPayload,
    EvidencePayload,
    Identifier,
    Payload,
    ReceiptPayload,
    SignatureText,
    name_type,
)

__all__ = [
    "MAX_ENVELOPE_BYTES",
    "MAX_SIGNATURES",
    "MICROS",
    "AuditPayload",
    "AuthoritySetPayload",
    "Envelope",
    "EvidencePayload",
    "Identifier",
    "Payload",
    "ReceiptPayload",
    "Role",
    "Signature",
    "Transaction",
    "TransactionId",
    "build_signed_message",
    "build_transaction",
    "hash_payload",
    "parse_transaction",
    "sign_payload",
    "sign_transaction",
    "verify_signers",
]

TransactionId = NewType("TransactionId", bytes)

MAX_ENVELOPE_BYTES = 64 * 1024 - 1
"""What the two bytes can say that stand before an envelope in an entry bundle (`tiles.py`)."""
MAX_SIGNATURES = 256
_BEFORE_PAYLOAD, _BETWEEN, _BEHIND = b'{"payload":', b',"signatures":', b"}"
"""What stands around the two parts of an envelope."""
_REMEMBERED = 2048
_MAX_REMEMBERED_BYTES = 2048
"""Of an envelope; a receipt's has about 1500. Together about 10 MB."""

Role = Literal["auditor", "authority", "coordinator", "provider"]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of an envelope."""

    key_id: AccountText
    """The signer's `ait1…` account."""
    role: Role
    sig: SignatureText


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hashed into the tree, stored and sent."""

    payload: Payload
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


prepare(Envelope)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An envelope that was parsed or built here, with the exact bytes it has."""

    id: TransactionId
    payload: Payload
    signatures: tuple[Signature, ...]
    envelope: bytes
    payload_end: int
    """Where the payload ends in the envelope."""

    @property
    def signed_message(self) -> bytes:
        """What every signer has signed, as `build_signed_message` writes it."""
        return TRANSACTION_DOMAIN + self.envelope[len(_BEFORE_PAYLOAD) : self.payload_end]

    @property
    def type(self) -> str:
        """`receipt`, `audit`, `authority_set` or `evidence`."""
        return name_type(self.payload)


def build_signed_message(payload: Payload) -> bytes:
    """Return the bytes that every signer of `payload` signs."""
    return TRANSACTION_DOMAIN + encode(payload)


def hash_payload(payload: Payload) -> TransactionId:
    """Return the transaction id of `payload`."""
    return TransactionId(hash_object(TRANSACTION_DOMAIN, encode(payload)))


def sign_payload(payload: Payload, key: KeyPair, role: Role) -> Signature:
    """Sign `payload` in one role."""
    return Signature(key_id=key.account, role=role, sig=key.sign(build_signed_message(payload)))


def verify_signers(transaction: Transaction, expected: Sequence[tuple[Role, str]]) -> None:
    """Check that just these have signed, in envelope order, and that every signature is good.

    Raises:
        InvalidSignatureError: a signature is missing, spare or wrong.
    """
    given = [(signature.role, signature.key_id) for signature in transaction.signatures]
    if given != list(expected):
        raise InvalidSignatureError(f"signers: expected {expected}, got {given}")
    message = transaction.signed_message
    for signature in transaction.signatures:
        verify_signature(signature.key_id, message, signature.sig)


def build_transaction(payload: Payload, signatures: Iterable[Signature]) -> Transaction:
    """Assemble an envelope; the order of `signatures` does not matter.

    It is parsed again, since a struct built in memory may hold values that no node accepts.

    Raises:
        InvalidTransactionError: a value is out of bounds, or two signatures are of one signer.
    """
    ordered = tuple(sorted(signatures, key=_signature_order))
    return parse_transaction(encode(Envelope(payload=payload, signatures=ordered)))


def sign_transaction(
    payload: Payload, key: KeyPair, role: Role, others: Iterable[Signature]
) -> Transaction:
    """Sign a payload and assemble its envelope, with the signatures of others.

    The payload and they must have been parsed or converted, which has held their values to their
    bounds: then the envelope is what parsing it would give, and is not parsed again.

    Raises:
        InvalidTransactionError: it is too long, or two signatures are of one signer.
    """
    canonical = encode(payload)
    own = Signature(key_id=key.account, role=role, sig=key.sign(TRANSACTION_DOMAIN + canonical))
    signatures = tuple(sorted((own, *others), key=_signature_order))
    _check_order(signatures)
    before = _BEFORE_PAYLOAD + canonical
    envelope = before + _BETWEEN + encode(signatures) + _BEHIND
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise InvalidTransactionError(
            f"envelope: expected at most {MAX_ENVELOPE_BYTES} bytes, got {len(envelope)}"
        )
    made = _build(payload, canonical, signatures, envelope)
    _remember(made)
    return made


def parse_transaction(envelope: bytes) -> Transaction:
    """Parse canonical envelope bytes. Says nothing yet about signatures or rules.

    Raises:
        InvalidTransactionError: not canonical, unknown type or field, or a value out of bounds.
    """
    known = _remembered.get(envelope)
    if known is None:
        known = _parse(envelope)
        _remember(known)
    return known


def _remember(transaction: Transaction) -> None:
    if len(transaction.envelope) <= _MAX_REMEMBERED_BYTES:
        _remembered[transaction.envelope] = transaction
        if len(_remembered) > _REMEMBERED:
            with contextlib.suppress(KeyError):  # several threads forget at once
                _remembered.popitem(last=False)


def _parse(envelope: bytes) -> Transaction:
    try:
        parsed = decode(envelope, Envelope, max_bytes=MAX_ENVELOPE_BYTES)
    except EncodingError as error:
        raise InvalidTransactionError(f"envelope: {error}") from error
    _check_order(parsed.signatures)
    # It is canonical, so the payload's own bytes are a piece of it.
    behind = len(_BETWEEN) + len(encode(parsed.signatures)) + len(_BEHIND)
    canonical = envelope[len(_BEFORE_PAYLOAD) : len(envelope) - behind]
    return _build(parsed.payload, canonical, parsed.signatures, envelope)


def _build(
    payload: Payload, canonical: bytes, signatures: tuple[Signature, ...], envelope: bytes
) -> Transaction:
    return Transaction(
        id=TransactionId(hash_object(TRANSACTION_DOMAIN, canonical)),
        payload=payload,
        signatures=signatures,
        envelope=envelope,
        payload_end=len(_BEFORE_PAYLOAD) + len(canonical),
    )


# The same bytes always say the same. Those of a receipt are read when its block is filled, and
# whenever it is shown while it waits.
_remembered: OrderedDict[bytes, Transaction] = OrderedDict()


def _check_order(signatures: Sequence[Signature]) -> None:
    order = [_signature_order(signature) for signature in signatures]
    if order != sorted(set(order)):
        raise InvalidTransactionError("signatures: expected distinct ones, sorted by role, key_id")


def _signature_order(signature: Signature) -> tuple[str, str]:
    return signature.role, signature.key_id
