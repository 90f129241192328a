"""Both faces and a node's own endpoints as one ASGI application."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from api.app import build_api
from api.errors import RequestError
from api.nomarket import NoMarket
from api.ports import Market
from api.resource import ApiSettings
from explorer_ui import build_error_handler, build_explorer
from ledger.encoding import encode
from ledger.store.chain import ChainStore
from ledger.views import LedgerViews, TreeViews
from node.config import NodeSettings, choose_mode
from node.head import HeadWatch
from node.ownname import OwnNameOnly
from node.p2p.blocks import build_block_route
from node.sync import Syncer

RELEASE = "0.1.0"
CLOSING = RequestError("SYSTEM_SHUTTING_DOWN", "this node is shutting down; try again later")

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
        routes: its other endpoints under /p2p/.
        lifespan: what runs while it is served.
    """
    api = ApiSettings(
        mode=choose_mode(settings), version=RELEASE, default_model=settings.default_model
    )
    show_error = build_error_handler(views, release=RELEASE)

    async def show_failure(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await show_error(request, error)

    # The API answers first; what it does not claim belongs to the explorer.
    app = Starlette(
        routes=[
            *routes,
            build_block_route(chain, head),
            *build_api(
                market,
                views,
                api,
                tree=TreeViews(chain),
                checkpoint=checkpoint,
                genesis=encode(chain.genesis),
                clock_ms=clock_ms,
                make_request_id=lambda: secrets.token_hex(8),
                find_obstacle=lambda: CLOSING if head.is_closing else None,
                find_sync=lambda: syncer.progress,
            ),
            *build_explorer(views, clock_ms=clock_ms, head_changed=head, release=RELEASE),
        ],
        middleware=[Middleware(OwnNameOnly, host=settings.host)] if api.mode == "dev" else [],
        exception_handlers={HTTPException: show_error, Exception: show_failure},
        lifespan=contextlib.asynccontextmanager(lifespan),
    )
    # A redirect would send the client to whatever host it named; a path with a slash too many is
    # unknown instead.
    app.router.redirect_slashes = False
    return app
