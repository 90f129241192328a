"""One node, put together: three files, the coordinator, the sealer, and both faces over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette

from api.app import build_api
from api.errors import RequestError
from api.resource import ApiSettings
from explorer_ui import ClosingError, build_explorer
from ledger.block import VerifiedBlock, hash_genesis
from ledger.encoding import encode
from ledger.errors import StoreError
from ledger.jobs import Prices
from ledger.keys import self_test
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.store.votes import VoteStore
from ledger.views import LedgerViews, TreeViews
from node.application import build_application
from node.checkpoints import CheckpointSigner
from node.config import NodeSettings, choose_mode
from node.coordinator import Coordinator, MarketSettings
from node.datadir import DataDirectory, load_key
from node.mempool import Mempool
from node.p2p.blocks import build_block_route
from node.p2p.network import PeerNetwork
from node.p2p.routes import PeerEndpoints
from node.sealer import Sealer
from node.signal import Signal
from node.sync import Syncer
from node.sync.source import parse_url
from node.watch import NodeWatch

RELEASE = "0.1.0"
SWEEP_INTERVAL_S = 1.0
CLOSING = RequestError("SYSTEM_SHUTTING_DOWN", "this node is shutting down; try again later")

logger = logging.getLogger(__name__)


def read_clock_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


class HeadWatch:
    """Tells the explorer about new blocks, and about the end (`explorer_ui.HeadWatch`)."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.signal = Signal()
        self.is_closing = False

    def note(self, height: int) -> None:
        """Say that the block at `height` is final, from any thread."""
        self.height = height
        self.signal.fire()

    def close(self) -> None:
        """Let everybody go who waits, now and later."""
        self.is_closing = True
        self.signal.fire()

    async def wait(self, height: int) -> int:
        """Return the head's height once it is above `height`."""
        while True:
            if self.is_closing:
                raise ClosingError
            if self.height > height:
                return self.height
            await self.signal.wait()


@dataclass(kw_only=True)
class Node:
    """A node with its files open."""

    app: Starlette
    chain: ChainStore
    coordinator: Coordinator
    views: LedgerViews
    sealer: Sealer
    head: HeadWatch
    failure: BaseException | None = None
    """Why it had to stop by itself."""

    def begin_shutdown(self) -> None:
        """Answer whoever waits for a job or a block, so that the server can close."""
        self.coordinator.close()
        self.head.close()


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
    mode = choose_mode(settings)
    data = DataDirectory(settings.data)
    genesis = data.load_genesis()
    key, instance = load_key(data.authority_key)
    genesis_hash = hash_genesis(genesis)
    with contextlib.ExitStack() as stack:
        stack.enter_context(data.lock())
        votes = VoteStore.open(
            data.votes, instance=instance, account=key.account, genesis_hash=genesis_hash
        )
        stack.callback(votes.close)
        chain = ChainStore(data.ledger, genesis)
        stack.callback(chain.close)
        market = open_market(data.market, genesis_hash)
        stack.callback(market.close)
        if missing := chain.missing():
            raise StoreError(
                f"{data.ledger}: blocks {missing[0]} to {missing[-1]} are missing, and a node that "
                "does not know all receipts cannot vote; fetch them with ./aitbc run --follow first"
            )
        head = HeadWatch(chain.tip().height)
        mempool = Mempool(chain=chain, market=market)
        network = PeerNetwork(
            chain=chain,
            mempool=mempool,
            key=key,
            urls=[parse_url(url) for url in settings.peers],
            fetch=lambda height: syncer.request(height),
            returned=lambda: sealer.repeat(),
        )

        def note_failure(error: BaseException) -> None:
            node.failure = error
            stop()

        def note_final(height: int) -> None:
            head.note(height)
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
            apply=lambda batch: sealer.adopt(lambda: adopt_batch(chain, batch)),
            sources=network.list_sources,
            follow=lambda: not network.is_member(),
            failed=note_failure,
        )
        stack.callback(syncer.stop)

        def note_receipt() -> None:
            sealer.kick()
            network.note_waiting()

        coordinator = Coordinator(
            chain=chain,
            store=market,
            key=key,
            settings=_market_settings(settings),
            clock_ms=clock_ms,
            receipt_waiting=note_receipt,
        )
        watch = NodeWatch(progress=lambda: syncer.progress, peers=network.list_peers)
        views = LedgerViews(chain, market, network=watch)
        endpoints = PeerEndpoints(
            chain=chain,
            mempool=mempool,
            sealer=sealer,
            key=key,
            release=RELEASE,
            note_heard=network.note_heard,
        )
        app = _build_app(
            coordinator,
            views,
            head,
            sealer,
            chain,
            network,
            syncer,
            endpoints,
            checkpoint=CheckpointSigner(TreeViews(chain), genesis, key).newest,
            host=settings.host,
            api=ApiSettings(mode=mode, version=RELEASE, default_model=settings.default_model),
            clock_ms=clock_ms,
        )
        node = Node(
            app=app, chain=chain, coordinator=coordinator, views=views, sealer=sealer, head=head
        )
        yield node


def _market_settings(settings: NodeSettings) -> MarketSettings:
    prices = Prices(
        tokens=settings.price_token_micros, gpu_seconds=settings.price_gpu_second_micros
    )
    return MarketSettings(prices=prices, max_pending_per_key=settings.max_pending_per_key)


def _build_app(
    coordinator: Coordinator,
    views: LedgerViews,
    head: HeadWatch,
    sealer: Sealer,
    chain: ChainStore,
    network: PeerNetwork,
    syncer: Syncer,
    endpoints: PeerEndpoints,
    *,
    checkpoint: Callable[[], bytes | None],
    host: str,
    api: ApiSettings,
    clock_ms: Callable[[], int],
) -> Starlette:
    """The API answers first; what it does not claim belongs to the explorer."""

    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        head.signal.bind()
        coordinator.job_waiting.bind()
        sealer.start()
        syncer.start()
        sweeping = asyncio.create_task(_sweep(coordinator))
        async with network.run():
            yield
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping

    routes = [
        *endpoints.routes(),
        build_block_route(chain, head),
        *build_api(
            coordinator,
            views,
            api,
            tree=TreeViews(chain),
            checkpoint=checkpoint,
            genesis=encode(chain.genesis),
            clock_ms=clock_ms,
            make_request_id=make_request_id,
            find_obstacle=lambda: CLOSING if head.is_closing else None,
            find_sync=lambda: syncer.progress,
        ),
        *build_explorer(views, clock_ms=clock_ms, head_changed=head, release=RELEASE),
    ]
    return build_application(
        routes, views, host=host, mode=api.mode, release=RELEASE, lifespan=lifespan
    )


def adopt_batch(chain: ChainStore, batch: Sequence[VerifiedBlock]) -> None:
    """Store what a sync has verified. Returns when it is durable."""
    chain.append_verified(batch).result()


def make_request_id() -> str:
    """Draw the id of a request that came without one."""
    return secrets.token_hex(8)


async def _sweep(coordinator: Coordinator) -> None:
    while True:
        try:
            await coordinator.sweep()
        except Exception:
            logger.exception("the sweep failed; the next one tries again")
        await asyncio.sleep(SWEEP_INTERVAL_S)
