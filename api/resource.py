"""Resources: one path with its operations, and the boundary around them.

Whatever happens inside, the client gets one answer in the documented form. The order of checks is
method, key, rate limit, role, body, and only then the endpoint: a stranger cannot make a node hold
a body.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from starlette.types import Receive, Scope, Send

from api.access import ApiMode, KeyWatch, authenticate, check_role
from api.answers import Answer, Stream, start_answer
from api.errors import ClientGoneError, ErrorForm, RequestError, answer_error, show_error
from api.limits import RateLimiter
from api.metering import (
    REQUEST_ID,
    UNKNOWN_ROUTE,
    Observer,
    build_outcome,
    ignore_outcome,
    name_route,
)
from api.openai.errors import show_openai_error
from api.ports import Keys
from api.requests import BodyRoom, Request
from api.streaming import log_fault, send_stream
from ledger.errors import HistoryMissingError, MarketError, StoreError
from ledger.jobs import KeyRole
from ledger.store.writequeue import DatabaseBusyError, DatabaseLostError

DRAIN_TIMEOUT_S = 2
MAX_DRAINED_BYTES = 16 << 20

_CLOSING = RequestError(
    "SYSTEM_SHUTTING_DOWN",
    "this node shut down before it could answer; try again later",
    headers=((b"connection", b"close"),),
)

Handler = Callable[[Request], Awaitable[Answer | Stream]]

logger = logging.getLogger("aitbc.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """How the REST face behaves."""

    mode: ApiMode
    version: str
    """Release of the node."""
    default_model: str
    """Model of jobs that name none."""
    body_timeout_ms: int = 30_000
    """How long a client may take to send a body."""
    completion_timeout_ms: int = 570_000
    """How long a completion may take that is not streamed. OpenAI's clients wait for 600 s, and
    would then ask again by themselves."""
    max_waiting: int = 1_000
    """Long polls, event streams and completions at once; half of them for callers without a key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    handler: Handler
    role: KeyRole | None = None
    """Whose work this is; a key must have this role or be an admin's. None: anybody's."""
    key: Literal["always", "strict", "never"] = "never"
    """Where a key is needed: in every mode, in strict mode, nowhere."""
    max_body_bytes: int | None = None
    """Bound of the JSON body; None: no body is expected, and one that comes is ignored."""
    error_form: ErrorForm = show_error
    """How its refusals look, those of the boundary included."""
    direct: Literal["never", "without_query", "always"] = "never"
    """Whether a server may answer it without ASGI (`api.direct`): it returns an Answer, and asks
    for nothing more of its client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """What every request meets besides its endpoint."""

    limiter: RateLimiter | None = None
    observe: Observer = ignore_outcome
    clock_s: Callable[[], float] = time.perf_counter


_OPEN = Boundary()


class Resource:
    """One path as an ASGI application."""

    def __init__(
        self,
        operations: Mapping[str, Operation],
        *,
        keys: Keys,
        settings: ApiSettings,
        make_request_id: Callable[[], str],
        room: BodyRoom,
        path: str = "",
        boundary: Boundary = _OPEN,
    ) -> None:
        self.operations = operations
        self._keys = keys
        self._settings = settings
        self._make_request_id = make_request_id
        self._room = room
        self._route = name_route(path) if operations else UNKNOWN_ROUTE
        self._boundary = boundary
        methods = {*operations, "OPTIONS"} | ({"HEAD"} if "GET" in operations else set())
        self._allow = (b"allow", ", ".join(sorted(methods)).encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and tell of it."""
        request = Request(scope)
        request.receive = receive

        async def send_answer(answer: Answer | Stream) -> None:
            if isinstance(answer, Stream):
                await send_stream(answer, request, send, self._watch_key(request))
            else:
                await _send(answer, request, receive, send)

        await self._serve(request, send_answer)

    async def answer_whole(self, request: Request, write: Callable[[Answer], None]) -> None:
        """As `__call__`, for an operation that is direct and a request that has come whole."""

        async def send_answer(answer: Answer | Stream) -> None:
            assert isinstance(answer, Answer), "direct operations do not stream"
            request.answer = answer
            write(answer)

        await self._serve(request, send_answer)

    async def _serve(
        self, request: Request, send_answer: Callable[[Answer | Stream], Awaitable[None]]
    ) -> None:
        began_s = self._boundary.clock_s()
        request.id = request.head.given_id or self._make_request_id()
        REQUEST_ID.set(request.id)  # each request has a task, and so a context, of its own
        try:
            answer = await self._settle(request)
            if answer is not None:
                await send_answer(answer)
        finally:
            seconds = self._boundary.clock_s() - began_s
            self._boundary.observe(build_outcome(request, self._route, seconds))

    async def _settle(self, request: Request) -> Answer | Stream | None:
        """Return the answer, whatever happens inside; None if there is nobody to answer."""
        error: RequestError | MarketError
        try:
            return await self._answer(request)
        except (RequestError, MarketError) as refusal:
            error = refusal
        except HistoryMissingError as missing:
            error = RequestError("HISTORY_MISSING", str(missing))
        except DatabaseBusyError as busy:
            is_lost = isinstance(busy, DatabaseLostError)
            reason = "the database does not answer" if is_lost else "too many writes wait"
            error = RequestError("SYSTEM_OVERLOADED", f"{reason}; try again")
        except StoreError as failure:
            logger.error("request %s: %s", request.id, failure)  # noqa: TRY400 - it holds no text
            error = RequestError("SYSTEM_STORAGE_FAILED", "the node could not store this")
        except ClientGoneError:
            return None
        except asyncio.CancelledError:
            # Only a server that closes cancels a request, and it does not wait for a body.
            request.body_done = True
            error = _CLOSING
        except Exception as fault:
            return self._answer_fault(fault, request)
        return self._answer_error(error, request)

    async def _answer(self, request: Request) -> Answer | Stream:
        operation = self._operation(request)
        if operation is None:
            return self._answer_other_method(request)
        self._identify(request)
        needed = operation.key == "always" or (
            operation.key == "strict" and self._settings.mode == "strict"
        )
        check_role(request.caller, operation.role, key_needed=needed)
        try:
            if operation.max_body_bytes is not None:
                request.head.check_media_type()
                await request.read_body(
                    self._room,
                    max_bytes=operation.max_body_bytes,
                    timeout_ms=self._settings.body_timeout_ms,
                )
            key = self._watch_key(request)
            answer = await operation.handler(request)
            if isinstance(answer, Answer) and not key.is_good():
                raise RequestError("AUTH_INVALID_KEY", "this API key was revoked meanwhile")
            return answer
        finally:
            request.drop_body()

    def _watch_key(self, request: Request) -> KeyWatch:
        clock_s = asyncio.get_running_loop().time
        return KeyWatch(request.caller, request.head.secret(), self._keys, clock_s=clock_s)

    def _identify(self, request: Request) -> None:
        limiter = self._boundary.limiter
        try:
            request.caller = authenticate(request.head.secret(), self._keys)
        except RequestError:
            if limiter is not None:
                limiter.check_address(request.scope)
            raise
        if limiter is not None:
            limiter.check(request.caller, request.scope)

    def _operation(self, request: Request) -> Operation | None:
        return self.operations.get("GET" if request.method == "HEAD" else request.method)

    def _answer_other_method(self, request: Request) -> Answer:
        if not self.operations:
            raise RequestError(
                "PATH_NOT_FOUND", "there is nothing at this path; /docs lists what is"
            )
        if request.method == "OPTIONS":
            return Answer(status=204, headers=(self._allow,))
        raise RequestError(
            "METHOD_NOT_ALLOWED",
            f"expected one of {self._allow[1].decode()}",
            headers=(self._allow,),
        )

    def _answer_error(self, error: RequestError | MarketError, request: Request) -> Answer:
        # A method that a path does not have is refused in the form of those it has.
        operation = self._operation(request) or next(iter(self.operations.values()), None)
        # A path that nobody knows is often one of OpenAI's, asked for by a client of theirs.
        form = operation.error_form if operation else show_openai_error
        try:
            return answer_error(error, request.id, form)
        except KeyError:
            return self._answer_fault(error, request)

    def _answer_fault(self, error: Exception, request: Request) -> Answer:
        log_fault(error, request)
        fault = RequestError(
            "SYSTEM_INTERNAL_ERROR", "a fault of this node; its log knows the request"
        )
        return self._answer_error(fault, request)


async def _send(answer: Answer, request: Request, receive: Receive, send: Send) -> None:
    """Send an answer; if the body is still coming, take it for a while first.

    A connection closed on unread bytes is reset, and the client would never see why.
    """
    request.answer = answer
    unread = not request.body_done
    await start_answer(answer, request.id, send, close=unread)
    body = b"" if request.method == "HEAD" else answer.body
    if unread:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _drain(receive)
        body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _drain(receive: Receive) -> None:
    size = 0
    try:
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            while size < MAX_DRAINED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except (TimeoutError, asyncio.CancelledError):  # cancelled: the server closes, see above
        return
