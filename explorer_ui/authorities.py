"""Changes of the authority set and evidence, in words: who comes and goes, who voted twice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from explorer_ui.sources import Views
from ledger.authorities import Authority, AuthoritySet
from ledger.errors import LedgerError
from ledger.evidence import validate_contradiction, verify_votes
from ledger.transaction import AuthoritySetPayload, EvidencePayload, Signature
from ledger.views import TransactionView

Fate = Literal["stays", "joins", "leaves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberChange:
    """What a change does to one member."""

    fate: Fate
    account: str
    name: str
    """As the next set has it; of one that leaves, as it was."""
    url: str
    old_name: str | None
    """None unless the name changes."""
    old_url: str | None
    """None unless the address changes."""
    signed: bool
    """Whether it signed the change as an authority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFacts:
    """A change of the authority set beside the set that it replaces."""

    epoch: int
    from_height: int | None
    """The first block that the next set certifies; None while pending."""
    expires_height: int
    members: tuple[MemberChange, ...]
    """Those of the next set in its order, then those who leave."""
    entering_coordinators: tuple[str, ...]
    leaving_coordinators: tuple[str, ...]
    deciding: int
    """How many of the old members signed."""
    old_quorum: int
    old_size: int
    quorum: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteFact:
    """One of two contradicting votes."""

    sentence: str
    block_hash: str
    """Empty for a vote that names no block."""
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceFacts:
    """Evidence, judged again on this node when the page is made."""

    accused: str
    name: str | None
    """As the current set has it; None where the accused is no member any more."""
    height: int
    view: int
    votes: tuple[VoteFact, VoteFact]
    offence: str
    """Which rule the two votes break, as a sentence."""
    problem: str
    """Why the two votes do not prove it; empty where they do."""


def describe_change(
    views: Views, transaction: TransactionView, payload: AuthoritySetPayload
) -> ChangeFacts | None:
    """Return what a change does; None where the set before it has not begun on this node."""
    following = payload.authority_set
    old = views.authority_set(following.epoch - 1)
    if old is None:
        return None
    signed = {s.key_id for s in transaction.signatures if s.role == "authority"}
    before = {member.account: member for member in old.members}
    kept = {member.account for member in following.members}
    return ChangeFacts(
        epoch=following.epoch,
        from_height=transaction.height + 1 if transaction.height is not None else None,
        expires_height=payload.expires_height,
        members=(
            *(_describe_member(m, before.get(m.account), signed) for m in following.members),
            *(_describe_leaving(m, signed) for m in old.members if m.account not in kept),
        ),
        entering_coordinators=_missing(following.coordinators, old.coordinators),
        leaving_coordinators=_missing(old.coordinators, following.coordinators),
        deciding=_count_deciding(transaction.signatures, old),
        old_quorum=old.quorum,
        old_size=len(old.members),
        quorum=following.quorum,
        size=len(following.members),
    )


def _describe_member(member: Authority, before: Authority | None, signed: set[str]) -> MemberChange:
    renamed = before is not None and before.name != member.name
    moved = before is not None and before.url != member.url
    return MemberChange(
        fate="stays" if before is not None else "joins",
        account=member.account,
        name=member.name,
        url=member.url,
        old_name=before.name if before is not None and renamed else None,
        old_url=before.url if before is not None and moved else None,
        signed=member.account in signed,
    )


def _describe_leaving(member: Authority, signed: set[str]) -> MemberChange:
    return MemberChange(
        fate="leaves",
        account=member.account,
        name=member.name,
        url=member.url,
        old_name=None,
        old_url=None,
        signed=member.account in signed,
    )


def _missing(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(account for account in ours if account not in theirs)


def _count_deciding(signatures: tuple[Signature, ...], old: AuthoritySet) -> int:
    return sum(s.role == "authority" and old.index_of(s.key_id) is not None for s in signatures)


def describe_evidence(views: Views, payload: EvidencePayload) -> EvidenceFacts:
    """Return what evidence says, and whether it proves it."""
    names = {member.account: member.name for member in views.authorities().members}
    problem = ""
    try:
        validate_contradiction(payload)
        verify_votes(payload)
    except LedgerError as error:
        problem = str(error)
    first, second = (
        VoteFact(
            sentence=f"{vote.kind}, height {payload.height}, view {payload.view}",
            block_hash=vote.block_hash,
            signature=vote.sig,
        )
        for vote in (payload.first, payload.second)
    )
    return EvidenceFacts(
        accused=payload.accused,
        name=names.get(payload.accused),
        height=payload.height,
        view=payload.view,
        votes=(first, second),
        offence=_name_offence(payload),
        problem=problem,
    )


def _name_offence(payload: EvidencePayload) -> str:
    if payload.first.kind != payload.second.kind:
        return (
            "An authority that voted to give a view up must never help to make a block of that "
            "same view final: the two votes can split the chain."
        )
    return (
        "An authority casts one such vote in a view: two for different blocks can split the chain."
    )
