"""Opens a coordinator's market where its operator has put it: node.db, or a database of its own."""

from __future__ import annotations

import contextlib

from ledger.errors import StoreError
from ledger.store.lists import count_open_jobs
from ledger.store.market import open_market
from ledger.store.marketstore import MarketStore
from ledger.store.mempool import count_waiting
from node.datadir import DataDirectory


def open_own_market(
    data: DataDirectory, database: str, genesis_hash: bytes, *, coordinator: str | None = None
) -> MarketStore:
    """Open the market of a data directory; `database` is empty where that is its node.db.

    Raises:
        StoreError: it cannot be used, is somebody else's, or node.db holds work to be done.
    """
    store: MarketStore = open_market(data.market, genesis_hash)
    if not database:
        return store
    with contextlib.closing(store):
        _refuse_to_leave_work(data, store)
    return open_database(database, genesis_hash, coordinator=coordinator)


def open_database(database: str, genesis_hash: bytes, *, coordinator: str | None) -> MarketStore:
    """Open a market in PostgreSQL.

    Raises:
        StoreError: it cannot be used, or is somebody else's.
    """
    # Its driver costs every start 0.1 s and 20 MB, and few nodes have such a database.
    from ledger.store.postgres.market import open_shared_market  # noqa: PLC0415

    return open_shared_market(database, genesis_hash, coordinator=coordinator)


def _refuse_to_leave_work(data: DataDirectory, store: MarketStore) -> None:
    open_jobs = sum(count_open_jobs(store.reader).values())
    if open_jobs or count_waiting(store.reader, 1):
        raise StoreError(
            f"{data.market}: holds jobs or receipts that are not done, and with --database nobody "
            "would look at them; run this node without it until nothing is pending"
        )
