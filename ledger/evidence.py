"""When evidence of equivocation is valid: two votes that no honest authority signs both.

Rules R1 and R2 of the protocol forbid two votes of one kind for different blocks in one view, and
nullify beside finalize. Two such votes by one key prove that it was used against the rules,
whoever shows them: evidence carries no signature but the two votes'. It changes nothing by itself:
the authorities decide what follows, with a change of their set.
"""

from __future__ import annotations

from ledger.block import Tip, build_vote_message
from ledger.errors import InvalidSignatureError, InvalidTransactionError
from ledger.keys import verify_signature
from ledger.payloads import SignedVote
from ledger.transaction import EvidencePayload, Transaction


def verify_evidence(transaction: Transaction, payload: EvidencePayload, tip: Tip) -> None:
    """Check evidence for the block after `tip`.

    Raises:
        InvalidTransactionError: another network, a height above the block's, nobody of the current
            set, or two votes that an honest member may sign both.
        InvalidSignatureError: it is signed itself, or a vote is not the accused's.
    """
    genesis = tip.genesis_hash.hex()
    if payload.genesis != genesis:
        raise InvalidTransactionError(
            f"evidence genesis: expected {genesis}, got {payload.genesis}"
        )
    if payload.height > tip.height + 1:
        raise InvalidTransactionError(
            f"evidence height: expected at most {tip.height + 1}, got {payload.height}"
        )
    validate_contradiction(payload)
    if tip.authority_set.index_of(payload.accused) is None:
        raise InvalidTransactionError(
            f"evidence accused: expected an authority, got {payload.accused}"
        )
    if transaction.signatures:
        raise InvalidSignatureError(
            f"evidence signers: expected nobody, got {len(transaction.signatures)}"
        )
    verify_votes(payload)


def validate_contradiction(payload: EvidencePayload) -> None:
    """Check that the two votes exclude each other and stand in their order.

    Raises:
        InvalidTransactionError: they do not.
    """
    first, second = payload.first, payload.second
    for vote in (first, second):
        if (vote.kind == "nullify") != (vote.block_hash == ""):
            raise InvalidTransactionError(
                f"evidence: expected all but nullify votes to name a block, got {vote.kind} "
                f"of {vote.block_hash or 'none'}"
            )
    if _order(first) >= _order(second):
        raise InvalidTransactionError(
            "evidence: expected two different votes, sorted by kind and block_hash"
        )
    if first.kind != second.kind and {first.kind, second.kind} != {"finalize", "nullify"}:
        raise InvalidTransactionError(
            "evidence: expected two votes of one kind, or finalize and nullify; "
            f"{first.kind} and {second.kind} do not contradict each other"
        )


def verify_votes(payload: EvidencePayload) -> None:
    """Check that the accused signed both votes.

    Raises:
        InvalidSignatureError: one of them is not the accused's.
        InvalidKeyError: the accused is no account.
    """
    for vote in (payload.first, payload.second):
        message = build_vote_message(
            genesis_hash=bytes.fromhex(payload.genesis),
            kind=vote.kind,
            height=payload.height,
            view=payload.view,
            block_hash=bytes.fromhex(vote.block_hash) if vote.block_hash else None,
        )
        try:
            verify_signature(payload.accused, message, vote.sig)
        except InvalidSignatureError as error:
            raise InvalidSignatureError(f"evidence: {vote.kind} vote: {error}") from error


def sort_votes(one: SignedVote, other: SignedVote) -> tuple[SignedVote, SignedVote]:
    """Return two votes in the order in which evidence holds them."""
    return (one, other) if _order(one) <= _order(other) else (other, one)


def _order(vote: SignedVote) -> tuple[str, str]:
    return vote.kind, vote.block_hash
