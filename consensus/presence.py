"""Who is silent: members that were not heard of for a while, though a quorum was.

The shell notes whom it heard and asks from time to time; the engine then gives a silent member no
time as proposer (`MembersSilent`), so that a dead node costs no delay. A wrong guess costs one
view, never safety.
"""

from __future__ import annotations

from ledger.authorities import AuthoritySet

SILENT_MS = 10_000


class Presence:
    """The members that were heard of lately. All times are of one clock that only goes forward."""

    def __init__(self) -> None:
        self._heard_ms: dict[str, int] = {}
        """When each account was last heard of, or first expected to speak."""

    def hear(self, account: str, *, now_ms: int) -> None:
        """Note that `account` said something. Remembers no other accounts for long."""
        self._heard_ms[account] = now_ms

    def list_silent(self, authority_set: AuthoritySet, own: str, *, now_ms: int) -> frozenset[int]:
        """Return the members of the set not heard of for 10 s; none if no quorum was.

        Whoever hears nobody is likely to be cut off itself, and must not rush through the views.
        Whoever enters the set has as long from now; whoever left it is forgotten.
        """
        accounts = [member.account for member in authority_set.members]
        heard_ms = {account: self._heard_ms.get(account, now_ms) for account in accounts}
        self._heard_ms = heard_ms
        silent = {
            i
            for i, account in enumerate(accounts)
            if account != own and now_ms - heard_ms[account] >= SILENT_MS
        }
        is_quorum = len(accounts) - len(silent) >= authority_set.quorum
        return frozenset(silent) if is_quorum else frozenset()
