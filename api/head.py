"""The head of a request: the headers that matter here, read once.

Clients that keep a connection send the same head again and again, so a server may keep what it has
read of one (`api.direct`). Nothing here changes after that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from api.errors import RequestError, refuse_field

MAX_SECRET_CHARS = 256

_HEADERS = frozenset(
    {
        b"x-api-key",
        b"authorization",
        b"x-request-id",
        b"if-none-match",
        b"last-event-id",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"idempotency-key",
    }
)
_UNIQUE = frozenset({b"x-request-id", b"idempotency-key", b"if-none-match"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_MEDIA_TYPE = re.compile(rb"application/(?:json|[a-z0-9.-]+\+json)\s*(?:;.*)?", re.IGNORECASE)
_IDEMPOTENCY_KEY = re.compile(rb"[\x21-\x7e]{1,255}")
_TAG = re.compile(rb'"[\x21\x23-\x7e\x80-\xff]*"')


class Head:
    """The headers of one request, or of many that have the same."""

    __slots__ = ("_headers", "_is_plain_json", "_secret")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Names are in lower case."""
        self._headers: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in _HEADERS:
                self._headers.setdefault(name, []).append(value)
        self._secret: str | None = None
        self._is_plain_json = False

    def first(self, name: bytes) -> bytes:
        """Return the first value of a header, empty if there is none."""
        return self._headers.get(name, (b"",))[0].strip()

    @property
    def announces_body(self) -> bool:
        """Whether a body follows."""
        return b"transfer-encoding" in self._headers or self.first(b"content-length") not in {
            b"",
            b"0",
        }

    @property
    def given_id(self) -> str | None:
        """The client's own request id, if it is a sane one."""
        given = self.first(b"x-request-id")
        return given.decode() if _REQUEST_ID.fullmatch(given) else None

    @property
    def is_unique(self) -> bool:
        """Whether the client sends other values with each request."""
        return not _UNIQUE.isdisjoint(self._headers)

    @property
    def is_conditional(self) -> bool:
        """Whether the client names what it has already."""
        return b"if-none-match" in self._headers

    def knows(self, tag: bytes) -> bool:
        """Tell whether the client has what this entity tag (with its quotes) stands for."""
        given = b",".join(self._headers.get(b"if-none-match", ()))
        return given.strip() == b"*" or tag in _TAG.findall(given)

    def secret(self) -> str | None:
        """Return the API key of the request, None if there is none.

        Raises:
            RequestError: AUTH_INVALID_KEY, two different keys or not a Bearer key.
        """
        if self._secret is not None:
            return self._secret
        given = {value.strip() for value in self._headers.get(b"x-api-key", ())}
        for value in self._headers.get(b"authorization", ()):
            scheme, _, token = value.strip().partition(b" ")
            if scheme.lower() != b"bearer":
                raise RequestError(
                    "AUTH_INVALID_KEY", "Authorization: expected 'Bearer' and an API key"
                )
            given.add(token.strip())
        given.discard(b"")
        if not given:
            return None
        if len(given) > 1:
            raise RequestError("AUTH_INVALID_KEY", "the request carries two different API keys")
        secret = given.pop()
        if len(secret) > MAX_SECRET_CHARS or not secret.isascii():
            raise RequestError("AUTH_INVALID_KEY", "this is not an API key")
        self._secret = secret.decode()
        return self._secret

    def idempotency_key(self) -> str | None:
        """Return the `Idempotency-Key` of the request, None if there is none."""
        given = self._headers.get(b"idempotency-key")
        if given is None:
            return None
        if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
            raise refuse_field(
                "Idempotency-Key", "expected one key of 1 to 255 visible ASCII characters"
            )
        return given[0].decode()

    def check_media_type(self) -> None:
        """Refuse what is not plain JSON.

        A missing type is refused as well: a web page may send that across origins without asking,
        but not `application/json`.
        """
        if self._is_plain_json:
            return
        given = self.first(b"content-type")
        if not _MEDIA_TYPE.fullmatch(given):
            shown = given[:100].decode("latin-1") or "none"
            raise RequestError(
                "VALIDATION_MEDIA_TYPE", f"Content-Type: expected application/json, got {shown}"
            )
        if self.first(b"content-encoding").lower() not in {b"", b"identity"}:
            raise RequestError(
                "VALIDATION_MEDIA_TYPE", "Content-Encoding: expected none; send the JSON itself"
            )
        self._is_plain_json = True
