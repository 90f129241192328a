"""Requests: the headers that matter here, the body within its bounds, the query's values."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

from starlette.types import Receive, Scope

from api.answers import Answer, Stream
from api.errors import ClientGoneError, RequestError, refuse_field
from api.head import Head
from api.limits import read_address
from ledger.jobs import Caller

Word = TypeVar("Word", bound=str)

MAX_BODY_BYTES = 1 << 20
MAX_BODIES_BYTES = 256 << 20
"""Of all requests together; of one API key, or of one address without a key, half of it."""
MAX_QUERY_FIELDS = 32
MAX_QUERY_INTEGER = 2**53 - 1
ANONYMOUS = Caller(key="", client="anonymous", role=None)

_INTEGER = re.compile(r"[+-]?[0-9]{1,16}")


class BodyRoom:
    """How much of all bodies together may be in memory; each may be large, and they may be many.

    Nobody alone has more than half of it: bodies that are sent slowly would keep all others out.
    """

    def __init__(self, max_bytes: int = MAX_BODIES_BYTES) -> None:
        self._max_bytes = max_bytes
        self._taken = 0
        self._taken_by: Counter[str] = Counter()

    def take(self, size: int, payer: str) -> None:
        """Take room for a piece.

        Raises:
            RequestError: SYSTEM_OVERLOADED, there is none.
        """
        taken, own = self._taken + size, self._taken_by[payer] + size
        if taken > self._max_bytes or 2 * own > self._max_bytes:
            raise RequestError(
                "SYSTEM_OVERLOADED", "too many large bodies arrive at once; try again"
            )
        self._taken, self._taken_by[payer] = taken, own

    def give_back(self, size: int, payer: str) -> None:
        """Return what was taken."""
        self._taken -= size
        self._taken_by[payer] -= size
        if not self._taken_by[payer]:
            del self._taken_by[payer]


class Request:
    """One HTTP request. `caller` and `body` are filled in before an endpoint sees it."""

    __slots__ = (
        *("_fields", "_room", "_room_taken", "answer", "body", "body_done"),
        *("caller", "head", "id", "method", "receive", "scope"),
    )
    receive: Receive
    """Where the rest of the request comes from."""

    def __init__(
        self, scope: Scope, *, head: Head | None = None, whole: bytes | None = None
    ) -> None:
        """`head` is given by who has read it; `whole` is a body that is here, and takes no room."""
        self.scope = scope
        self.head = head = head or Head(scope["headers"])
        self.method: str = scope["method"]
        self.caller = ANONYMOUS
        self.body = whole or b""
        self.id = ""
        self._room: BodyRoom | None = None
        self._room_taken = 0
        self.answer: Answer | Stream | None = None
        """What is sent, once that is known; for metrics and the access log."""
        self._fields: dict[str, list[str]] | None = None
        self.body_done = whole is not None or not head.announces_body
        """Whether nothing of the body is still to come."""

    @property
    def payer(self) -> str:
        """Who answers for what the request costs: an API key, or the address of who has none."""
        return self.caller.key or read_address(self.scope)

    @property
    def last_event_id(self) -> str | None:
        """Where an event stream broke off, None if it begins."""
        return self.head.first(b"last-event-id").decode("latin-1") or self.text("last_event_id")

    @property
    def base(self) -> str:
        """What stands before the documented paths: `/api`, a proxy's prefix, both or nothing."""
        base: str = self.scope.get("root_path", "")
        return base

    @property
    def site(self) -> str:
        """What stands before the pages of the explorer: a proxy's prefix or nothing."""
        site: str = self.scope.get("app_root_path", self.base)
        return site

    @property
    def path_id(self) -> str:
        """The one variable part of the path."""
        (value,) = self.scope["path_params"].values()
        return str(value)

    # --- body -----------------------------------------------------------------------------------

    async def read_body(self, room: BodyRoom, *, max_bytes: int, timeout_ms: int) -> None:
        """Read the body into `body`, never holding more than `max_bytes` and one chunk.

        The room that it takes is given back by `drop_body`.

        Raises:
            RequestError: VALIDATION_BODY_TOO_LARGE, as soon as that is known, SYSTEM_OVERLOADED or
                VALIDATION_BODY_TIMEOUT.
            ClientGoneError: the client hung up.
        """
        if self.body_done:
            return
        self._room = room
        length = self.head.first(b"content-length")
        if length.isdigit() and int(length[:20]) > max_bytes:
            raise _too_large(max_bytes)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                self.body = await self._read_chunks(room, max_bytes)
        except TimeoutError:
            raise RequestError(
                "VALIDATION_BODY_TIMEOUT", f"the body did not arrive within {timeout_ms} ms"
            ) from None

    async def _read_chunks(self, room: BodyRoom, max_bytes: int) -> bytes:
        chunks, size = [], 0
        while not self.body_done:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientGoneError
            chunk: bytes = message.get("body", b"")
            self.body_done = not message.get("more_body", False)
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            room.take(len(chunk), self.payer)
            self._room_taken += len(chunk)
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def drop_body(self) -> None:
        """Forget the body and give its room back; what waits for long does so once it is parsed."""
        self.body = b""
        if self._room is not None:
            self._room.give_back(self._room_taken, self.payer)
        self._room, self._room_taken = None, 0

    async def wait_until_gone(self) -> None:
        """Return when the client hangs up. What else it sends before that is thrown away."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    # --- query ----------------------------------------------------------------------------------

    def text(self, name: str) -> str | None:
        """Return a query parameter, None if it is absent."""
        if self._fields is None:
            self._fields = _parse_query(self.scope.get("query_string", b""))
        values = self._fields.get(name)
        if values is None:
            return None
        if len(values) > 1:
            raise refuse_field(name, "expected one value, got several")
        return values[0]

    def texts(self, name: str) -> tuple[str, ...]:
        """Return all values of a query parameter that may come several times."""
        if self._fields is None:
            self._fields = _parse_query(self.scope.get("query_string", b""))
        return tuple(self._fields.get(name, ()))

    def integer(self, name: str) -> int | None:
        """Return an integer of at most 53 bits."""
        text = self.text(name)
        if text is None:
            return None
        if not _INTEGER.fullmatch(text) or abs(int(text)) > MAX_QUERY_INTEGER:
            raise refuse_field(name, "expected an integer")
        return int(text)

    def clamped(self, name: str, *, default: int, maximum: int) -> int:
        """Return an integer, moved into 0..maximum."""
        value = self.integer(name)
        return default if value is None else max(0, min(value, maximum))

    def choice(self, name: str, choices: Sequence[Word]) -> Word | None:
        """Return one of `choices`."""
        text = self.text(name)
        if text is None:
            return None
        for known in choices:
            if text == known:
                return known
        raise refuse_field(name, f"expected one of {', '.join(choices)}")

    def address(self, path: str, **changes: int | str | None) -> str:
        """Return the address of `path` with this request's query and `changes`; None removes."""
        if self._fields is None:
            self._fields = _parse_query(self.scope.get("query_string", b""))
        query = {name: values for name, values in self._fields.items() if name not in changes}
        query |= {name: [str(value)] for name, value in changes.items() if value is not None}
        return f"{self.base}{path}?{urlencode(query, doseq=True)}"


def _parse_query(query: bytes) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(
            query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS
        )
    except ValueError:
        raise refuse_field("query", f"expected at most {MAX_QUERY_FIELDS} parameters") from None
    fields: dict[str, list[str]] = {}
    for name, value in pairs:
        fields.setdefault(name, []).append(value)
    return fields


def _too_large(max_bytes: int) -> RequestError:
    return RequestError("VALIDATION_BODY_TOO_LARGE", f"body: expected at most {max_bytes} bytes")
