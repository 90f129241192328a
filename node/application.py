"""Both faces and a node's own endpoints as one ASGI application."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.app import build_api
from api.direct import Direct
from api.errors import RETRY_AFTER_S, RequestError
from api.limits import RateLimiter
from api.metering import Observer, Outcome
from api.nomarket import NoMarket
from api.ports import Market
from api.resource import ApiSettings, Boundary
from explorer_ui import build_error_handler, build_explorer
from ledger.encoding import encode
from ledger.store.chain import ChainStore
from ledger.store.writequeue import DatabaseLostError
from ledger.views import LedgerViews, TreeViews
from node.config import (
    NodeSettings,
    choose_access_log,
    choose_mode,
    choose_rate_limits,
    read_prefix,
)
from node.head import HeadWatch
from node.logs import log_outcome
from node.metrics import NodeMetrics, NodeRole
from node.ownname import OwnNameOnly
from node.p2p.blocks import build_block_route
from node.prefix import Prefixed
from node.randomness import RandomPool
from node.sync import Syncer

RELEASE = "0.1.0"
_REQUEST_ID_BYTES = 8
CLOSING = RequestError("SYSTEM_SHUTTING_DOWN", "this node is shutting down; try again later")
LOST = RequestError("SYSTEM_OVERLOADED", "the database does not answer; try again later")

logger = logging.getLogger(__name__)


def build_application(
    settings: NodeSettings,
    *,
    market: Market | NoMarket,
    views: LedgerViews,
    chain: ChainStore,
    head: HeadWatch,
    syncer: Syncer,
    checkpoint: Callable[[], bytes | None],
    clock_ms: Callable[[], int],
    metrics: NodeMetrics,
    is_store_lost: Callable[[], bool] = lambda: False,
    routes: Sequence[BaseRoute],
    lifespan: Callable[[Starlette], AsyncIterator[None]],
) -> Starlette:
    """Return the application of a node.

    Args:
        settings: how open it is, and where it listens.
        market: takes jobs, or says who does.
        views: what both faces read.
        chain: for proofs and the block stream.
        head: rings for new blocks and for the end.
        syncer: tells how far the node has caught up.
        checkpoint: the newest checkpoint that this node signed, None if it signs none.
        clock_ms: Unix time in milliseconds.
        metrics: counts what is answered.
        is_store_lost: tells whether the market's database does not answer.
        routes: its other endpoints under /p2p/.
        lifespan: what runs while it is served.
    """
    api = ApiSettings(
        mode=choose_mode(settings),
        version=RELEASE,
        default_model=settings.default_model,
        max_waiting=settings.max_waiting,
    )
    random = RandomPool()
    show_error = build_error_handler(views, release=RELEASE, public_url=settings.public_url)

    def find_obstacle() -> RequestError | None:
        if head.is_closing:
            return CLOSING
        return LOST if is_store_lost() else None

    async def show_loss(request: Request, error: Exception) -> Response:
        answer = await show_error(request, error)
        answer.status_code = 503
        answer.headers["Retry-After"] = str(RETRY_AFTER_S[503])
        return answer

    async def show_failure(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await show_error(request, error)

    api_routes = build_api(
        market,
        views,
        api,
        tree=TreeViews(chain),
        checkpoint=checkpoint,
        genesis=encode(chain.genesis),
        clock_ms=clock_ms,
        make_request_id=lambda: random.take(_REQUEST_ID_BYTES).hex(),
        find_obstacle=find_obstacle,
        find_sync=lambda: syncer.progress,
        boundary=_build_boundary(settings, metrics),
        metrics=metrics.render,
    )

    # The API answers first; what it does not claim belongs to the explorer.
    app = DirectApplication(
        own_host=settings.host if api.mode == "dev" else None,
        prefix=read_prefix(settings.public_url),
        direct_routes=api_routes,
        routes=[
            *routes,
            build_block_route(chain, head),
            *api_routes,
            *build_explorer(
                views,
                market=None if isinstance(market, NoMarket) else market,
                clock_ms=clock_ms,
                head_changed=head,
                release=RELEASE,
                public_url=settings.public_url,
            ),
        ],
        exception_handlers={
            HTTPException: show_error,
            DatabaseLostError: show_loss,
            Exception: show_failure,
        },
        lifespan=contextlib.asynccontextmanager(lifespan),
    )
    # A redirect would send the client to whatever host it named; a path with a slash too many is
    # unknown instead.
    app.router.redirect_slashes = False
    return app


class DirectApplication(Starlette):
    """Starlette, and beside it what may be answered before it; in dev mode under its own name.

    Under a prefix nothing is answered before it, since answers name addresses below the prefix.
    """

    def __init__(
        self,
        *,
        own_host: str | None,
        direct_routes: Sequence[BaseRoute],
        prefix: str = "",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._front: ASGIApp = super().__call__
        self.direct: Direct | None = Direct(direct_routes)
        if own_host is not None:
            self._front = guard = OwnNameOnly(self._front, host=own_host)
            self.direct = Direct(direct_routes, admits=guard.admits)
        if prefix:
            self._front, self.direct = Prefixed(self._front, prefix=prefix), None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        await self._front(scope, receive, send)


def build_metrics(settings: NodeSettings, role: NodeRole) -> NodeMetrics:
    """Return the metrics of a node before anything has happened."""
    return NodeMetrics(release=RELEASE, mode=choose_mode(settings), role=role)


def _build_boundary(settings: NodeSettings, metrics: NodeMetrics) -> Boundary:
    observe: Observer = metrics.note_request
    if choose_access_log(settings):

        def observe(outcome: Outcome) -> None:
            metrics.note_request(outcome)
            log_outcome(outcome)

    limiter = RateLimiter(choose_rate_limits(settings), clock_s=time.monotonic)
    return Boundary(limiter=limiter, observe=observe)
