r"""Transactions: signed statements about the market, each named by the hash of its payload.

    envelope = JCS({"payload": {…}, "signatures": [{"key_id", "role", "sig"}, …]})
    signed message = `aitbc/tx/v1\n` ‖ JCS(payload)
    transaction id = BLAKE3(signed message)

The id leaves the signatures out, so it is known before anybody signs. Signatures are sorted by
(role, key_id) and distinct. A payload names its genesis: no replay on another chain. Which
signatures a payload needs, and what its fields may say together, is decided in `rules.py`.

Text never enters a payload: prompts, results and token ids appear as salted digests.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal, NewType

import msgspec

from ledger.encoding import (
    Count,
    Hex32,
    OptionalHex32,
    decode,
    encode,
)
from ledger.errors import EncodingError, InvalidTransactionError
from ledger.hashing import TRANSACTION_DOMAIN, hash_object
from ledger.keys import KeyPair

TransactionId = NewType("TransactionId", bytes)

MAX_ENVELOPE_BYTES = 64 * 1024 - 1
"""What the two bytes can say that stand before an envelope in an entry bundle (`tiles.py`)."""
MAX_SIGNATURES = 256
MICROS = 1_000_000
"""Micros in one unit or one price."""

Identifier = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}\Z")]
"""A client, or a miner without a key: letters, digits and `_ . : @ -`, at most 128."""
JobId = Annotated[str, msgspec.Meta(pattern=r"^job_[0-9A-HJKMNP-TV-Z]{26}\Z")]
ReceiptId = Annotated[str, msgspec.Meta(pattern=r"^rcp_[a-z2-7]{26}\Z")]
ModelName = Annotated[
    str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")
]
Role = Literal["auditor", "authority", "coordinator", "provider"]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of an envelope."""

    key_id: Annotated[str, msgspec.Meta(max_length=90)]
    """The signer's `ait1…` account."""
    role: Role
    sig: Annotated[str, msgspec.Meta(max_length=86)]
    """Ed25519 signature as unpadded base64url."""


class ReceiptPayload(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="type",
    tag="receipt",
):
    """A completed job: who ran what for whom, how much of it, at what price."""

    v: Literal[1] = 1
    genesis: Hex32
    receipt_id: ReceiptId
    """Fixed by genesis, coordinator and job: a job has one receipt at most."""
    job_id: JobId
    attempt: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    client: Identifier
    provider: Identifier
    """The miner's account, or the name of a miner that has no key."""
    coordinator: Identifier
    model: ModelName
    model_digest: OptionalHex32
    """BLAKE3 over the manifest of the model's files, as the provider reports it."""
    prompt_digest: Hex32
    result_digest: Hex32
    tokens_digest: OptionalHex32
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    temperature_micros: Annotated[int, msgspec.Meta(ge=0, le=2 * MICROS)]
    top_p_micros: Annotated[int, msgspec.Meta(ge=1, le=MICROS)]
    seed: Count
    """Chosen by the client or drawn by the coordinator, never by the provider."""
    sampler: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.-]{0,64}\Z")]
    """Name of the sampling procedure, or empty where the provider names none."""
    prompt_tokens: Count
    completion_tokens: Count
    unit_type: Literal["gpu_seconds", "tokens"]
    units_micros: Count
    price_micros: Count
    started_at_ms: Count
    completed_at_ms: Count
    metered_by: Literal["coordinator", "provider"]


Payload = ReceiptPayload
"""Every payload type this version knows; others are refused."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is hashed into the tree, stored and sent."""

    payload: Payload
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=MAX_SIGNATURES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """An envelope that was parsed or built here, with the exact bytes it has."""

    id: TransactionId
    payload: Payload
    signatures: tuple[Signature, ...]
    envelope: bytes


def build_signed_message(payload: Payload) -> bytes:
    """Return the bytes that every signer of `payload` signs."""
    return TRANSACTION_DOMAIN + encode(payload)


def hash_payload(payload: Payload) -> TransactionId:
    """Return the transaction id of `payload`."""
    return TransactionId(hash_object(TRANSACTION_DOMAIN, encode(payload)))


def sign_payload(payload: Payload, key: KeyPair, role: Role) -> Signature:
    """Sign `payload` in one role."""
    return Signature(key_id=key.account, role=role, sig=key.sign(build_signed_message(payload)))


def build_transaction(payload: Payload, signatures: Iterable[Signature]) -> Transaction:
    """Assemble an envelope; the order of `signatures` does not matter.

    It is parsed again, since a struct built in memory may hold values that no node accepts.

    Raises:
        InvalidTransactionError: a value is out of bounds, or two signatures are of one signer.
    """
    ordered = tuple(sorted(signatures, key=_signature_order))
    return parse_transaction(encode(Envelope(payload=payload, signatures=ordered)))


def parse_transaction(envelope: bytes) -> Transaction:
    """Parse canonical envelope bytes. Says nothing yet about signatures or rules.

    Raises:
        InvalidTransactionError: not canonical, unknown type or field, or a value out of bounds.
    """
    try:
        parsed = decode(envelope, Envelope, max_bytes=MAX_ENVELOPE_BYTES)
    except EncodingError as error:
        raise InvalidTransactionError(f"envelope: {error}") from error
    order = [_signature_order(signature) for signature in parsed.signatures]
    if any(earlier >= later for earlier, later in itertools.pairwise(order)):
        raise InvalidTransactionError("signatures: expected distinct ones, sorted by role, key_id")
    return Transaction(
        id=hash_payload(parsed.payload),
        payload=parsed.payload,
        signatures=parsed.signatures,
        envelope=envelope,
    )


def _signature_order(signature: Signature) -> tuple[str, str]:
    return signature.role, signature.key_id
