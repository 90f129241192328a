"""A second server on a node's files: `python -m tests.second_server DATA`, until its input closes.

A data directory is locked, so that this cannot happen to an operator; it is opened past the lock on
purpose, to show that the market does not need the lock to hand each job to one miner. Coordinator,
stores and REST face are the production ones. Blocks are left to the node that has the lock.
"""

from __future__ import annotations

import secrets
import sys
from contextlib import closing
from pathlib import Path

from starlette.applications import Starlette

from api.app import build_api
from api.resource import ApiSettings
from ledger.block import hash_genesis
from ledger.encoding import encode
from ledger.jobs import Prices
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.views import LedgerViews, TreeViews
from node.clock import read_clock_ms
from node.coordinator import Coordinator, MarketSettings
from node.datadir import DataDirectory, load_key
from tests.api_server import serve


def main(root: Path) -> None:
    """Serve until standard input closes."""
    data = DataDirectory(root)
    genesis = data.load_genesis()
    chain = ChainStore(data.ledger, genesis)
    store = open_market(data.market, hash_genesis(genesis))
    with closing(chain), closing(store):
        coordinator = Coordinator(
            chain=chain,
            store=store,
            key=load_key(data.authority_key)[0],
            settings=MarketSettings(prices=Prices(tokens=10, gpu_seconds=1000)),
            clock_ms=read_clock_ms,
            receipt_waiting=lambda: None,
        )
        routes = build_api(
            coordinator,
            LedgerViews(chain, store),
            ApiSettings(mode="dev", version="0.1.0", default_model="llama3.2"),
            tree=TreeViews(chain),
            checkpoint=lambda: None,
            genesis=encode(genesis),
            clock_ms=read_clock_ms,
            make_request_id=lambda: secrets.token_hex(8),
        )
        with serve(Starlette(routes=routes)) as port:
            sys.stdout.write(f"second server at http://127.0.0.1:{port}\n")
            sys.stdout.flush()
            sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
