"""One attempt: the event signed by Standard Webhooks, sent once, and judged by its status.

Nothing that a receiver says counts but its status and Retry-After; nothing of it is logged or
kept. An answer may be slow, endless or no HTTP at all: the time is bounded, and so is what is read.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import httpcore2
import httpx2

from node.webhooks.guard import AddressRefusedError
from node.webhooks.transport import CheckedTransport, NameUnknownError

TIMEOUT_S = 10.0
"""Of a whole attempt, from the look-up of the name to the last byte that is read."""
BODY_TIMEOUT_S = 2.0
"""Of an answer's body, once its head has told all that counts."""
CONNECT_TIMEOUT_S = 3.0
"""Of one address."""
MAX_ANSWER_BYTES = 64 << 10
"""What is read of an answer's body, so that the connection can be used again; else it is closed."""
MAX_RETRY_AFTER_S = 86_400
SECRET_PREFIX = "whsec_"  # noqa: S105 - what stands before one

_RETRY_AFTER_DIGITS = 6
_FAILURES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((NameUnknownError,), "name_unknown"),
    ((AddressRefusedError,), "address_refused"),
    ((TimeoutError, httpcore2.TimeoutException), "timeout"),
    ((httpcore2.ConnectError,), "connection_refused"),
    ((httpcore2.NetworkError, httpcore2.ProtocolError, OSError), "connection_broken"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt went."""

    status: int | None = None
    """Of the HTTP answer, if there was one."""
    error: str | None = None
    """Why there was none."""
    retry_after_s: int = 0
    """What the receiver asked for."""

    @property
    def is_delivered(self) -> bool:
        """Only a 2xx says that the event has arrived."""
        return self.status is not None and 200 <= self.status < 300


def format_secret(secret: bytes) -> str:
    """Return a secret as it is shown."""
    return SECRET_PREFIX + base64.b64encode(secret).decode()


def sign(secret: bytes, message_id: str, timestamp_s: int, payload: bytes) -> str:
    """Return the `webhook-signature` of a message."""
    content = f"{message_id}.{timestamp_s}.".encode() + payload
    digest = hmac.new(secret, content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


class Sender:
    """Sends events over a checked transport."""

    def __init__(self, transport: CheckedTransport, clock_ms: Callable[[], int]) -> None:
        self._transport = transport
        self._clock_ms = clock_ms

    async def send(self, url: str, secret: bytes, message_id: str, payload: bytes) -> Outcome:
        """Make one attempt. Never raises for what the receiver does."""
        request = self._build(url, secret, message_id, payload)
        heads: list[Outcome] = []
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._exchange(request, heads)
        except Exception as error:
            # Once the head has come, the event has arrived, whatever becomes of the rest.
            return heads[0] if heads else Outcome(error=_name_failure(error))
        return heads[0]

    def _build(self, url: str, secret: bytes, message_id: str, payload: bytes) -> httpx2.Request:
        timestamp_s = self._clock_ms() // 1000
        timeout = httpx2.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        return httpx2.Request(
            "POST",
            url,
            content=payload,
            headers={
                "content-type": "application/json",
                "accept-encoding": "identity",
                "user-agent": "aitbc-node",
                "webhook-id": message_id,
                "webhook-timestamp": str(timestamp_s),
                "webhook-signature": sign(secret, message_id, timestamp_s, payload),
            },
            extensions={"timeout": timeout.as_dict()},
        )

    async def _exchange(self, request: httpx2.Request, heads: list[Outcome]) -> None:
        answer = await self._transport.handle_async_request(request)
        try:
            heads.append(Outcome(status=answer.status_code, retry_after_s=_read_retry(answer)))
            async with asyncio.timeout(BODY_TIMEOUT_S):
                await _skip_body(answer)
        finally:
            await answer.aclose()


async def _skip_body(answer: httpx2.Response) -> None:
    size_bytes = 0
    async for piece in answer.aiter_raw():
        size_bytes += len(piece)
        if size_bytes > MAX_ANSWER_BYTES:
            return


def _read_retry(answer: httpx2.Response) -> int:
    """Return Retry-After in seconds, 0 without one; a date counts as none."""
    text = answer.headers.get("retry-after", "").strip()
    if not (text.isascii() and text.isdigit() and len(text) <= _RETRY_AFTER_DIGITS):
        return 0
    return min(int(text), MAX_RETRY_AFTER_S)


def _name_failure(error: Exception) -> str:
    """Return one word of a closed set; what an exception says may be the receiver's words."""
    for kinds, name in _FAILURES:
        if isinstance(error, kinds):
            is_tls = name == "connection_refused" and _has_tls_cause(error)
            return "tls_failed" if is_tls else name
    return "not_sent"


def _has_tls_cause(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error is not None
