"""One node, put together: three files, the coordinator, the sealer, and both faces over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from api.app import build_api
from api.errors import RequestError
from api.resource import ApiSettings
from explorer_ui import ClosingError, build_error_handler, build_explorer
from ledger.block import hash_genesis
from ledger.encoding import encode
from ledger.jobs import Prices
from ledger.keys import self_test
from ledger.store.chain import ChainStore
from ledger.store.market import open_market
from ledger.store.votes import VoteStore
from ledger.views import LedgerViews, TreeViews
from node.checkpoints import CheckpointSigner
from node.config import NodeSettings, choose_mode
from node.coordinator import Coordinator, MarketSettings
from node.datadir import DataDirectory, load_key
from node.ownname import OwnNameOnly
from node.sealer import Sealer
from node.signal import Signal

RELEASE = "0.1.0"
SWEEP_INTERVAL_S = 1.0
_CLOSING = RequestError("SYSTEM_SHUTTING_DOWN", "this node is shutting down; try again later")

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
        head = HeadWatch(chain.tip().height)

        def note_failure(error: BaseException) -> None:
            node.failure = error
            stop()

        sealer = Sealer(
            chain=chain,
            market=market,
            votes=votes,
            key=key,
            clock_ms=clock_ms,
            batch_delay_ms=settings.batch_delay_ms,
            final=head.note,
            failed=note_failure,
        )
        stack.callback(sealer.stop)
        coordinator = Coordinator(
            chain=chain,
            store=market,
            key=key,
            settings=_market_settings(settings),
            clock_ms=clock_ms,
            receipt_waiting=sealer.kick,
        )
        views = LedgerViews(chain, market)
        tree = TreeViews(chain)
        app = _build_app(
            coordinator,
            views,
            head,
            sealer,
            tree=tree,
            checkpoint=CheckpointSigner(tree, genesis, key).newest,
            host=settings.host,
            api=ApiSettings(mode=mode, version=RELEASE, default_model=settings.default_model),
            genesis_document=encode(genesis),
            clock_ms=clock_ms,
        )
        node = Node(app=app, coordinator=coordinator, views=views, sealer=sealer, head=head)
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
    *,
    tree: TreeViews,
    checkpoint: Callable[[], bytes | None],
    host: str,
    api: ApiSettings,
    genesis_document: bytes,
    clock_ms: Callable[[], int],
) -> Starlette:
    """The API answers first; what it does not claim belongs to the explorer."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        head.signal.bind()
        coordinator.job_waiting.bind()
        sealer.start()
        sweeping = asyncio.create_task(_sweep(coordinator))
        yield
        sweeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeping

    show_error = build_error_handler(views, release=RELEASE)

    async def show_failure(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await show_error(request, error)

    app = Starlette(
        routes=[
            *build_api(
                coordinator,
                views,
                api,
                tree=tree,
                checkpoint=checkpoint,
                genesis=genesis_document,
                clock_ms=clock_ms,
                make_request_id=lambda: secrets.token_hex(8),
                find_obstacle=lambda: _CLOSING if head.is_closing else None,
            ),
            *build_explorer(views, clock_ms=clock_ms, head_changed=head, release=RELEASE),
        ],
        middleware=[Middleware(OwnNameOnly, host=host)] if api.mode == "dev" else [],
        exception_handlers={HTTPException: show_error, Exception: show_failure},
        lifespan=lifespan,
    )
    # A redirect would send the client to whatever host it named; a path with a slash too many is
    # unknown instead.
    app.router.redirect_slashes = False
    return app


async def _sweep(coordinator: Coordinator) -> None:
    while True:
        try:
            await coordinator.sweep()
        except Exception:
            logger.exception("the sweep failed; the next one tries again")
        await asyncio.sleep(SWEEP_INTERVAL_S)
