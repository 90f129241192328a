"""What a node knows about the height it decides, and the four rules of a voter.

Safety rests on the rules and on a quorum q = floor(2n/3) + 1, any two of which share an honest
member:

- A view notarizes one block at most: two notarizations of a view would share an honest member
  that notarized both, against R1.
- If b is finalized in view v, view v is never nullified: an honest member would have cast both
  votes, against R2. So a chain of certificates that justifies a proposal in a later view (R4)
  cannot step over v; it ends at a notarization of v or later, which by induction is of b. Hence
  no later view notarizes, and by R3 none finalizes, anything but b.

R3 and R4 also ask for the body: a quorum that decides on a block has it, on disk.
"""

from __future__ import annotations

from collections.abc import Callable

from consensus.messages import Message
from ledger.block import Block, Tip, VoteKind
from ledger.vote import QuorumCertificate, Vote, verify_quorum, verify_vote

MAX_VIEWS_AHEAD = 16
"""Votes for views further ahead are dropped: a member could fill our memory with them. Whoever
fell behind by more catches up by a certificate, which moves it there at once."""

_OPPOSITE: dict[VoteKind, VoteKind] = {"nullify": "finalize", "finalize": "nullify"}


class OpenHeight:
    """Verified facts about one height: votes, certificates, bodies. All only ever grow."""

    def __init__(self, tip: Tip, member: int | None) -> None:
        self.tip = tip
        self.height = tip.height + 1
        self.authority_set = tip.authority_set
        self.member = member
        """Our index in the set, or None for a follower."""
        self.view = 0
        """One above the newest view with a notarization or nullification."""
        self.heard_view = -1
        """Newest view that somebody voted in."""
        self.votes: dict[tuple[int, VoteKind], dict[int, Vote]] = {}
        """First vote of each member by (view, kind). What it holds under our own index counts as
        ours even if we do not remember casting it."""
        self.certificates: dict[tuple[int, VoteKind], QuorumCertificate] = {}
        self.finalization: QuorumCertificate | None = None
        self.blocks: dict[str, Block] = {}
        """Validated bodies by block hash."""

    def find_vote(self, view: int, kind: VoteKind, member: int | None) -> Vote | None:
        """Return the vote of `member` of this kind and view, if known."""
        return None if member is None else self.votes.get((view, kind), {}).get(member)

    def list_own_votes(self) -> list[Vote]:
        """Return every vote of ours."""
        own = (self.find_vote(view, kind, self.member) for view, kind in self.votes)
        return [vote for vote in own if vote is not None]

    def list_news(self, message: Message) -> tuple[list[QuorumCertificate], list[Vote]]:
        """Return the certificates and votes of a message that are new here, all verified.

        Raises:
            InvalidSignatureError, InvalidCertificateError: one does not verify.
        """
        horizon = self.view + MAX_VIEWS_AHEAD
        certificates = []
        for certificate in message.certificates:
            if not self.is_certified(certificate.view, certificate.kind):
                known = self.votes.get((certificate.view, certificate.kind), {})
                verify_quorum(certificate, self.tip, known=frozenset(known.values()))
                certificates.append(certificate)
                horizon = max(horizon, certificate.view + 1 + MAX_VIEWS_AHEAD)
        votes = []
        for vote in message.votes:
            held = self.find_vote(vote.view, vote.kind, vote.member)
            is_new = held is None or held.block_hash != vote.block_hash
            if is_new and vote.view <= horizon:
                verify_vote(vote, self.tip)
                votes.append(vote)
        return certificates, votes

    def find_contradiction(self, vote: Vote) -> Vote | None:
        """Return a known vote that its honest author would not sign besides `vote`."""
        same = self.find_vote(vote.view, vote.kind, vote.member)
        if same is not None and same.block_hash != vote.block_hash:
            return same
        opposite = _OPPOSITE.get(vote.kind)
        return None if opposite is None else self.find_vote(vote.view, opposite, vote.member)

    def add_vote(self, vote: Vote) -> QuorumCertificate | None:
        """Count a verified vote. Return the certificate that it completes."""
        by_member = self.votes.setdefault((vote.view, vote.kind), {})
        by_member.setdefault(vote.member, vote)
        self.heard_view = max(self.heard_view, vote.view)
        alike = {m: v.sig for m, v in by_member.items() if v.block_hash == vote.block_hash}
        if self.is_certified(vote.view, vote.kind) or len(alike) < self.authority_set.quorum:
            return None
        certificate = QuorumCertificate(
            kind=vote.kind,
            view=vote.view,
            block_hash=vote.block_hash,
            votes=tuple(sorted(alike.items())),
        )
        self.add_certificate(certificate)
        return certificate

    def add_certificate(self, certificate: QuorumCertificate) -> None:
        """Learn a verified certificate; one of this view or a later one ends this view."""
        self.certificates[certificate.view, certificate.kind] = certificate
        if certificate.kind == "finalize":
            self.finalization = certificate
        else:
            self.view = max(self.view, certificate.view + 1)

    def is_certified(self, view: int, kind: VoteKind) -> bool:
        """Tell whether the certificate of this view and kind is in hand."""
        return (view, kind) in self.certificates

    def is_notarized(self, block_hash: str) -> bool:
        """Tell whether some view notarized or finalized this block."""
        return any(
            certificate.block_hash == block_hash for certificate in self.certificates.values()
        )

    def proposer(self, view: int) -> int:
        """Return the member that proposes in `view`."""
        return (self.height + view) % len(self.authority_set.members)

    @property
    def is_proposer(self) -> bool:
        """Tell whether it is our turn."""
        return self.proposer(self.view) == self.member

    @property
    def proposal(self) -> str | None:
        """The block hash that this view's proposer has voted for, if known."""
        vote = self.find_vote(self.view, "notarize", self.proposer(self.view))
        return None if vote is None else vote.block_hash

    def list_justification(self) -> list[QuorumCertificate]:
        """Return what justifies a proposal in this view, newest first.

        The nullifications back to the newest notarization, if there is one. Some may be missing
        after a jump; `choose` tells.
        """
        found: list[QuorumCertificate] = []
        for view in reversed(range(self.view)):
            if notarization := self.certificates.get((view, "notarize")):
                return [*found, notarization]
            if nullification := self.certificates.get((view, "nullify")):
                found.append(nullification)
        return found

    def choose(self) -> str | None:
        """Return the hash of the block to propose again in this view, or "" for a fresh one.

        None while the justification has a gap; the others' rebroadcast will close it.
        """
        justification = self.list_justification()
        oldest = justification[-1] if justification else None
        if oldest is not None and oldest.kind == "notarize":
            return oldest.block_hash if len(justification) == self.view - oldest.view else None
        return "" if len(justification) == self.view else None


def votes_once(height: OpenHeight, kind: VoteKind, view: int, block_hash: str) -> bool:
    """R1: one vote of each kind in a view."""
    del block_hash
    return height.find_vote(view, kind, height.member) is None


def never_both(height: OpenHeight, kind: VoteKind, view: int, block_hash: str) -> bool:
    """R2: never both nullify and finalize in a view."""
    del block_hash
    return height.find_vote(view, _OPPOSITE[kind], height.member) is None


def holds_notarization(height: OpenHeight, kind: VoteKind, view: int, block_hash: str) -> bool:
    """R3: finalize with the notarization in hand and the body validated."""
    del kind
    notarization = height.certificates.get((view, "notarize"))
    is_same = notarization is not None and notarization.block_hash == block_hash
    return is_same and block_hash in height.blocks


def is_justified(height: OpenHeight, kind: VoteKind, view: int, block_hash: str) -> bool:
    """R4: notarize, body validated, what certificates of all earlier views allow.

    Going back from `view`, each earlier view is either nullified and may be passed over, or it
    notarized this very block. A fresh block stands on nullifications alone, and its proposer is
    the one whose turn it is.
    """
    del kind
    if block_hash not in height.blocks:
        return False
    for earlier in reversed(range(view)):
        notarization = height.certificates.get((earlier, "notarize"))
        if notarization is not None and notarization.block_hash == block_hash:
            return True
        if not height.is_certified(earlier, "nullify"):
            return False
    proposer = height.authority_set.members[height.proposer(view)]
    return height.blocks[block_hash].header.proposer == proposer.account


Rule = Callable[[OpenHeight, VoteKind, int, str], bool]

RULES: dict[VoteKind, tuple[Rule, ...]] = {
    "notarize": (votes_once, is_justified),
    "nullify": (votes_once, never_both),
    "finalize": (votes_once, never_both, holds_notarization),
}
"""Every rule that a vote must obey. The database holds R1 and R2 a second time."""


def may_vote(height: OpenHeight, kind: VoteKind, view: int, block_hash: str) -> bool:
    """Tell whether the rules allow our vote."""
    return all(rule(height, kind, view, block_hash) for rule in RULES[kind])
