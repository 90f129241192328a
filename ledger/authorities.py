r"""Authority sets: who seals blocks and who coordinates jobs, in one epoch.

    set hash = BLAKE3(`aitbc/set/v1\n` ‖ JCS(authority set))

Genesis holds the set of epoch 0. Every header names the set that certifies it and the one that
certifies the next block, so a change takes effect one height after the block that makes it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ledger.encoding import Count, encode
from ledger.errors import InvalidBlockError, InvalidKeyError
from ledger.hashing import AUTHORITY_SET_DOMAIN, hash_object
from ledger.keys import decode_account

MAX_AUTHORITIES = 100


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


def hash_authority_set(authority_set: AuthoritySet) -> bytes:
    """Return the set hash that headers carry."""
    return hash_object(AUTHORITY_SET_DOMAIN, encode(authority_set))


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
