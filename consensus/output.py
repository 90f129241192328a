"""What one step gave: the new facts, gathered while deciding, and turned into effects at its end.

However much a step decides, it persists once and speaks once, in that order.
"""

from __future__ import annotations

from collections.abc import Iterable

from consensus.height import OpenHeight
from consensus.interface import Effect, Persist, Send
from consensus.messages import Message, build_message
from ledger.block import Block
from ledger.vote import QuorumCertificate, Vote, VoteRecord, build_block_document


class Output:
    """The effects of one step in the making."""

    def __init__(self) -> None:
        self.votes: list[Vote] = []
        """Our own, cast in this step or met for the first time."""
        self.blocks: list[Block] = []
        """Validated in this step."""
        self.certificates: list[QuorumCertificate] = []
        """Learned in this step."""
        self.formed: list[QuorumCertificate] = []
        """Those of them that we completed, and the others may not have."""
        self.is_resend = False
        """Say everything again, not only what is new."""
        self.others: list[Effect] = []

    def list_effects(self, height: OpenHeight) -> list[Effect]:
        """Return what the step gave, durability before speech. A follower has neither."""
        if height.member is None:
            return self.others
        effects: list[Effect] = []
        certificates = tuple(c for c in self.certificates if c.kind != "finalize")
        if self.votes or self.blocks or certificates:
            record = VoteRecord(
                height=height.height,
                votes=tuple(self.votes),
                blocks=tuple(self.blocks),
                certificates=certificates,
            )
            effects.append(Persist(record=record))
        if self.is_resend:
            effects.append(Send(message=_build_everything(height)))
        elif self.votes or self.formed:
            effects.append(Send(message=_build_message(height, self.votes, self.formed)))
        return effects + self.others


def _build_everything(height: OpenHeight) -> Message:
    """Return what a peer needs that heard nothing of this height.

    These are the certificates that lead to our view, and our votes, from every view, apart from
    those that a certificate has used up.
    """
    votes = [v for v in height.list_own_votes() if not height.is_certified(v.view, v.kind)]
    certificates = height.list_justification()
    if height.finalization is not None:
        certificates.append(height.finalization)
    return _build_message(height, votes, certificates)


def _build_message(
    height: OpenHeight, votes: Iterable[Vote], certificates: Iterable[QuorumCertificate]
) -> Message:
    block = None
    own = height.find_vote(height.view, "notarize", height.member)
    if own is not None and own in votes and height.proposer(own.view) == own.member:
        block = height.blocks.get(own.block_hash)
        certificates = [*certificates, *height.list_justification()]
    distinct = {(certificate.view, certificate.kind): certificate for certificate in certificates}
    return build_message(
        height.tip,
        block=None if block is None else build_block_document(block),
        certificates=distinct.values(),
        votes=votes,
    )
