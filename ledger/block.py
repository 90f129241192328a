r"""Genesis, headers, votes and finality certificates.

    genesis hash = BLAKE3(`aitbc/genesis/v1\n` ‖ JCS(genesis))
    block hash   = BLAKE3(`aitbc/block/v1\n` ‖ JCS(header))

A header carries no view number, so a block that is proposed again keeps its hash. The first block
has height 1 and the genesis hash as its `prev_hash`. A certificate has one form for one authority
and for a hundred: `finalize` votes of at least a quorum, indexed into the authority set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NewType

import msgspec

from ledger.authorities import (
    MAX_AUTHORITIES,
    AuthoritySet,
    hash_authority_set,
    validate_authority_set,
)
from ledger.encoding import Count, Hex32, decode, encode, prepare
from ledger.errors import (
    EncodingError,
    InvalidBlockError,
    InvalidCertificateError,
    InvalidSignatureError,
)
from ledger.hashing import BLOCK_DOMAIN, GENESIS_DOMAIN, hash_object
from ledger.keys import verify_signature
from ledger.payloads import AuthoritySetPayload
from ledger.payloads import VoteKind as VoteKind  # votes are this module's; evidence needs them too
from ledger.transaction import Transaction

BlockHash = NewType("BlockHash", bytes)

MAX_HEADER_BYTES = 4096
MAX_CERTIFICATE_BYTES = 16 * 1024


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds that every node of a network applies alike."""

    max_block_transactions: Annotated[int, msgspec.Meta(ge=1, le=65536)] = 4096
    max_block_bytes: Annotated[int, msgspec.Meta(ge=65536, le=64 << 20)] = 8 << 20
    """Sum of the envelopes' sizes."""


class Genesis(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one document a verifier must trust."""

    v: Literal[1] = 1
    network: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
    created_ms: Count
    authority_set: AuthoritySet
    limits: Limits
    settlement: Literal["off_chain"]
    """Receipts state what is owed; no balance lives on the chain."""


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a block hash covers."""

    v: Literal[1] = 1
    genesis: Hex32
    height: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    prev_hash: Hex32
    time_ms: Count
    """Proposer's clock, strictly above the parent's."""
    tree_size: Count
    """Leaves of the global tree including this block's."""
    tree_root: Hex32
    set_hash: Hex32
    """The authority set that certifies this block."""
    next_set_hash: Hex32
    """The authority set that certifies the next one."""
    proposer: Annotated[str, msgspec.Meta(max_length=90)]


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proof of finality of one block: `finalize` votes of one view."""

    view: Count
    votes: Annotated[
        tuple[tuple[Annotated[int, msgspec.Meta(ge=0, lt=MAX_AUTHORITIES)], str], ...],
        msgspec.Meta(max_length=MAX_AUTHORITIES),
    ]
    """(authority index, base64url signature), by ascending index."""


prepare(Genesis, Header, Certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A header with its body, and the hash that names it."""

    hash: BlockHash
    header: Header
    transactions: tuple[Transaction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBlock:
    """A block whose certificate and transactions were verified, but not its place in the chain."""

    block: Block
    certificate: Certificate
    set_hash: bytes
    """Hash of the authority set they were verified under; it must be the chain's at that height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tip:
    """Everything about the newest final block that the next one is checked against."""

    genesis_hash: bytes
    height: int
    """0 at genesis."""
    hash: bytes
    time_ms: int
    tree_size: int
    authority_set: AuthoritySet
    """The set that certifies the next block."""
    limits: Limits


def hash_genesis(genesis: Genesis) -> bytes:
    """Return the 32 bytes that name a network."""
    return hash_object(GENESIS_DOMAIN, encode(genesis))


def hash_header(header: Header) -> BlockHash:
    """Return the block hash."""
    return BlockHash(hash_object(BLOCK_DOMAIN, encode(header)))


def advance_tip(tip: Tip, block: Block) -> Tip:
    """Return the state after `block`, which was validated on `tip`."""
    return Tip(
        genesis_hash=tip.genesis_hash,
        height=block.header.height,
        hash=block.hash,
        time_ms=block.header.time_ms,
        tree_size=block.header.tree_size,
        authority_set=find_next_set(block.transactions) or tip.authority_set,
        limits=tip.limits,
    )


def find_next_set(transactions: Iterable[Transaction]) -> AuthoritySet | None:
    """Return the authority set that a block of `transactions` makes; None if it changes nothing."""
    for transaction in transactions:
        if isinstance(transaction.payload, AuthoritySetPayload):
            return transaction.payload.authority_set
    return None


def build_tip(header: Header, *, authority_set: AuthoritySet, limits: Limits) -> Tip:
    """Return the tip after a final block; `authority_set` is the one of its `next_set_hash`."""
    return Tip(
        genesis_hash=bytes.fromhex(header.genesis),
        height=header.height,
        hash=hash_header(header),
        time_ms=header.time_ms,
        tree_size=header.tree_size,
        authority_set=authority_set,
        limits=limits,
    )


def build_genesis_tip(genesis: Genesis) -> Tip:
    """Return the state before the first block."""
    digest = hash_genesis(genesis)
    return Tip(
        genesis_hash=digest,
        height=0,
        hash=digest,
        time_ms=genesis.created_ms,
        tree_size=0,
        authority_set=genesis.authority_set,
        limits=genesis.limits,
    )


def parse_genesis(data: bytes) -> Genesis:
    """Parse a genesis file: canonical JSON, with one optional line feed at its end.

    Raises:
        InvalidBlockError: not a genesis document.
    """
    try:
        genesis = decode(data.removesuffix(b"\n"), Genesis)
    except EncodingError as error:
        raise InvalidBlockError(f"genesis: {error}") from error
    validate_authority_set(genesis.authority_set)
    if genesis.authority_set.epoch != 0:
        raise InvalidBlockError(
            f"genesis: expected authority set of epoch 0, got {genesis.authority_set.epoch}"
        )
    return genesis


def parse_header(data: bytes) -> Header:
    """Parse canonical header bytes.

    Raises:
        InvalidBlockError: not a header.
    """
    try:
        return decode(data, Header, max_bytes=MAX_HEADER_BYTES)
    except EncodingError as error:
        raise InvalidBlockError(f"header: {error}") from error


def parse_certificate(data: bytes) -> Certificate:
    """Parse canonical certificate bytes.

    Raises:
        InvalidCertificateError: not a certificate.
    """
    try:
        return decode(data, Certificate, max_bytes=MAX_CERTIFICATE_BYTES)
    except EncodingError as error:
        raise InvalidCertificateError(f"certificate: {error}") from error


def build_vote_message(
    *, genesis_hash: bytes, kind: VoteKind, height: int, view: int, block_hash: bytes | None
) -> bytes:
    """Return the fixed ASCII bytes of a vote. A nullify vote names no block."""
    block = block_hash.hex() if block_hash is not None else "-"
    return f"aitbc/vote/v1\n{genesis_hash.hex()}\n{kind}\n{height}\n{view}\n{block}\n".encode()


def verify_certificate(
    certificate: Certificate, *, header: Header, authority_set: AuthoritySet
) -> None:
    """Check that at least a quorum of `authority_set` finalized `header`.

    Raises:
        InvalidCertificateError: another set, too few votes, duplicates or a bad signature.
    """
    if hash_authority_set(authority_set).hex() != header.set_hash:
        raise InvalidCertificateError("certificate: the header names another authority set")
    validate_voters([index for index, _ in certificate.votes], authority_set)
    message = build_vote_message(
        genesis_hash=bytes.fromhex(header.genesis),
        kind="finalize",
        height=header.height,
        view=certificate.view,
        block_hash=hash_header(header),
    )
    for index, signature in certificate.votes:
        try:
            verify_signature(authority_set.members[index].account, message, signature)
        except InvalidSignatureError as error:
            raise InvalidCertificateError(
                f"certificate: vote of member {index}: {error}"
            ) from error


def validate_voters(indexes: Sequence[int], authority_set: AuthoritySet) -> None:
    """Check that `indexes` are a quorum of distinct members in ascending order.

    Raises:
        InvalidCertificateError: they are not.
    """
    if len(indexes) < authority_set.quorum:
        raise InvalidCertificateError(
            f"certificate: expected at least {authority_set.quorum} votes "
            f"of {len(authority_set.members)}, got {len(indexes)}"
        )
    if list(indexes) != sorted(set(indexes)):
        raise InvalidCertificateError("certificate: expected distinct voters in ascending order")
    if indexes[-1] >= len(authority_set.members):
        raise InvalidCertificateError(
            f"certificate: member {indexes[-1]} of {len(authority_set.members)} does not exist"
        )
