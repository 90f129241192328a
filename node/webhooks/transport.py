"""HTTP to a checked address and no other.

The name is looked up once for a connection, all its addresses are checked, and the connection goes
to one of them; nothing looks the name up again, so a name that changes its meaning in between gains
nothing. TLS is verified against the name. There are no redirects, cookies or proxies here: those
belong to a client, and this is only what stands below one.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address

import httpcore2
import httpx2

from node.webhooks.guard import Address, Guard, Reach

MAX_CONNECTIONS = 8
MAX_IDLE_CONNECTIONS = 4
IDLE_S = 5.0
MAX_TRIED_ADDRESSES = 3
"""Of one name, for one connection."""
MAX_LOOKUPS = 16
"""Names being looked up at once, those included that nobody waits for any more."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
SocketOption = (
    tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
)


class NameUnknownError(Exception):
    """A webhook's host has no address, or it could not be looked up."""


class Resolver:
    """Looks names up by the system's own means, in threads that nothing waits for at the end."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_LOOKUPS)

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        """Return the addresses of a name.

        Raises:
            NameUnknownError: it has none, or too many look-ups hang.
        """
        if not self._slots.acquire(blocking=False):
            raise NameUnknownError
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()

        def look_up() -> None:
            try:
                # Not the loop's own getaddrinfo: names that hang would fill the threads that
                # everything else needs, and hold up the end of the process.
                answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = [ip_address(answer[4][0]) for answer in answers]
            except (OSError, ValueError):
                addresses = []
            finally:
                self._slots.release()
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(answer_with, addresses)

        def answer_with(addresses: list[Address]) -> None:
            if not found.done():
                found.set_result(addresses)

        threading.Thread(target=look_up, name="webhook resolver", daemon=True).start()
        if addresses := await found:
            return addresses
        raise NameUnknownError


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects to checked addresses, over the connections of `below`."""

    def __init__(
        self, guard: Guard, resolve: Resolve, below: httpcore2.AsyncNetworkBackend
    ) -> None:
        self._guard = guard
        self._resolve = resolve
        self._below = below

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - what httpcore2 calls it
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that answers.

        Raises:
            NameUnknownError, AddressRefusedError: before anything is sent.
            httpcore2.ConnectError, httpcore2.ConnectTimeout: none answers.
        """
        addresses = list(dict.fromkeys(await self._resolve(host, port)))
        self._guard.check(addresses)
        failure: httpcore2.ConnectError | httpcore2.ConnectTimeout | None = None
        for address in addresses[:MAX_TRIED_ADDRESSES]:
            try:
                return await self._below.connect_tcp(
                    str(address),
                    port,
                    timeout=timeout,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        assert failure is not None, "the guard refuses to go nowhere"
        raise failure


class CheckedTransport(httpx2.AsyncBaseTransport):
    """A transport of httpx2 whose every connection is checked. Use it as a context manager."""

    def __init__(
        self,
        reach: Reach,
        *,
        resolve: Resolve,
        tls: ssl.SSLContext,
        below: httpcore2.AsyncNetworkBackend | None = None,
    ) -> None:
        self._pools = {
            scheme: httpcore2.AsyncConnectionPool(
                ssl_context=tls,
                max_connections=MAX_CONNECTIONS,
                max_keepalive_connections=MAX_IDLE_CONNECTIONS,
                keepalive_expiry=IDLE_S,
                network_backend=CheckedNetwork(
                    Guard(reach=reach, is_plain=scheme == "http"),
                    resolve,
                    below or httpcore2.AnyIOBackend(),
                ),
            )
            for scheme in ("http", "https")
        }

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request; returns the head of its answer, whose body is still to be read.

        Raises:
            NameUnknownError, AddressRefusedError: see `CheckedNetwork`.
            httpcore2.TimeoutException, NetworkError, ProtocolError: no answer.
        """
        url = request.url
        assert isinstance(request.stream, httpx2.AsyncByteStream), "its body is bytes"
        answer = await self._pools[url.scheme].handle_async_request(
            httpcore2.Request(
                method=request.method,
                url=httpcore2.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        assert isinstance(answer.stream, AsyncIterable), "the pool is asynchronous"
        return httpx2.Response(
            status_code=answer.status, headers=answer.headers, stream=_Body(answer.stream)
        )

    async def aclose(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            await pool.aclose()


class _Body(httpx2.AsyncByteStream):
    def __init__(self, stream: AsyncIterable[bytes]) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece

    async def aclose(self) -> None:
        if close := getattr(self._stream, "aclose", None):
            await close()
