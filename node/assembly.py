"""One node, put together: three files, the coordinator, the sealer, and both faces over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette

from ledger.block import Genesis, VerifiedBlock, hash_genesis
from ledger.errors import StoreError
from ledger.keys import self_test
from ledger.store.chain import ChainStore
from ledger.store.marketstore import MarketStore
from ledger.store.votes import VoteStore
from ledger.store.writequeue import DatabaseLostError
from ledger.views import LedgerViews, TreeViews
from node.application import RELEASE, build_application, build_metrics
from node.checkpoints import CheckpointSigner
from node.clock import read_clock_ms
from node.config import NodeSettings, choose_reach
from node.coordinator import Coordinator
from node.datadir import DataDirectory, load_key
from node.gauges import NodeState, StateCollector, list_waiters
from node.head import HeadWatch
from node.market.settings import build_market_settings
from node.memory import refuse_old_votes, refuse_to_wait_for_nobody
from node.mempool import Mempool
from node.opening import open_own_market
from node.p2p.network import PeerNetwork
from node.p2p.routes import PeerEndpoints
from node.running import Running
from node.sealer import Sealer
from node.sync import Syncer
from node.watch import NodeWatch
from node.webhooks.dispatcher import run_webhooks

SWEEP_INTERVAL_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Node(Running):
    """A node with its files open."""

    coordinator: Coordinator
    chain: ChainStore
    views: LedgerViews
    sealer: Sealer


@contextlib.contextmanager
def open_node(
    settings: NodeSettings,
    *,
    stop: Callable[[], None],
    clock_ms: Callable[[], int] = read_clock_ms,
) -> Iterator[Node]:
    """Open the data directory, hold it, and put the node together; close it at the end.

    `stop()` is called, from any thread, when the node cannot go on; `Node.failure` tells why.

    Raises:
        PeerError: a peer's address is none.
        StoreError: the directory is missing, foreign, held by another node, or lacks votes.db.
    """
    self_test()
    data = DataDirectory(settings.data)
    genesis = data.load_genesis()
    key, instance = load_key(data.authority_key)
    with contextlib.ExitStack() as stack:
        stack.enter_context(data.lock())
        votes, chain, market = _open_files(
            stack, data, genesis, instance=instance, account=key.account, database=settings.database
        )
        head = HeadWatch(chain.tip().height)
        mempool = Mempool(
            chain=chain, market=market, events_waiting=lambda: coordinator.note_events()
        )
        network = PeerNetwork(
            chain=chain,
            mempool=mempool,
            key=key,
            urls=settings.peers,
            fetch=lambda height: syncer.request(height),
            returned=lambda: sealer.repeat(),
        )

        if not network.list_sources():
            refuse_to_wait_for_nobody(chain, votes)

        def note_failure(error: BaseException) -> None:
            node.failure = error
            stop()

        def note_final(height: int) -> None:
            head.note(height)
            coordinator.note_block()
            network.note_block()
            syncer.request(height)  # it may have made us a member, or no longer one

        sealer = Sealer(
            chain=chain,
            mempool=mempool,
            votes=votes,
            key=key,
            peers=network,
            clock_ms=clock_ms,
            batch_delay_ms=settings.batch_delay_ms,
            final=note_final,
            failed=note_failure,
        )
        stack.callback(sealer.stop)
        syncer = Syncer(
            tip=chain.tip,
            apply=lambda batch: sealer.adopt(lambda: _store_batch(chain, batch)),
            sources=network.list_sources,
            follow=lambda: not network.is_member(),
            failed=note_failure,
        )
        stack.callback(syncer.stop)

        def note_receipt() -> None:
            sealer.kick()
            network.note_waiting()

        metrics = build_metrics(settings, "authority")
        coordinator = Coordinator(
            chain=chain,
            store=market,
            key=key,
            settings=build_market_settings(settings),
            clock_ms=clock_ms,
            receipt_waiting=note_receipt,
            moved=metrics.note_job,
        )
        state = NodeState(
            chain=chain,
            market=market,
            clock_ms=clock_ms,
            sync=lambda: syncer.progress,
            peers=network.list_peers,
            count_foreign=mempool.count_foreign,
            waiters=list_waiters(head, coordinator),
        )
        metrics.registry.register(StateCollector(state))
        views = LedgerViews(
            chain,
            market,
            network=NodeWatch(
                progress=lambda: syncer.progress, peers=network.list_peers, account=key.account
            ),
        )
        endpoints = PeerEndpoints(
            chain=chain,
            mempool=mempool,
            sealer=sealer,
            key=key,
            release=RELEASE,
            note_heard=network.note_heard,
        )

        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            head.signal.bind()
            coordinator.bind()
            sealer.start()
            syncer.start()
            async with (
                _sweeping(coordinator),
                network.run(),
                run_webhooks(
                    market,
                    news=coordinator.events_waiting,
                    reach=choose_reach(settings),
                    clock_ms=clock_ms,
                ),
            ):
                yield

        app = build_application(
            settings,
            market=coordinator,
            views=views,
            chain=chain,
            head=head,
            syncer=syncer,
            checkpoint=CheckpointSigner(TreeViews(chain), genesis, key).newest,
            clock_ms=clock_ms,
            metrics=metrics,
            is_store_lost=lambda: market.is_lost,
            routes=endpoints.routes(),
            lifespan=lifespan,
        )
        node = Node(
            app=app, chain=chain, coordinator=coordinator, views=views, sealer=sealer, head=head
        )
        yield node


def _open_files(
    stack: contextlib.ExitStack,
    data: DataDirectory,
    genesis: Genesis,
    *,
    instance: str,
    account: str,
    database: str,
) -> tuple[VoteStore, ChainStore, MarketStore]:
    """Open what is durable; `stack` closes it.

    Raises:
        StoreError: a file is foreign, or what is in them does not allow to vote.
    """
    genesis_hash = hash_genesis(genesis)
    votes = VoteStore.open(
        data.votes, instance=instance, account=account, genesis_hash=genesis_hash
    )
    stack.callback(votes.close)
    chain = ChainStore(data.ledger, genesis)
    stack.callback(chain.close)
    market = open_own_market(data, database, genesis_hash, coordinator=account)
    stack.callback(market.close)
    if missing := chain.missing():
        raise StoreError(
            f"{data.ledger}: blocks {missing[0]} to {missing[-1]} are missing, and a node that "
            f"does not know all receipts cannot vote. Move {data.ledger.name} out of the directory "
            "and start again: the whole chain is fetched from the other authorities, or from "
            "--peer URL. Never replace votes.db"
        )
    refuse_old_votes(chain, votes, account=account)
    return votes, chain, market


def _store_batch(chain: ChainStore, batch: Sequence[VerifiedBlock]) -> None:
    """Store what a sync has verified. Returns when it is durable."""
    chain.append_verified(batch).result()


@contextlib.asynccontextmanager
async def _sweeping(coordinator: Coordinator) -> AsyncIterator[None]:
    task = asyncio.create_task(_sweep(coordinator))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _sweep(coordinator: Coordinator) -> None:
    while True:
        try:
            await coordinator.sweep()
        except DatabaseLostError:
            pass  # the log has said so; the next one tries again
        except Exception:
            logger.exception("the sweep failed; the next one tries again")
        await asyncio.sleep(SWEEP_INTERVAL_S)
