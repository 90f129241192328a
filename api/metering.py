"""What is told of each request when it has been answered: for metrics and the access log.

Never the path, the query, a body, a client's name or an id of a job: an outcome has few values of
each kind, whatever strangers ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import msgspec

from api.answers import Answer
from api.requests import Request

UNKNOWN_ROUTE = "unknown"
"""Stands for every path that is not documented."""
OTHER_METHOD = "other"
CLIENT_GONE = 499
"""Status of a request whose client hung up before there was an answer; it is never sent."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being handled; log lines carry it."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, answered."""

    method: str
    """One of METHODS, or OTHER_METHOD."""
    route: str
    """The path as the API document writes it, or UNKNOWN_ROUTE."""
    status: int
    seconds: float
    """From its head to the end of its answer."""
    request_id: str
    key: str
    """Prefix of the API key, which is no secret; empty without a good one."""
    error_code: str
    """Why it was refused; empty if it was not."""


Observer = Callable[[Outcome], None]
"""Is told of every outcome. It must not wait, and raises nothing."""


def ignore_outcome(_outcome: Outcome) -> None:
    """Observe nothing."""


def build_outcome(request: Request, route: str, seconds: float) -> Outcome:
    """Return what is told of a request that has ended."""
    answer = request.answer
    return Outcome(
        method=request.method if request.method in METHODS else OTHER_METHOD,
        route=route,
        status=answer.status if answer else CLIENT_GONE,
        seconds=seconds,
        request_id=request.id,
        key=request.caller.key,
        error_code=answer.error_code if isinstance(answer, Answer) else "",
    )


def name_route(path: str) -> str:
    """Return a route's path as the API document writes it."""
    return path.replace(":path}", "}")
