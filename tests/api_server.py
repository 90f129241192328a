"""A real uvicorn on an ephemeral loopback port, in a thread, for as long as a test needs it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from node.directhttp import DirectProtocol
from node.server import forwarding_options

STOP_TIMEOUT_S = 30


@contextmanager
def serve(
    app: ASGIApp,
    *,
    http: type[DirectProtocol] = DirectProtocol,
    limit_concurrency: int | None = None,
    shutdown_s: int = 5,
    trusted_proxies: Sequence[str] = (),
) -> Iterator[int]:
    """Serve `app`; yields the port. The socket listens before, so nobody has to wait for it."""
    config = uvicorn.Config(
        app,
        http=http,
        limit_concurrency=limit_concurrency,
        access_log=False,
        log_config=None,
        lifespan="off",
        timeout_graceful_shutdown=shutdown_s,
        **forwarding_options(trusted_proxies),
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(STOP_TIMEOUT_S)
            assert not thread.is_alive()
