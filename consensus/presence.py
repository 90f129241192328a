"""Who is silent: members that were not heard of for a while, though a quorum was.

The shell notes whom it heard and asks from time to time; the engine then gives a silent member no
time as proposer (`MembersSilent`), so that a dead node costs no delay. A wrong guess costs one
view, never safety.
"""

from __future__ import annotations

from ledger.authorities import AuthoritySet

SILENT_MS = 10_000


class Presence:
    """When each account was last heard of, by a clock that only goes forward."""

    def __init__(self, *, now_ms: int) -> None:
        self._started_ms = now_ms
        self._heard_ms: dict[str, int] = {}

    def hear(self, account: str, *, now_ms: int) -> None:
        """Note that `account` said something. Only ask this of accounts that may be members."""
        self._heard_ms[account] = now_ms

    def list_silent(self, authority_set: AuthoritySet, own: str, *, now_ms: int) -> frozenset[int]:
        """Return the members of the set not heard of for 10 s; none if no quorum was.

        Whoever hears nobody is likely to be cut off itself, and must not rush through the views.
        Forgets accounts that left the set.
        """
        accounts = [member.account for member in authority_set.members]
        heard_ms = {
            account: now_ms if account == own else self._heard_ms.get(account, self._started_ms)
            for account in accounts
        }
        self._heard_ms = {a: at for a, at in self._heard_ms.items() if a in heard_ms}
        silent = {i for i, a in enumerate(accounts) if now_ms - heard_ms[a] >= SILENT_MS}
        is_quorum = len(accounts) - len(silent) >= authority_set.quorum
        return frozenset(silent) if is_quorum else frozenset()
