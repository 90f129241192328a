"""Serves one node over HTTP until a signal or a failure ends it."""

from __future__ import annotations

import gc
import logging
import resource
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import uvicorn

from ledger.errors import StoreError
from node.directhttp import DirectProtocol
from node.httphead import MAX_REFUSED, REFUSED_SHARE
from node.running import Running

BACKLOG = 4096
"""New connections that may wait to be taken; Linux allows as many if nobody told it otherwise."""
ACCEPTS_PER_TURN = 32
"""New connections that are taken in one turn of the event loop, which may be long."""
OTHER_CONNECTIONS = 3096
"""Besides those of callers who wait. Above both together, new ones are answered 503."""
MAX_OPEN_FILES = 65_536
"""What the file limit is raised to, where the system allows it."""
RESERVED_FILES = 128
"""Kept from connections, for the databases and the log."""
COLLECT_AFTER = 2_000
"""Objects that are made more than dropped before garbage is collected: ten times as many, and one
page or completion in a hundred waits 7 to 20 ms for it, while the sum stays the same."""
KEEP_ALIVE_S = 30
VANISHED_MS = 60_000
"""A client that acknowledges nothing for so long is gone. Linux alone tries for 15 minutes."""
SHUTDOWN_S = 3
"""How long open requests may take to end."""

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Tells the node first that the end has come: open streams and polls wait for the node."""

    def __init__(self, config: uvicorn.Config, begin_shutdown: Callable[[], None]) -> None:
        super().__init__(config)
        self._begin_shutdown = begin_shutdown

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._begin_shutdown()
        await super().shutdown(sockets)


class Opener(Protocol):
    """Opens a node's files and puts it together. `stop()` is called when it cannot go on."""

    def __call__(self, *, stop: Callable[[], None]) -> AbstractContextManager[Running]:
        """Open it."""


def serve(
    opener: Opener,
    *,
    host: str,
    port: int,
    ready: Callable[[str], None],
    max_connections: int,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Run a node until SIGINT or SIGTERM. `ready(url)` is called once its socket listens.

    It serves up to `max_connections` at once, if the system allows as many open files. The headers
    of `trusted_proxies`, networks, are believed when they say whose request it is.

    Raises:
        StoreError: it cannot start, or had to stop by itself.
    """
    listening = listen(host, port)
    servers: list[_Server] = []
    ended = threading.Event()

    def stop() -> None:
        ended.set()
        for server in servers:
            server.should_exit = True

    # uvicorn raises a signal once more after it has stopped; it must not end the process before
    # the files are closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop())

    max_connections = bound_connections(max_connections)
    with listening, opener(stop=stop) as node:
        config = uvicorn.Config(
            node.app,
            http=DirectProtocol,
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            **forwarding_options(trusted_proxies),
            backlog=BACKLOG,
            limit_concurrency=max_connections,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
        servers.append(_Server(config, node.begin_shutdown))
        servers[0].should_exit = ended.is_set()
        name, number = listening.getsockname()[:2]
        _calm_collector()
        ready(f"http://{f'[{name}]' if ':' in name else name}:{number}")
        servers[0].run(sockets=share_listening(listening))
        if node.failure is not None:
            raise StoreError(f"the node had to stop: {node.failure}") from node.failure


def forwarding_options(trusted_proxies: Sequence[str]) -> dict[str, Any]:
    """Return how uvicorn learns client addresses.

    Left alone it believes the X-Forwarded-For of anybody on this machine, or whatever the variable
    FORWARDED_ALLOW_IPS names.
    """
    return {
        "proxy_headers": bool(trusted_proxies),
        "forwarded_allow_ips": list(trusted_proxies),
    }


def bound_connections(wanted: int) -> int:
    """Raise this process's file limit and return how many connections fit under it, up to `wanted`.

    Raises:
        StoreError: not even two.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, most = (MAX_OPEN_FILES if n == resource.RLIM_INFINITY else n for n in (soft, hard))
    raised = min(most, MAX_OPEN_FILES)
    if soft < raised:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError) as error:
            logger.warning("the limit of open files stays at %d: %s", soft, error)
    if soft < RESERVED_FILES + 2:
        raise StoreError(
            f"a node needs {RESERVED_FILES + 2} open files or more, and this system allows {soft}; "
            "raise it with ulimit -n"
        )
    # Those above the limit take files too, until they have read why.
    room = soft - RESERVED_FILES
    return min(wanted, max(room * REFUSED_SHARE // (REFUSED_SHARE + 1), room - MAX_REFUSED))


def _calm_collector() -> None:
    """Let garbage collection pass over what lives as long as the node, and come less often.

    Requests leave few cycles behind; looking for them in everything was 8 % of the event loop.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)


def share_listening(listening: socket.socket) -> list[socket.socket]:
    """Return ACCEPTS_PER_TURN sockets that listen in the place of one.

    libuv takes one connection a turn for each socket. In a crowd the rest would wait in the kernel
    turn after turn, and those for whom there is no room there would be lost unheard.
    """
    return [listening.dup() for _ in range(ACCEPTS_PER_TURN)]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 takes a free one.

    Raises:
        StoreError: it cannot.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; its connections inherit it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_MS)
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except OSError as error:
        raise StoreError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; stop what uses it, "
            "or choose another with --port"
        ) from error
    listening.settimeout(0)
    return listening
