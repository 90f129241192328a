"""A front-end: a process that serves a coordinator's API beside the node that seals its blocks.

It takes part in no consensus. It follows the authority's blocks as a follower does, on a ledger of
its own, and shares the market in PostgreSQL with the authority and with other front-ends. It signs
receipts with the coordinator's key and puts them into the shared mempool, from which the authority
takes them. The authority alone sweeps, and tells webhooks.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.applications import Starlette

from ledger.block import hash_genesis
from ledger.errors import StoreError
from ledger.keys import self_test
from ledger.store.chain import ChainStore
from ledger.views import LedgerViews, TreeViews
from node.application import RELEASE, build_application, build_metrics
from node.checkpoints import CheckpointSigner
from node.clock import read_clock_ms
from node.config import NodeSettings
from node.coordinator import Coordinator
from node.datadir import DataDirectory, load_key
from node.follower import open_syncers
from node.gauges import NodeState, StateCollector, list_waiters
from node.head import HeadWatch
from node.market.settings import build_market_settings
from node.opening import open_database
from node.p2p.routes import build_status_route
from node.running import Running
from node.watch import NodeWatch


@contextlib.contextmanager
def open_frontend(
    settings: NodeSettings,
    *,
    stop: Callable[[], None],
    clock_ms: Callable[[], int] = read_clock_ms,
) -> Iterator[Running]:
    """Open the data directory, hold it, and put the front-end together; close it at the end.

    `stop()` is called, from any thread, when it cannot go on; `Running.failure` tells why.

    Raises:
        StoreError: the directory or the database cannot be used, or the key is another one's.
    """
    self_test()
    data = DataDirectory(settings.data)
    genesis = data.load_genesis()
    if settings.coordinator_key is None:
        raise StoreError("a front-end needs the key of its coordinator")
    key, _ = load_key(settings.coordinator_key)
    with contextlib.ExitStack() as stack:
        stack.enter_context(data.lock())
        chain = ChainStore(data.ledger, genesis)
        stack.callback(chain.close)
        market = open_database(settings.database, hash_genesis(genesis), coordinator=key.account)
        stack.callback(market.close)
        head = HeadWatch(chain.tip().height)

        def note_failure(error: BaseException) -> None:
            front.failure = error
            stop()

        def note_block(height: int) -> None:
            head.note(height)
            coordinator.note_block()

        history, syncer = open_syncers(
            stack, chain, settings.follow, note_block=note_block, failed=note_failure
        )
        metrics = build_metrics(settings, "api")
        coordinator = Coordinator(
            chain=chain,
            store=market,
            key=key,
            settings=build_market_settings(settings),
            clock_ms=clock_ms,
            receipt_waiting=lambda: None,  # the database tells the authority
            moved=metrics.note_job,
        )
        state = NodeState(
            chain=chain,
            market=market,
            clock_ms=clock_ms,
            sync=lambda: syncer.progress,
            waiters=list_waiters(head, coordinator),
        )
        metrics.registry.register(StateCollector(state))
        watch = NodeWatch(progress=lambda: syncer.progress, peers=list)

        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            head.signal.bind()
            coordinator.bind()
            history.start()
            syncer.start()
            yield

        app = build_application(
            settings,
            market=coordinator,
            views=LedgerViews(chain, market, network=watch),
            chain=chain,
            head=head,
            syncer=syncer,
            checkpoint=CheckpointSigner(TreeViews(chain), genesis, key).newest,
            clock_ms=clock_ms,
            metrics=metrics,
            is_store_lost=lambda: market.is_lost,
            routes=[build_status_route(chain, account="", release=RELEASE)],
            lifespan=lifespan,
        )
        front = Running(app=app, coordinator=coordinator, head=head)
        yield front
