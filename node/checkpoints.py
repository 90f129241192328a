"""The checkpoint that an authority publishes: its newest final head under its own signature."""

from __future__ import annotations

from ledger.block import Genesis
from ledger.checkpoint import Checkpoint, build_origin, sign_checkpoint
from ledger.keys import KeyPair
from ledger.views import TreeViews


class CheckpointSigner:
    """Signs heads as the chain grows. A final block is never undone, so no two contradict."""

    def __init__(self, tree: TreeViews, genesis: Genesis, key: KeyPair) -> None:
        self._tree = tree
        self._origin = build_origin(genesis)
        self._key = key
        self._signed: tuple[int, bytes] | None = None

    def newest(self) -> bytes:
        """Return the note of the newest final block; each head is signed once."""
        head = self._tree.head()
        if self._signed is None or self._signed[0] != head.size:
            checkpoint = Checkpoint(origin=self._origin, size=head.size, root=head.root)
            self._signed = head.size, sign_checkpoint(checkpoint, self._key)
        return self._signed[1]
