"""Answers: what an endpoint returns, and how it is sent.

An answer is whole before its first byte is sent, so a failure can always still become an error. A
stream is not: it ends early, or tells of a failure in its own way.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from starlette.types import Send

Header = tuple[bytes, bytes]

JSON = b"application/json"

# The API serves data, never a document: nothing in an answer may run, load or be framed.
SECURITY_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"same-origin"),
)

SSE = b"text/event-stream"
BEAT = b":\n\n"
"""An event stream's sign of life."""
UNBUFFERED: Header = (b"x-accel-buffering", b"no")
"""Lets a proxy hand on each piece of a stream at once."""

IMMUTABLE = b"public, max-age=31536000, immutable"
REVALIDATED = b"no-cache"
"""May be kept, and is asked for again with its entity tag each time."""

_BODYLESS = frozenset({204, 304})

_encoder = msgspec.json.Encoder()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One response."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()
    cache_control: bytes = b"no-store"
    error_code: str = ""
    """Of a refusal; for metrics and the access log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A response whose body follows piece by piece, for as long as the client stays.

    `pieces` is closed when the client hangs up or the node ends, so what it has begun it also ends.
    Answering a HEAD it is not begun.
    """

    pieces: AsyncGenerator[bytes, None]
    """None of them is empty."""
    ended: Callable[[], None] = lambda: None
    """Called once when the answer is over, begun or not."""
    content_type: bytes = SSE
    headers: tuple[Header, ...] = ()
    cache_control: bytes = b"no-store"
    status: int = 200


def answer_json(value: object, *, status: int = 200, headers: tuple[Header, ...] = ()) -> Answer:
    """Return `value` as JSON."""
    return Answer(status=status, body=_encoder.encode(value), headers=headers)


def link(targets: Mapping[str, str]) -> tuple[Header, ...]:
    """Return the `Link` header of addresses by relation, or nothing if there are none."""
    links = ", ".join(f'<{address}>; rel="{relation}"' for relation, address in targets.items())
    return ((b"link", links.encode("ascii")),) if links else ()


def tell_total(total: int | None) -> tuple[Header, ...]:
    """Return the `X-Total-Count` header of a list, or nothing where nobody has counted."""
    return () if total is None else ((b"x-total-count", str(total).encode()),)


@lru_cache(maxsize=64)
def list_fixed_headers(
    status: int, cache_control: bytes, content_type: bytes
) -> tuple[Header, ...]:
    """Return those headers of an answer that many others have too."""
    headers = (*SECURITY_HEADERS, (b"cache-control", cache_control))
    return headers if status in _BODYLESS else (*headers, (b"content-type", content_type))


def list_own_headers(
    answer: Answer | Stream, request_id: str, *, close: bool = False
) -> list[Header]:
    """Return the others; `close` tells the client that the connection ends with the answer."""
    headers = [(b"x-request-id", request_id.encode()), *answer.headers]
    if isinstance(answer, Answer) and answer.status not in _BODYLESS:
        headers.append((b"content-length", str(len(answer.body)).encode()))
    if close:
        headers.append((b"connection", b"close"))
    return headers


async def start_answer(
    answer: Answer | Stream, request_id: str, send: Send, *, close: bool
) -> None:
    """Send the head of an answer."""
    headers = [
        *list_fixed_headers(answer.status, answer.cache_control, answer.content_type),
        *list_own_headers(answer, request_id, close=close),
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
