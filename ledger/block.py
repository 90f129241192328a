r"""Genesis, authority sets, headers, votes and finality certificates.

    genesis hash = BLAKE3(`aitbc/genesis/v1\n` ‖ JCS(genesis))
    set hash     = BLAKE3(`aitbc/set/v1\n` ‖ JCS(authority set))
    block hash   = BLAKE3(`aitbc/block/v1\n` ‖ JCS(header))

A header carries no view number, so a block that is proposed again keeps its hash. The first block
has height 1 and the genesis hash as its `prev_hash`. A certificate has one form for one authority
and for a hundred: `finalize` votes of at least a quorum, indexed into the authority set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NewType

import msgspec

from ledger.encoding import Count, Hex32, decode, encode
from ledger.errors import (
    EncodingError,
    InvalidBlockError,
    InvalidCertificateError,
    InvalidKeyError,
    InvalidSignatureError,
)
from ledger.hashing import AUTHORITY_SET_DOMAIN, BLOCK_DOMAIN, GENESIS_DOMAIN, hash_object
from ledger.keys import decode_account, verify_signature
from ledger.transaction import Transaction

BlockHash = NewType("BlockHash", bytes)
Height = NewType("Height", int)

MAX_AUTHORITIES = 100
MAX_HEADER_BYTES = 4096
MAX_CERTIFICATE_BYTES = 16 * 1024

VoteKind = Literal["notarize", "nullify", "finalize"]


class Authority(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One member of an authority set: somebody who seals blocks."""

    account: Annotated[str, msgspec.Meta(max_length=90)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
    url: Annotated[str, msgspec.Meta(max_length=256, pattern=r"^[!-~]*\Z")]
    """Where peers reach it, or empty."""


class AuthoritySet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may seal blocks and who may coordinate jobs, in one epoch."""

    v: Literal[1] = 1
    epoch: Count
    members: Annotated[
        tuple[Authority, ...], msgspec.Meta(min_length=1, max_length=MAX_AUTHORITIES)
    ]
    """Votes name members by their index here."""
    coordinators: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_AUTHORITIES)] = ()
    """Accounts that may coordinate besides the members, sorted."""

    @property
    def quorum(self) -> int:
        """Votes that decide: floor(2n/3) + 1 of n members."""
        return 2 * len(self.members) // 3 + 1

    def allows_coordinator(self, account: str) -> bool:
        """Tell whether `account` may issue receipts. Every authority may."""
        return account in self.coordinators or any(m.account == account for m in self.members)

    def index_of(self, account: str) -> int | None:
        """Return the member index of `account`, or None."""
        return next((i for i, m in enumerate(self.members) if m.account == account), None)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A header with its body, and the hash that names it."""

    hash: BlockHash
    header: Header
    transactions: tuple[Transaction, ...]


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


def hash_authority_set(authority_set: AuthoritySet) -> bytes:
    """Return the set hash that headers carry."""
    return hash_object(AUTHORITY_SET_DOMAIN, encode(authority_set))


def hash_header(header: Header) -> BlockHash:
    """Return the block hash."""
    return BlockHash(hash_object(BLOCK_DOMAIN, encode(header)))


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


def validate_authority_set(authority_set: AuthoritySet) -> None:
    """Check that accounts are well formed, distinct and, for coordinators, sorted.

    Raises:
        InvalidBlockError: they are not.
    """
    accounts = [member.account for member in authority_set.members]
    coordinators = list(authority_set.coordinators)
    try:
        for account in accounts + coordinators:
            decode_account(account)
    except InvalidKeyError as error:
        raise InvalidBlockError(f"authority set: {error}") from error
    if len(set(accounts)) != len(accounts):
        raise InvalidBlockError("authority set: one account stands in it twice")
    if coordinators != sorted(set(coordinators)):
        raise InvalidBlockError("authority set: coordinators must be distinct and sorted")


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
