"""When a change of the authority set is valid. Pure functions, judged on the tip it would extend.

The current set decides: a quorum of its members signs the next set, whole, as `authority`. Whoever
enters signs too, so nobody is named whose key does not exist: a new member as `authority`, a new
coordinator as `coordinator`. The epoch is one higher, so a change fits one set once; it expires at
a height, so signatures that were collected and never used do not lie about for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ledger.authorities import AuthoritySet, validate_authority_set
from ledger.block import Tip
from ledger.errors import InvalidBlockError, InvalidSignatureError, InvalidTransactionError
from ledger.keys import verify_signature
from ledger.transaction import (
    AuthoritySetPayload,
    Role,
    Signature,
    Transaction,
    build_signed_message,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """Who may sign a change, and who must."""

    deciding: frozenset[str]
    """Members of the current set, of whom a quorum has to sign as `authority`."""
    quorum: int
    joining: frozenset[str]
    """Accounts that become members: each has to sign as `authority`."""
    coordinating: frozenset[str]
    """Accounts that become coordinators: each has to sign as `coordinator`."""


def list_change_signers(payload: AuthoritySetPayload, current: AuthoritySet) -> Signers:
    """Return who signs the change from `current` to the set of `payload`."""
    following = payload.authority_set
    members = frozenset(member.account for member in current.members)
    return Signers(
        deciding=members,
        quorum=current.quorum,
        joining=frozenset(member.account for member in following.members) - members,
        coordinating=frozenset(following.coordinators) - members - frozenset(current.coordinators),
    )


def verify_change(transaction: Transaction, payload: AuthoritySetPayload, tip: Tip) -> None:
    """Check a change of the authority set for the block after `tip`.

    Raises:
        InvalidTransactionError: a stale or skipped epoch, an expired change, or no such set.
        InvalidSignatureError: a signature is missing, spare or wrong.
    """
    validate_change(payload, tip)
    signers = list_change_signers(payload, tip.authority_set)
    _validate_signers(transaction.signatures, signers)
    message = build_signed_message(payload)
    for signature in transaction.signatures:
        verify_signature(signature.key_id, message, signature.sig)


def validate_change(payload: AuthoritySetPayload, tip: Tip) -> None:
    """Check what a change says, leaving its signatures alone: a draft is checked like this too.

    Raises:
        InvalidTransactionError: another network, a stale or skipped epoch, expired, or no such set.
    """
    following, genesis, height = payload.authority_set, tip.genesis_hash.hex(), tip.height + 1
    if payload.genesis != genesis:
        raise InvalidTransactionError(
            f"authority_set genesis: expected {genesis}, got {payload.genesis}"
        )
    if following.epoch != tip.authority_set.epoch + 1:
        raise InvalidTransactionError(
            f"authority_set epoch: expected {tip.authority_set.epoch + 1}, got {following.epoch}"
        )
    if height > payload.expires_height:
        raise InvalidTransactionError(
            f"authority_set expires_height: expected at least height {height}, "
            f"got {payload.expires_height}"
        )
    try:
        validate_authority_set(following)
    except InvalidBlockError as error:
        raise InvalidTransactionError(f"authority_set: {error}") from error


def count_deciding(signatures: Iterable[Signature], signers: Signers) -> int:
    """Return how many members of the current set signed. Says nothing about the signatures."""
    return sum(s.role == "authority" and s.key_id in signers.deciding for s in signatures)


def find_missing(signatures: Iterable[Signature], signers: Signers) -> list[tuple[Role, str]]:
    """Return whoever enters and has not signed, in envelope order."""
    given = {(signature.role, signature.key_id) for signature in signatures}
    authorities: list[tuple[Role, str]] = [("authority", account) for account in signers.joining]
    coordinators: list[tuple[Role, str]] = [("coordinator", a) for a in signers.coordinating]
    return sorted({*authorities, *coordinators} - given)


def has_say(role: Role, account: str, signers: Signers) -> bool:
    """Tell whether a signature in this role counts for anything; otherwise it must not be there."""
    if role == "authority":
        return account in signers.deciding or account in signers.joining
    return role == "coordinator" and account in signers.coordinating


def _validate_signers(signatures: tuple[Signature, ...], signers: Signers) -> None:
    for signature in signatures:
        if not has_say(signature.role, signature.key_id, signers):
            raise InvalidSignatureError(
                f"authority_set signers: {signature.key_id} has no say as {signature.role}"
            )
    if missing := find_missing(signatures, signers):
        role, account = missing[0]
        raise InvalidSignatureError(
            f"authority_set signers: expected {account}, who enters, to sign as {role}"
        )
    signed = count_deciding(signatures, signers)
    if signed < signers.quorum:
        raise InvalidSignatureError(
            f"authority_set signers: expected at least {signers.quorum} of the "
            f"{len(signers.deciding)} current authorities, got {signed}"
        )
