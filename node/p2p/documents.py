"""The documents that nodes exchange besides consensus messages and blocks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from ledger.encoding import Count, Hex32, encode, prepare
from ledger.errors import InvalidTransactionError
from ledger.transaction import MAX_ENVELOPE_BYTES, Transaction, parse_transaction

MAX_STATUS_BYTES = 4096
MAX_GOSSIP_TRANSACTIONS = 512
MAX_GOSSIP_BYTES = 2 << 20
"""Of one document. A single envelope always fits."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself. Nobody signs it: it is a hint where to look for blocks.

    Unknown fields are skipped, so that a later release may say more.
    """

    v: Literal[1] = 1
    genesis: Hex32
    account: Annotated[str, msgspec.Meta(max_length=90)]
    """Whose key votes and coordinates here; empty for a follower."""
    height: Count
    """Of the newest final block."""
    hash: Hex32
    release: Annotated[str, msgspec.Meta(max_length=32)]


class _Gossip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    genesis: Hex32
    transactions: Annotated[
        tuple[msgspec.Raw, ...], msgspec.Meta(max_length=MAX_GOSSIP_TRANSACTIONS)
    ]


prepare(Status, _Gossip)


def parse_status(data: bytes) -> Status:
    """Parse another node's status.

    Raises:
        InvalidTransactionError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Status)
    except (ValueError, RecursionError) as error:
        raise InvalidTransactionError(f"status: {error}") from error


def build_gossip(genesis_hash: bytes, envelopes: Iterable[bytes]) -> bytes:
    """Return the document that hands on `envelopes`, which are canonical already."""
    raw = tuple(msgspec.Raw(envelope) for envelope in envelopes)
    return encode(_Gossip(genesis=genesis_hash.hex(), transactions=raw))


def parse_gossip(data: bytes, *, genesis_hash: bytes) -> list[Transaction]:
    """Parse transactions that another coordinator hands on; their signatures are not checked.

    Raises:
        InvalidTransactionError: no such document, one of another network, or a bad envelope.
    """
    try:
        gossip = msgspec.json.decode(data, type=_Gossip)
    except (ValueError, RecursionError) as error:
        raise InvalidTransactionError(f"transactions: {error}") from error
    if gossip.genesis != genesis_hash.hex():
        raise InvalidTransactionError("transactions: they belong to another network")
    return [parse_transaction(bytes(raw)) for raw in gossip.transactions]


assert MAX_ENVELOPE_BYTES <= MAX_GOSSIP_BYTES
