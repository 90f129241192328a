"""Drafting a change of the authority set: what was asked for, what it means, what it risks.

Pure: the current set and the wishes go in, the next set and sentences for people come out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from ledger.authorities import Authority, AuthoritySet, validate_authority_set
from ledger.block import Tip
from ledger.changes import Signers, count_deciding, find_missing, list_change_signers
from ledger.errors import InvalidBlockError, LedgerError
from ledger.transaction import (
    MAX_ENVELOPE_BYTES,
    AuthoritySetPayload,
    Signature,
    build_transaction,
)
from node.p2p.address import PeerError, parse_url

_SIGNATURE_BYTES = 194
"""Of one signature in an envelope, at most: a comma, and the longest role that signs a change."""


class ChangeRefusedError(LedgerError):
    """A wish that cannot be fulfilled, or a key that has no say; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """What shall be different in the next set. Members are named by account or by name."""

    added: Sequence[Authority] = ()
    removed: Sequence[str] = ()
    renamed: Sequence[tuple[str, str]] = ()
    """(member, new name)"""
    moved: Sequence[tuple[str, str]] = ()
    """(member, new url)"""
    coordinators_added: Sequence[str] = ()
    coordinators_removed: Sequence[str] = ()


@dataclass(slots=True)
class _Draft:
    """The next set in the making."""

    members: list[Authority]
    coordinators: set[str] = field(default_factory=set)

    def find(self, who: str) -> int:
        found = [i for i, member in enumerate(self.members) if who in {member.account, member.name}]
        if not found:
            raise ChangeRefusedError(f"{who}: no authority of the current set is called this")
        if len(found) > 1:
            raise ChangeRefusedError(f"{who}: {len(found)} authorities are; name one by account")
        return found[0]

    def replace(self, who: str, **changes: str) -> None:
        place = self.find(who)
        self.members[place] = msgspec.structs.replace(self.members[place], **changes)


def apply_edits(current: AuthoritySet, edits: Edits) -> AuthoritySet:
    """Return the set that follows `current`. Members keep their order; new ones stand last.

    Raises:
        ChangeRefusedError: nobody is called this, nothing changes, it is no set, or a new address
            is none.
    """
    _check_addresses([*(member.url for member in edits.added), *(url for _, url in edits.moved)])
    draft = _Draft(list(current.members), set(current.coordinators))
    for who, name in edits.renamed:
        draft.replace(who, name=name)
    for who, url in edits.moved:
        draft.replace(who, url=url)
    for who in edits.removed:
        del draft.members[draft.find(who)]
    draft.members += edits.added
    for account in edits.coordinators_removed:
        if account not in draft.coordinators:
            raise ChangeRefusedError(f"{account}: is not a coordinator that the set lists")
        draft.coordinators.remove(account)
    draft.coordinators |= set(edits.coordinators_added)
    following = AuthoritySet(
        epoch=current.epoch + 1,
        members=tuple(draft.members),
        coordinators=tuple(sorted(draft.coordinators)),
    )
    if (following.members, following.coordinators) == (current.members, current.coordinators):
        raise ChangeRefusedError("nothing would change; see ./aitbc authority propose --help")
    return _check_set(following)


def _check_addresses(urls: Sequence[str]) -> None:
    """Refuse what no peer could call; one that stands in the set already may stay."""
    try:
        for url in filter(None, urls):
            parse_url(url)
    except PeerError as error:
        raise ChangeRefusedError(f"the next set: {error}") from error


def _check_set(following: AuthoritySet) -> AuthoritySet:
    """Hold a set built in memory to what every reader holds it to."""
    try:
        checked = msgspec.convert(msgspec.to_builtins(following), AuthoritySet)
        validate_authority_set(checked)
    except (msgspec.ValidationError, InvalidBlockError) as error:
        raise ChangeRefusedError(f"the next set: {error}") from error
    names = [member.name for member in checked.members]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ChangeRefusedError(f"the next set: two authorities would be called {twice[0]}")
    return checked


def build_payload(following: AuthoritySet, tip: Tip, *, valid_for: int) -> AuthoritySetPayload:
    """Return the change to `following`, good for the next `valid_for` blocks.

    Raises:
        ChangeRefusedError: with all its signatures it would be longer than an envelope may be.
    """
    payload = AuthoritySetPayload(
        genesis=tip.genesis_hash.hex(),
        authority_set=following,
        expires_height=tip.height + valid_for,
    )
    signers = list_change_signers(payload, tip.authority_set)
    count = signers.quorum + len(signers.joining) + len(signers.coordinating)
    size_bytes = len(build_transaction(payload, []).envelope) + count * _SIGNATURE_BYTES
    if size_bytes > MAX_ENVELOPE_BYTES:
        raise ChangeRefusedError(
            f"with its {count} signatures this change would take {size_bytes} bytes, and "
            f"{MAX_ENVELOPE_BYTES} are allowed; make it in several steps, or shorten names and urls"
        )
    return payload


def describe_change(current: AuthoritySet, payload: AuthoritySetPayload) -> list[str]:
    """Return what a change does, line by line: before, after, and what is different."""
    following = payload.authority_set
    before = {member.account: member for member in current.members}
    after = {member.account: member for member in following.members}
    lines = [
        f"Epoch {current.epoch} becomes {following.epoch}, not above block "
        f"{payload.expires_height}.",
        f"Members {len(before)} -> {len(after)}, quorum {current.quorum} -> {following.quorum}.",
    ]
    for account, member in after.items():
        old = before.get(account)
        if old is None:
            lines.append(f"  joins   {_show(member)}")
        elif old == member:
            lines.append(f"  stays   {_show(member)}")
        else:
            lines.append(f"  changes {_show(member)}, was {_show(old)}")
    lines += [f"  leaves  {_show(member)}" for a, member in before.items() if a not in after]
    for word, ours, theirs in (
        ("enters", following.coordinators, current.coordinators),
        ("leaves", current.coordinators, following.coordinators),
    ):
        lines += [f"  coordinator {word} {a}" for a in ours if a not in theirs]
    return lines


def _show(member: Authority) -> str:
    return f"{member.name} {member.account} {member.url or '(no address)'}"


def list_warnings(current: AuthoritySet, following: AuthoritySet) -> list[str]:
    """Return what whoever signs a change should have thought of."""
    size, quorum = len(following.members), following.quorum
    kept = sum(current.index_of(member.account) is not None for member in following.members)
    warnings = []
    if size in {2, 3}:
        warnings.append(
            f"{size} authorities tolerate nobody's absence: if one is down, nothing becomes final. "
            "1, 4 and 7 are good sizes."
        )
    if kept < quorum:
        warnings.append(
            f"Only {kept} of today's authorities stay and {quorum} votes are needed: at least "
            f"{quorum - kept} of the {size - kept} new ones must run and have caught up by then, "
            "or no block becomes final any more."
        )
    if size - quorum < len(current.members) - current.quorum:
        warnings.append(
            f"Fewer may be down: {size - quorum} of {size} instead of "
            f"{len(current.members) - current.quorum} of {len(current.members)}."
        )
    if size > 1 and (silent := [m.name for m in following.members if not m.url]):
        warnings.append(f"Peers are not told where to reach {', '.join(silent)}.")
    urls = [member.url for member in following.members if member.url]
    if len(set(urls)) < len(urls):
        warnings.append("Two authorities state the same address.")
    if leaving := [m.name for m in current.members if following.index_of(m.account) is None]:
        warnings.append(
            f"Receipts by {', '.join(leaving)} that are not final by then never will be, unless "
            "the account is listed again."
        )
    return warnings


def describe_signatures(
    signatures: Sequence[Signature],
    signers: Signers,
    payload: AuthoritySetPayload,
    current: AuthoritySet,
) -> list[str]:
    """Return who has signed, and whose signature is still needed."""
    members = (*payload.authority_set.members, *current.members)
    names = {member.account: member.name for member in members}
    deciding = count_deciding(signatures, signers)
    lines = [
        f"Signed by {deciding} of {len(signers.deciding)} authorities, {signers.quorum} needed."
    ]
    lines += [
        f"  {s.role:<11} {names.get(s.key_id, '(coordinator only)')} {s.key_id}" for s in signatures
    ]
    return lines + [
        f"  missing: {names.get(account, '(coordinator only)')} {account} as {role}"
        for role, account in find_missing(signatures, signers)
    ]
