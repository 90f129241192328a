"""Both faces and the node's own endpoints as one ASGI application."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from api.access import ApiMode
from explorer_ui import build_error_handler
from ledger.views import LedgerViews
from node.ownname import OwnNameOnly

logger = logging.getLogger(__name__)


def build_application(
    routes: Sequence[BaseRoute],
    views: LedgerViews,
    *,
    host: str,
    mode: ApiMode,
    release: str,
    lifespan: Callable[[Starlette], AsyncIterator[None]],
) -> Starlette:
    """Return the application of `routes`; what they do not claim is shown as an error page."""
    show_error = build_error_handler(views, release=release)

    async def show_failure(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return await show_error(request, error)

    app = Starlette(
        routes=routes,
        middleware=[Middleware(OwnNameOnly, host=host)] if mode == "dev" else [],
        exception_handlers={HTTPException: show_error, Exception: show_failure},
        lifespan=contextlib.asynccontextmanager(lifespan),
    )
    # A redirect would send the client to whatever host it named; a path with a slash too many is
    # unknown instead.
    app.router.redirect_slashes = False
    return app
