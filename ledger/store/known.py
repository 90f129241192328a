"""API keys and miners as they are stored, read again only when somebody has changed any.

Every request names a key, most a miner, and few change one. Triggers count the changes
(`market.py`), whichever process makes them; the counts are read after each commit that may have
changed them (`ownwrites.py`), the rows after each change. So what is told here is never older than
the file: a key that is revoked is refused at once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ledger.jobs import Miner
from ledger.store.marketstore import MarketStore
from ledger.store.registry import (
    ApiKey,
    Kind,
    count_serving,
    find_key,
    find_miner,
    list_capabilities,
)

Row = TypeVar("Row")

COUNTS = "SELECT value FROM counters WHERE name IN ('changed_keys', 'changed_miners') ORDER BY name"
"""Of changes: what tells whether anything known here has changed."""
MAX_KNOWN = 4_096
"""Of each kind; beyond that all of them are read anew."""
COUNTED_MS = 1_000
"""How long active miners are not counted again, unless one comes, changes or leaves."""


class KnownRows:
    """What one thread knows of them."""

    def __init__(self, database: MarketStore) -> None:
        self._database = database
        self._state = b""
        """Of the file when the counts were read."""
        self._changes: tuple[int, ...] = ()
        self._keys: dict[str, ApiKey] = {}
        self._miners: dict[str, Miner] = {}
        self._kinds: list[Kind] | None = None
        """Of the miners heard since `_kinds_since_ms`."""
        self._kinds_since_ms = 0

    def find_key(self, prefix: str) -> ApiKey | None:
        """Return the API key with this prefix, revoked or not."""
        self._catch_up()
        known = self._keys.get(prefix)
        if known is None and (known := find_key(self._database.reader, prefix)):
            _keep(self._keys, prefix, known)
        return known

    def find_miner(self, miner_id: str) -> Miner | None:
        """Return a registered miner; when it was last seen may be older than the file."""
        self._catch_up()
        known = self._miners.get(miner_id)
        if known is None and (known := find_miner(self._database.reader, miner_id)):
            _keep(self._miners, miner_id, known)
        return known

    def note_seen(self, miner_id: str, now_ms: int) -> None:
        """Say that a miner was heard, which is no change that is counted."""
        if known := self._miners.get(miner_id):
            self._miners[miner_id] = replace(known, last_seen_at_ms=now_ms)
        self._kinds = None

    def count_eligible(self, model: str, since_ms: int) -> int:
        """Return how many of the miners heard since a time could serve `model`.

        One that falls silent, or that another process hears again, may count COUNTED_MS later.
        """
        self._catch_up()
        if self._kinds is None or abs(since_ms - self._kinds_since_ms) >= COUNTED_MS:
            self._kinds = list_capabilities(self._database.reader, since_ms)
            self._kinds_since_ms = since_ms
        return count_serving(self._kinds, model)

    def _catch_up(self) -> None:
        # Taken before the counts are read: should they be newer, they are only read once more.
        state = self._database.state
        if state == self._state:
            return
        rows = self._database.reader.execute(COUNTS)
        changes = tuple(value for (value,) in rows)
        if changes[:1] != self._changes[:1]:
            self._keys.clear()
        if changes[1:] != self._changes[1:]:
            self._miners.clear()
            self._kinds = None
        self._state, self._changes = state, changes


def _keep(rows: dict[str, Row], name: str, row: Row) -> None:
    if len(rows) >= MAX_KNOWN:
        rows.clear()
    rows[name] = row
