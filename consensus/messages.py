"""What nodes say to each other: one kind of message, canonical JSON, bounded.

A message names its network and height and holds whatever its sender knows that the others may
lack: votes, certificates, the block it proposes. An empty one is a heartbeat: "I am deciding this
height". Nobody signs the message itself; every vote in it carries a member's signature, so it is
as good from a stranger as from its author.

A proposal needs no form of its own: it is the proposer's notarize vote for the view, next to the
block and the certificates that justify it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

import msgspec

from ledger.block import Tip
from ledger.encoding import Hex32, decode, prepare
from ledger.errors import EncodingError, InvalidMessageError
from ledger.vote import MAX_VIEWS, BlockDocument, QuorumCertificate, Vote

MAX_MESSAGE_VOTES = 3 * MAX_VIEWS
MAX_MESSAGE_CERTIFICATES = 2 * MAX_VIEWS

_MAX_VOTE_BYTES = 256
_MAX_SIGNATURE_ENTRY_BYTES = 96
_MAX_HEADER_BYTES = 4096


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Votes, certificates and at most one block of one height."""

    v: Literal[1] = 1
    genesis: Hex32
    height: Annotated[int, msgspec.Meta(ge=1, le=2**53 - 1)]
    """The height that the sender is deciding."""
    block: BlockDocument | None = None
    certificates: Annotated[
        tuple[QuorumCertificate, ...], msgspec.Meta(max_length=MAX_MESSAGE_CERTIFICATES)
    ] = ()
    """Distinct, by ascending (view, kind)."""
    votes: Annotated[tuple[Vote, ...], msgspec.Meta(max_length=MAX_MESSAGE_VOTES)] = ()
    """Distinct, by ascending (view, kind, member)."""


prepare(Message)


def build_message(
    tip: Tip,
    *,
    block: BlockDocument | None = None,
    certificates: Iterable[QuorumCertificate] = (),
    votes: Iterable[Vote] = (),
) -> Message:
    """Assemble a message about the height after `tip`."""
    return Message(
        genesis=tip.genesis_hash.hex(),
        height=tip.height + 1,
        block=block,
        certificates=tuple(sorted(certificates, key=_certificate_order)),
        votes=tuple(sorted(votes, key=_vote_order)),
    )


def compute_max_message_bytes(tip: Tip) -> int:
    """Return the size bound of a message: a full block, and a certificate for every view."""
    limits, members = tip.limits, len(tip.authority_set.members)
    block_bytes = _MAX_HEADER_BYTES + limits.max_block_bytes + limits.max_block_transactions
    certificate_bytes = _MAX_VOTE_BYTES + members * _MAX_SIGNATURE_ENTRY_BYTES
    return block_bytes + MAX_VIEWS * certificate_bytes + MAX_MESSAGE_VOTES * _MAX_VOTE_BYTES


def parse_message(data: bytes, *, max_bytes: int) -> Message:
    """Parse the canonical bytes of a message. Says nothing yet about its signatures.

    Raises:
        InvalidMessageError: too long, not canonical, a value out of bounds, or unsorted.
    """
    try:
        message = decode(data, Message, max_bytes=max_bytes)
    except EncodingError as error:
        raise InvalidMessageError(f"message: {error}") from error
    certificates = [_certificate_order(certificate) for certificate in message.certificates]
    votes = [_vote_order(vote) for vote in message.votes]
    # Repeating one valid vote must not buy a peer many signature checks.
    if any(a >= b for a, b in pairwise(certificates)) or any(a >= b for a, b in pairwise(votes)):
        raise InvalidMessageError("message: expected distinct votes and certificates, sorted")
    return message


def _certificate_order(certificate: QuorumCertificate) -> tuple[int, str]:
    return certificate.view, certificate.kind


def _vote_order(vote: Vote) -> tuple[int, str, int]:
    return vote.view, vote.kind, vote.member
