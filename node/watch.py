"""What this node tells people about the others: how far it has caught up, and who answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ledger.views import PeerView, SyncProgress
from node.p2p.peers import Peer


class NodeWatch:
    """Fulfils `ledger.views.NetworkWatch`."""

    def __init__(
        self,
        *,
        progress: Callable[[], SyncProgress],
        peers: Callable[[], Sequence[Peer]],
        account: str = "",
    ) -> None:
        """`account`: of the key that this node votes with; empty for a follower."""
        self._account = account
        self._progress = progress
        self._peers = peers

    def account(self) -> str:
        """Return the account of this node's own key; empty for a follower."""
        return self._account

    def sync(self) -> SyncProgress | None:
        """Return how far catching up is; None while there is nothing to catch up with."""
        progress = self._progress()
        return None if progress.state == "idle" else progress

    def peers(self) -> Sequence[PeerView]:
        """Return the nodes that this one talks to, in the order of the authority set."""
        return [
            PeerView(
                account=peer.account,
                name=peer.name,
                url=peer.stated_url,
                height=peer.height,
                answers=peer.failure is None,
                release=peer.release,
            )
            for peer in self._peers()
        ]
