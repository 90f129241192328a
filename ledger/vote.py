"""Votes, the certificates they add up to, and the blocks they are about.

This is what an authority keeps of its open height and sends to its peers. Height and genesis are
not repeated in every vote: they stand once in what carries the votes, and every signature covers
them. `kind` is `notarize`, `nullify` or `finalize`; a nullify vote names no block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from ledger.authorities import MAX_AUTHORITIES
from ledger.block import (
    Block,
    Certificate,
    Header,
    Tip,
    VoteKind,
    build_vote_message,
    hash_header,
    validate_voters,
)
from ledger.encoding import OptionalHex32, decode, encode, prepare
from ledger.errors import (
    EncodingError,
    InvalidBlockError,
    InvalidCertificateError,
    InvalidSignatureError,
)
from ledger.evidence import sort_votes
from ledger.keys import KeyPair, verify_signature
from ledger.payloads import SignedVote
from ledger.transaction import (
    Envelope,
    EvidencePayload,
    Transaction,
    build_transaction,
    parse_transaction,
)

MAX_VIEWS = 10_000
"""Views of one height. A proposal carries a nullification of every failed view, so their number
is bounded; at 30 s a view this one is reached after three and a half days without a block."""
MAX_BLOCK_TRANSACTIONS = 65_536
"""The highest value that a genesis may set."""
MAX_BLOCK_DOCUMENT_BYTES = 80 << 20

View = Annotated[int, msgspec.Meta(ge=0, lt=MAX_VIEWS)]
MemberIndex = Annotated[int, msgspec.Meta(ge=0, lt=MAX_AUTHORITIES)]
SignatureText = Annotated[str, msgspec.Meta(max_length=86)]


class Vote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signed statement of one member about one view of a height."""

    kind: VoteKind
    view: View
    block_hash: OptionalHex32
    """Empty in a nullify vote."""
    member: MemberIndex
    sig: SignatureText


class QuorumCertificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same vote of at least a quorum: a notarization, nullification or finalization."""

    kind: VoteKind
    view: View
    block_hash: OptionalHex32
    votes: Annotated[
        tuple[tuple[MemberIndex, SignatureText], ...], msgspec.Meta(max_length=MAX_AUTHORITIES)
    ]
    """(authority index, base64url signature), by ascending index."""


class BlockDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A header and its body as one document, for the wire and for `votes.db`."""

    header: Header
    transactions: Annotated[tuple[Envelope, ...], msgspec.Meta(max_length=MAX_BLOCK_TRANSACTIONS)]


prepare(Vote, QuorumCertificate, BlockDocument)


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRecord:
    """What one member must not forget about one height.

    The engine gives out what is new, the store adds it up, a restart gets the sum back.
    """

    height: int
    votes: tuple[Vote, ...] = ()
    """The member's own."""
    blocks: tuple[Block, ...] = ()
    """Validated bodies."""
    certificates: tuple[QuorumCertificate, ...] = ()
    """Notarizations and nullifications. A finalization goes to the ledger, with its block."""


def cast_vote(
    key: KeyPair, *, member: int, tip: Tip, kind: VoteKind, view: int, block_hash: str
) -> Vote:
    """Sign a vote on the height after `tip`. Whether it may be cast is the caller's question."""
    sig = key.sign(_vote_message(tip, kind, view, block_hash))
    return Vote(kind=kind, view=view, block_hash=block_hash, member=member, sig=sig)


def verify_vote(vote: Vote, tip: Tip) -> None:
    """Check that a member of the set after `tip` cast `vote` on the height after it.

    Raises:
        InvalidSignatureError: no such member, a shape that no vote has, or a wrong signature.
    """
    members = tip.authority_set.members
    if vote.member >= len(members):
        raise InvalidSignatureError(f"vote: member {vote.member} of {len(members)} does not exist")
    if (vote.kind == "nullify") != (vote.block_hash == ""):
        raise InvalidSignatureError("vote: all but nullify votes name a block, got another form")
    message = _vote_message(tip, vote.kind, vote.view, vote.block_hash)
    verify_signature(members[vote.member].account, message, vote.sig)


def list_votes(certificate: QuorumCertificate) -> list[Vote]:
    """Return the votes that a certificate holds."""
    return [
        Vote(
            kind=certificate.kind,
            view=certificate.view,
            block_hash=certificate.block_hash,
            member=member,
            sig=sig,
        )
        for member, sig in certificate.votes
    ]


def verify_quorum(
    certificate: QuorumCertificate, tip: Tip, *, known: frozenset[Vote] = frozenset()
) -> None:
    """Check that a quorum of distinct members cast the votes. Votes in `known` are not rechecked.

    Raises:
        InvalidCertificateError: too few, the same member twice, or a vote that does not verify.
    """
    validate_voters([member for member, _ in certificate.votes], tip.authority_set)
    for vote in list_votes(certificate):
        if vote in known:
            continue
        try:
            verify_vote(vote, tip)
        except InvalidSignatureError as error:
            raise InvalidCertificateError(
                f"certificate: vote of member {vote.member}: {error}"
            ) from error


def build_evidence(first: Vote, second: Vote, tip: Tip) -> Transaction:
    """Return the evidence that two contradicting votes on the height after `tip` are.

    They were verified and are one member's, of one view; their order does not matter.
    """
    signed = [
        SignedVote(kind=vote.kind, block_hash=vote.block_hash, sig=vote.sig)
        for vote in (first, second)
    ]
    earlier, later = sort_votes(*signed)
    payload = EvidencePayload(
        genesis=tip.genesis_hash.hex(),
        accused=tip.authority_set.members[first.member].account,
        height=tip.height + 1,
        view=first.view,
        first=earlier,
        second=later,
    )
    return build_transaction(payload, [])


def build_finality_certificate(finalization: QuorumCertificate) -> Certificate:
    """Return a finalization in the form that the chain stores for its block."""
    return Certificate(view=finalization.view, votes=finalization.votes)


def build_block_document(block: Block) -> BlockDocument:
    """Return the one-document form of a block."""
    envelopes = (Envelope(payload=t.payload, signatures=t.signatures) for t in block.transactions)
    return BlockDocument(header=block.header, transactions=tuple(envelopes))


def encode_block(block: Block) -> bytes:
    """Return the canonical bytes of header and body."""
    return encode(build_block_document(block))


def read_block_document(document: BlockDocument) -> Block:
    """Return the block that a document holds. Says nothing yet about its validity.

    Raises:
        InvalidTransactionError: an envelope with unsorted signatures, or too long.
    """
    return Block(
        hash=hash_header(document.header),
        header=document.header,
        transactions=tuple(
            parse_transaction(encode(envelope)) for envelope in document.transactions
        ),
    )


def parse_block(data: bytes) -> Block:
    """Parse the bytes of `encode_block`.

    Raises:
        InvalidBlockError: not such a document.
        InvalidTransactionError: an envelope with unsorted signatures, or too long.
    """
    try:
        document = decode(data, BlockDocument, max_bytes=MAX_BLOCK_DOCUMENT_BYTES)
    except EncodingError as error:
        raise InvalidBlockError(f"block: {error}") from error
    return read_block_document(document)


def _vote_message(tip: Tip, kind: VoteKind, view: int, block_hash: str) -> bytes:
    return build_vote_message(
        genesis_hash=tip.genesis_hash,
        kind=kind,
        height=tip.height + 1,
        view=view,
        block_hash=bytes.fromhex(block_hash) if block_hash else None,
    )
